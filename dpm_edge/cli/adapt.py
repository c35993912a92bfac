"""`dpm-edge adapt`: a checkpoint learns a site's cameras from crops without labels."""

from __future__ import annotations

from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json, quiet


@click.command("adapt", short_help="Adapt a checkpoint to your cameras, without labels (needs torch).")
@click.argument("checkpoint", type=PATH)
@click.option("--crops", type=PATH, required=True, metavar="DIR", help="CAMERA/*.jpg, or CAMERA/TRACK/*.jpg.")
@click.option("-o", "--out", type=PATH, required=True, metavar="DIR", help="Where the adapted checkpoint goes.")
@click.option("--minutes", type=float, default=60.0, show_default=True, help="Time for the rounds.")
@click.option("--rounds", type=int, default=12, show_default=True, help="Rounds at most.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--force", is_flag=True, help="Write the model even where it is worse on held-out crops.")
@as_json
@quiet
def command(
    checkpoint: Path,
    crops: Path,
    out: Path,
    minutes: float,
    rounds: int,
    seed: int,
    force: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Adapt CHECKPOINT to the cameras that the crops in DIR are from; nothing is labelled.

    Rounds of grouping crops that look like one person, centred per camera, and of learning those groups. Crops that
    were held out judge: a model that is worse on them is not written. The same command again goes on where it was
    stopped. Then `dpm-edge build OUT/adapted.safetensors` makes the engine.

    \b
    Example:
      dpm-edge adapt dpm-t --crops site -o runs/site
    """
    import json

    from dpm_edge.env import installed
    from dpm_edge.errors import MissingLibrary

    for library, module in (("torch", "torch"), ("scikit-learn", "sklearn")):
        if not installed(module):
            raise MissingLibrary(library, "adapting a model", "pip install 'dpm-edge[train]'")
    from dpm_edge.train.adapt.command import print_report, run
    from dpm_edge.train.adapt.rounds import Plan

    result = run(checkpoint, crops, out, Plan(minutes=minutes, rounds=rounds, seed=seed), force=force, quiet=quiet)
    if as_json:
        click.echo(json.dumps(result))
    else:
        print_report(result, out)
