"""`dpm-edge explain`."""

from __future__ import annotations

import click


@click.command(
    "explain",
    short_help="Pictures of what a network looks at (needs torch).",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CHECKPOINT IMAGES [OPTIONS]...")
def command(arguments: tuple[str, ...]) -> None:
    """Show what CHECKPOINT sees: saliency, masks and attention over pictures.

    \b
    Example:
      dpm-edge explain runs/dpm-t/best.safetensors crops -o explained
    """
    from dpm_edge.env import installed
    from dpm_edge.errors import DpmError, MissingLibrary

    if not installed("torch"):
        raise MissingLibrary("torch", "explaining a checkpoint", "pip install 'dpm-edge[train]'")
    if not installed("dpm_edge.train.explain"):
        raise DpmError("this version of dpm-edge brings no `explain`. Upgrade: pip install -U 'dpm-edge[train]'")
    from dpm_edge.train.explain import main

    raise SystemExit(main(list(arguments)))
