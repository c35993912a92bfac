"""`dpm-edge gallery migrate`."""

from __future__ import annotations

from pathlib import Path

import click

from dpm_edge.cli.options import PATH, as_json, engine_options, quiet


@click.command("migrate")
@click.argument("place")
@click.argument("engine", type=PATH)
@click.option("--to", help="Where the new gallery is or will be; without it, the gallery is moved in its place.")
@click.option("--pictures", type=PATH, help="Folder that the rows' sources are below, where they are no whole paths.")
@click.option(
    "--lost",
    type=click.Choice(["keep", "drop"]),
    default="keep",
    show_default=True,
    help="Rows whose picture is gone: keep them in a gallery of the old model beside this one, or drop them.",
)
@engine_options
@as_json
@quiet
def command(
    place: str,
    engine: Path,
    to: str | None,
    pictures: Path | None,
    lost: str,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Move the gallery at PLACE to the model of ENGINE: the picture that each row names is embedded again.

    Until all is done PLACE is the old gallery; the same command goes on where it was cut off. With --to, PLACE is only
    read, and the same command again takes over what has changed there since.

    \b
    Example:
      dpm-edge gallery migrate seen new-engine --pictures /archive
      dpm-edge gallery migrate milvus://db:19530/seen new-engine --to milvus://db:19530/seen-2
    """
    import json
    from dataclasses import asdict

    from dpm_edge.gallery.jobs.migrate import migrate
    from dpm_edge.progress import say
    from dpm_edge.runtime import Engine

    with Engine.load(engine, device=device, threads=threads) as opened:
        done = migrate(place, opened, to=to, pictures=pictures, keep_lost=lost == "keep", quiet=quiet)
        model = opened.fingerprint
    if as_json:
        kept_back = None if done.kept_back is None else str(done.kept_back)
        result = {"place": to or place, "model": model, **asdict(done), "kept_back": kept_back}
        click.echo(json.dumps(result, indent=2))
        return
    for one in done.lost:
        say(f"lost {one.id}  {one.source}: {one.reason}")
    click.echo(f"{to or place}: {done.rows} rows of model {model[:12]}, {done.embedded} embedded now")
    if done.lost:
        where = f"kept back in {done.kept_back}" if done.kept_back else f"in {place} only" if to else "dropped"
        click.echo(f"{len(done.lost)} rows without a picture: {where}")
