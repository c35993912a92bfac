"""`dpm-edge train`, `adapt` and `explain`: the commands that need torch."""

from __future__ import annotations

from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json, quiet


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
def train(arguments: tuple[str, ...]) -> None:
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


@click.command("adapt", short_help="Adapt a checkpoint to your cameras, without labels (needs torch).")
@click.argument("checkpoint", type=PATH)
@click.option("--crops", type=PATH, metavar="DIR", help="CAMERA/*.jpg, or CAMERA/TRACK/*.jpg.")
@click.option("--video", "videos", type=PATH, multiple=True, metavar="FILE", help="A camera's video; several times.")
@click.option("--boxes", type=PATH, multiple=True, metavar="FILE", help="Boxes and tracks of each --video, in order.")
@click.option("--every", type=click.IntRange(1), default=5, show_default=True, help="Crops of every n-th frame.")
@click.option("--first-frame", type=click.IntRange(0), help="Number of a video's first frame in its boxes file.")
@click.option("-o", "--out", type=PATH, required=True, metavar="DIR", help="Where the adapted checkpoint goes.")
@click.option("--check", type=PATH, metavar="DIR", help="A few labelled pictures; both models are scored on them.")
@click.option("--labels", type=PATH, metavar="FILE", help="Which tracks are one person, as `dpm-edge label` writes it.")
@click.option("--minutes", type=float, default=60.0, show_default=True, help="Time for the rounds.")
@click.option("--rounds", type=int, default=12, show_default=True, help="Rounds at most.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Write the model even where it is worse on held-out crops.")
@as_json
@quiet
def adapt(
    checkpoint: Path,
    crops: Path | None,
    videos: tuple[Path, ...],
    boxes: tuple[Path, ...],
    every: int,
    first_frame: int | None,
    out: Path,
    check: Path | None,
    labels: Path | None,
    minutes: float,
    rounds: int,
    seed: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Adapt CHECKPOINT to your cameras, from crops of people or from videos with boxes; nothing is labelled.

    Rounds of grouping crops that look like one person, centred per camera, and of learning those groups. A track is
    one person, and two tracks of one camera that share a frame are two; --labels tells more. Crops that were held out
    judge: a model that is worse on them is not written. The same command again goes on where it was stopped. --check
    DIR adds real scores, before and after, of a few people whom you did label, laid out as for `dpm-edge eval`. Crops
    of videos are kept in OUT/crops. Then `dpm-edge build OUT/adapted.safetensors` makes the engine.

    \b
    Example:
      dpm-edge adapt dpm-n --crops site -o runs/site
      dpm-edge adapt dpm-n --video door.mp4 --boxes door.csv --video yard.mp4 --boxes yard.csv -o runs/site
    """
    import json

    from dpm_edge.env import installed
    from dpm_edge.errors import MissingLibrary

    if (crops is None) == (not videos):
        raise click.UsageError(
            "expected --crops DIR, or --video FILE with --boxes FILE, got " + ("both" if crops else "neither")
        )
    for library, module in (("torch", "torch"), ("scikit-learn", "sklearn")):
        if not installed(module):
            raise MissingLibrary(library, "adapting a model", "pip install 'dpm-edge[train]'")
    from dpm_edge.track_crops import cut_crops
    from dpm_edge.train.adapt.command import print_report, run
    from dpm_edge.train.adapt.rounds import Plan

    if crops is None:
        crops = cut_crops(videos, boxes, out / "crops", every=every, first_frame=first_frame, quiet=quiet)
    plan = Plan(minutes=minutes, rounds=rounds, seed=seed)
    result = run(checkpoint, crops, out, plan, check=check, labels=labels, force=force, quiet=quiet)
    if as_json:
        click.echo(json.dumps(result))
    else:
        print_report(result, out)


@click.command(
    "explain",
    short_help="Pictures of what a network looks at (needs torch).",
    context_settings={"ignore_unknown_options": True},
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="CHECKPOINT DATA [-o DIR] [OPTIONS]...")
def explain(arguments: tuple[str, ...]) -> None:
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
