"""`dpm-edge train`."""

from __future__ import annotations

import click


@click.command(
    "train",
    short_help="Train a recipe on a data set (needs torch).",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="RECIPE --data DIR [--out DIR] [FIELD=VALUE]...")
def command(arguments: tuple[str, ...]) -> None:
    """Train RECIPE on the data set in DIR; run it again to resume.

    --out DIR is runs/RECIPE if not given; --json prints the results; --quiet shows no progress; FIELD=VALUE changes
    the recipe. A name that is unknown is answered with the known ones.

    \b
    Example:
      dpm-edge train market_tiny --data market --out runs/tiny schedule.epochs=20
    """
    from dpm_edge.env import installed
    from dpm_edge.errors import MissingLibrary

    for library in ("torch", "torchvision"):
        if not installed(library):
            raise MissingLibrary(library, "training", "pip install 'dpm-edge[train]'")
    from dpm_edge.train.cli import main

    raise SystemExit(main(list(arguments)))
