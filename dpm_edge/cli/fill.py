"""`dpm-edge gallery fill`."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.match import layout
from dpm_edge.cli.options import PATH, as_json, engine_options, quiet

if TYPE_CHECKING:
    from dpm_edge.gallery.jobs.archive import Archive
    from dpm_edge.labels import LabelledPictures
    from dpm_edge.runtime import Embeddings

PATIENCE = 1800.0
"""Seconds that part 1 waits for a new shard of the other parts before it gives up."""


@click.command("fill")
@click.argument("place")
@click.argument("engine", type=PATH)
@click.argument("folders", type=PATH, nargs=-1, required=True)
@click.option("--archive", type=PATH, required=True, help="Folder for the shards, the same on every machine.")
@click.option("--workers", type=click.IntRange(1), default=1, show_default=True, help="Processes on this machine.")
@click.option("--part", help="I/N: this is machine I of N. Under torchrun, its RANK and WORLD_SIZE.")
@click.option("--shard-size", type=click.IntRange(1), default=1000, show_default=True, help="Pictures in a shard.")
@click.option("--camera", help="The camera of all rows; else the one that each picture's path names.")
@layout
@engine_options
@as_json
@quiet
def command(
    place: str,
    engine: Path,
    folders: tuple[Path, ...],
    archive: Path,
    workers: int,
    part: str | None,
    shard_size: int,
    camera: str | None,
    layout: str,
    device: str,
    threads: int | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Embed every picture below FOLDERS with ENGINE, by many processes, and add the rows to the gallery at PLACE.

    The same command again goes on where it was cut off and takes in the pictures that came since; no picture is added
    twice, whatever the archive folder. PERSON/CAMERA/picture folders keep person and camera (--layout). On many
    machines that share the pictures and the archive folder, run it on each with --part, or under torchrun; part 1 waits
    for the others and adds the rows. The gallery is created where there is none.

    \b
    Example:
      dpm-edge gallery fill seen demo-out/engine /archive --archive /archive-shards --workers 2
      torchrun --nproc-per-node 2 --no-python dpm-edge gallery fill seen demo-out/engine /archive --archive shards
    """
    import json

    from dpm_edge.errors import GalleryError
    from dpm_edge.gallery import Gallery
    from dpm_edge.gallery.jobs.archive import add_archive, embed_part, open_archive
    from dpm_edge.gallery.stores.address import is_there
    from dpm_edge.labels import read_people
    from dpm_edge.manifest import Manifest
    from dpm_edge.progress import say
    from dpm_edge.runtime import Engine
    from dpm_edge.runtime.site_statistics import read_statistics

    manifest = Manifest.read(engine)
    mine = _part(part)
    labelled = [read_people(folder, layout) for folder in folders]
    for one in labelled:
        if not quiet:
            say(one.describe())
    plan = open_archive(archive, [path for one in labelled for path in one.paths], manifest.fingerprint, shard_size)
    before = len(plan.missing())
    if workers == 1:
        if plan.missing(mine):
            with Engine.load(engine, device=device, threads=threads) as opened:
                embed_part(plan, opened, mine, quiet=quiet)
    else:
        _by_workers(plan, engine, device, threads or 1, mine, workers, quiet)
    if mine[0] == 0:
        _wait(plan, quiet)
        if not is_there(place):
            masks = manifest.spec.masks
            with Gallery.create(place, manifest.fingerprint, manifest.spec.dimension, masks=masks) as gallery:
                if (known := read_statistics(manifest, engine)) is not None:
                    gallery.use_statistics(known)
        with Gallery.open(place) as gallery:
            added, skipped = add_archive(plan, gallery, _by_source(labelled), below=folders, camera=camera, quiet=quiet)
            rows = len(gallery)
    else:
        added, skipped, rows = 0, [], None
    unfinished = len(plan.missing())
    if unfinished and mine[0] == 0:
        raise GalleryError(f"expected every shard in {archive}, got {unfinished} missing ones. Run the command again")
    result: dict[str, Any] = {
        "pictures": len(plan.pictures),
        "shards": len(plan.shards()),
        "embedded": before - unfinished,
    }
    result |= {"missing": unfinished, "added": added, "rows": rows}
    result["skipped"] = [{"picture": picture, "reason": reason} for picture, reason in skipped]
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for picture, reason in skipped:
        say(f"skipped {picture}: {reason}")
    done = f"{added} rows added, {rows} there" if rows is not None else f"{unfinished} shards left to the others"
    click.echo(f"{len(plan.pictures)} pictures in {len(plan.shards())} shards: {done}")


