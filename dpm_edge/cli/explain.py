"""`dpm-edge explain`."""

from __future__ import annotations

import click


@click.command(
    "explain",
    short_help="Pictures of what a network looks at (needs torch).",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CHECKPOINT DATA [-o DIR] [OPTIONS]...")
def command(arguments: tuple[str, ...]) -> None:
    """Show what CHECKPOINT looks at, and what its mask changes, for some queries of the labelled data set DATA.

    DATA is laid out like Market-1501 or as your own cameras, test/PERSON/CAMERA/picture.jpg; --layout names the layout
    where looking does not tell it. -o DIR is `explained` if not given; --queries N shows N of them; --saliency FILE
    adds a saliency model's maps; --share S covers that share of each query.

    \b
    Example:
      dpm-edge explain runs/tiny/best.safetensors market -o explained
    """
    from dpm_edge.env import installed
    from dpm_edge.errors import MissingLibrary

    if not installed("torch"):
        raise MissingLibrary("torch", "explaining a checkpoint", "pip install 'dpm-edge[train]'")
    from dpm_edge.train.explain import main

    raise SystemExit(main(list(arguments)))
