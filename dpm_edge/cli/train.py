"""`dpm-edge train`."""

from __future__ import annotations

import click


class TrainCommand(click.Command):
    """A command whose help lists the recipes and tools, and leaves a tool's own arguments to the tool."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse; after a tool's name everything is the tool's, --help too."""
        from dpm_edge.train.cli import TOOLS

        if args and args[0] in TOOLS:
            ctx.params["arguments"] = tuple(args)
            return []
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the lists of recipes and tools."""
        from dpm_edge.train.cli import TOOLS, recipes

        with formatter.section("Recipes"):
            formatter.write_dl(list(recipes().items()))
        with formatter.section("Tools, in the recipe's place (TOOL --help says more)"):
            formatter.write_dl([(name, line) for name, (_, line) in TOOLS.items()])


@click.command(
    "train",
    cls=TrainCommand,
    short_help="Train a recipe on a data set (needs torch).",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="RECIPE --data DIR [--out DIR] [FIELD=VALUE]...")
def command(arguments: tuple[str, ...]) -> None:
    """Train RECIPE on the data set in DIR; run it again to resume.

    The starting weights are scored first, so that the end says whether training helped. DIR is laid out like
    Market-1501 or as your own cameras, {train,test}/PERSON/CAMERA/picture.jpg; --layout names the layout where looking
    does not tell it. --out DIR is runs/RECIPE if not given; --json prints the results; --quiet shows no progress;
    FIELD=VALUE changes the recipe.

    \b
    Example:
      dpm-edge train market_tiny --data market --out runs/tiny schedule.epochs=20
    """
    from dpm_edge.env import installed
    from dpm_edge.errors import MissingLibrary

    if not installed("torch"):
        raise MissingLibrary("torch", "training", "pip install 'dpm-edge[train]'")
    from dpm_edge.train.cli import main

    raise SystemExit(main(list(arguments)))