def _by_source(labelled: Sequence[LabelledPictures]) -> Callable[[Embeddings], tuple[list[str], list[str]]]:
    """A function from rows to people and cameras; "" for unknown, and for a picture that is not there any more."""
    from dpm_edge.images import path_text

    names = {
        path_text(Path(os.path.abspath(path))): (person or "", camera or "")
        for one in labelled
        for path, person, camera in zip(one.paths, one.people, one.cameras)
    }

    def labels(rows: Embeddings) -> tuple[list[str], list[str]]:
        found = [names.get(source, ("", "")) for source in rows.sources]
        return [person for person, _ in found], [camera for _, camera in found]

    return labels


def _part(given: str | None) -> tuple[int, int]:
    """(i, n) with i from 0, of --part I/N or of torchrun's environment; else all of it."""
    if given is None:
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            return 0, 1
        return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        number, count = (int(one) for one in given.split("/"))
    except ValueError:
        number, count = 0, 0
    if not 1 <= number <= count:
        raise click.UsageError(f"expected --part I/N with I from 1 to N, such as 1/4, got {given!r}")
    return number - 1, count


def _work(plan: Archive, engine: Path, device: str, threads: int, part: tuple[int, int]) -> None:
    """What a worker process does."""
    from dpm_edge.gallery.jobs.archive import embed_part
    from dpm_edge.runtime import Engine

    with Engine.load(engine, device=device, threads=threads) as opened:
        embed_part(plan, opened, part, quiet=True)


def _by_workers(
    plan: Archive, engine: Path, device: str, threads: int, part: tuple[int, int], workers: int, quiet: bool
) -> None:
    """Processes until every shard of the part is there; what a killed one did not finish is done by the next round.

    Raises:
        GalleryError: the workers ended without finishing one more shard.
    """
    from dpm_edge.errors import GalleryError
    from dpm_edge.progress import say, track

    context = multiprocessing.get_context("spawn")
    while unfinished := plan.missing(part):
        parts = [(part[0] + part[1] * i, part[1] * workers) for i in range(workers)]
        at_work = [context.Process(target=_work, args=(plan, engine, device, threads, one)) for one in parts]
        for one in at_work:
            one.start()
        try:
            for _ in track(_finished(plan, unfinished, at_work), what="shards", total=len(unfinished), quiet=quiet):
                pass
        finally:
            for one in at_work:
                one.terminate() if one.is_alive() else None
                one.join()
        dead = [f"{one.pid} ({one.exitcode})" for one in at_work if one.exitcode]
        if dead and len(plan.missing(part)) == len(unfinished):
            raise GalleryError(
                f"expected workers that finish shards, got {', '.join(dead)}, which "
                f"ended without one. Their messages are above"
            )
        if dead:
            say(f"workers {', '.join(dead)} ended early; {len(plan.missing(part))} shards are left")


def _finished(plan: Archive, unfinished: list[int], at_work: list[Any]) -> Iterator[int]:
    """Each shard when its file appears, until no worker is alive."""
    waiting = set(unfinished)
    alive = True
    while alive:
        alive = any(one.is_alive() for one in at_work)
        for number in sorted(number for number in waiting if plan.file(number).is_file()):
            waiting.remove(number)
            yield number
        time.sleep(0.1 if alive else 0)


def _wait(plan: Archive, quiet: bool) -> None:
    """Until the other parts' shards are there too.

    Raises:
        GalleryError: none came for `PATIENCE` seconds.
    """
    from dpm_edge.errors import GalleryError
    from dpm_edge.progress import say

    unfinished, since = plan.missing(), time.monotonic()
    if unfinished and not quiet:
        say(f"waiting for {len(unfinished)} shards of other parts")
    while unfinished:
        time.sleep(0.2)
        now = plan.missing()
        if len(now) < len(unfinished):
            since = time.monotonic()
        unfinished = now
        if time.monotonic() - since > PATIENCE:
            raise GalleryError(
                f"expected {len(unfinished)} more shards of other parts, got none for {PATIENCE:.0f} s. Start "
                f"those parts again"
            )
