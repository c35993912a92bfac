"""`dpm-edge gallery`: a gallery in a folder, or at milvus://HOST:PORT/NAME or qdrant://HOST:PORT/NAME."""

from __future__ import annotations

import difflib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli import fill, migrate
from dpm_edge.cli.match import labels, layout, open_to_read, print_matches, search_options
from dpm_edge.cli.match import search as search_gallery
from dpm_edge.cli.options import PATH, as_json, quiet

if TYPE_CHECKING:
    from dpm_edge.gallery.calibration import Calibration

PLACE = click.argument("place")


@click.group("gallery", short_help="Keep, search and forget whom one has seen.")
def command() -> None:
    """Keep embeddings in a gallery: PLACE is a folder, milvus://HOST:PORT/NAME or qdrant://HOST:PORT/NAME.

    \b
    Example:
      dpm-edge gallery create seen --model crops.safetensors
      dpm-edge gallery add seen crops.safetensors
      dpm-edge gallery search seen query.safetensors -k 5
    """


def _print(result: dict[str, Any], as_json: bool) -> None:
    """A result as JSON, or as one line for each fact."""
    if as_json:
        click.echo(json.dumps(result, indent=2))
        return
    for name, value in result.items():
        click.echo(f"{name.replace('_', ' '):<14} {value}")


@command.command("create")
@PLACE
@click.option("--model", type=PATH, required=True, help="An engine directory, or a file that `embed` wrote.")
@click.option("--no-masks", is_flag=True, help="Keep features only: half the bytes, no metric `mutual`.")
@as_json
def create(place: str, model: Path, no_masks: bool, as_json: bool) -> None:
    """A new, empty gallery for one model.

    \b
    Example:
      dpm-edge gallery create seen --model demo-out/engine
    """
    from dpm_edge.gallery import Gallery
    from dpm_edge.manifest import Manifest
    from dpm_edge.runtime import Embeddings
    from dpm_edge.runtime.site_statistics import read_statistics

    known = None
    if model.is_dir():
        manifest = Manifest.read(model)
        fingerprint, dimension = manifest.fingerprint, manifest.spec.dimension
        known, has_masks = read_statistics(manifest, model), manifest.spec.masks
    else:
        rows = Embeddings.load(model)
        fingerprint, dimension = rows.fingerprint, rows.dimension
        has_masks = rows.has_masks
    with Gallery.create(place, fingerprint, dimension, masks=has_masks and not no_masks) as gallery:
        if known is not None:
            gallery.use_statistics(known)
    _print({"place": place, "model": fingerprint[:12], "dimension": dimension}, as_json)


@command.command("add")
@PLACE
@click.argument("embeddings", type=PATH)
@click.option("--person", help="The person of all rows; else the one that each row's path names.")
@click.option("--camera", help="The camera of all rows; else the one that each row's path names.")
@click.option("--since", help="When all rows were seen: Unix seconds, or ISO 8601 with a zone.")
@layout
@as_json
@quiet
def add(
    place: str,
    embeddings: Path,
    person: str | None,
    camera: str | None,
    since: str | None,
    layout: str,
    as_json: bool,
    quiet: bool,
) -> None:
    """Add the rows of a file that `embed` wrote, or of a .parquet that `export` wrote.

    \b
    Example:
      dpm-edge gallery add seen crops.safetensors --camera gate-3
      dpm-edge gallery add seen anna.safetensors --person anna
    """
    from dpm_edge.gallery import Gallery
    from dpm_edge.images import chunks
    from dpm_edge.progress import track
    from dpm_edge.runtime import Embeddings

    with Gallery.open(place) as gallery:
        if embeddings.suffix == ".parquet":
            added = gallery.import_(embeddings)
        else:
            rows = Embeddings.load(embeddings)
            people, cameras = labels(rows, layout)
            added = len(rows)
            parts = list(chunks(len(rows), 1000))
            for part in track(parts, what="adding", total=len(parts), quiet=quiet):
                n = part.stop - part.start
                gallery.add(
                    rows.take(part),
                    people=[person] * n if person is not None else people[part],
                    cameras=[camera] * n if camera is not None else cameras[part],
                    timestamps=None if since is None else [since] * n,
                )
        _print({"added": added, "rows": len(gallery)}, as_json)


@command.command("search")
@PLACE
@click.argument("queries", type=PATH)
@search_options
@click.option("--since", help="Find only rows from then on: Unix seconds, or ISO 8601 with a zone.")
@click.option("--until", help="Find only rows before.")
@click.option("--min-visibility", type=float, help="Find only rows at least this visible.")
@as_json
def search(place: str, queries: Path, as_json: bool, **options: Any) -> None:
    """The nearest rows for each row of QUERIES, a file that `embed` wrote.

    \b
    Example:
      dpm-edge gallery search seen query.safetensors -k 5 --since 1700000000 --calibration calibration.json
    """
    from dpm_edge.runtime import Embeddings

    rows = Embeddings.load(queries)
    with open_to_read(place) as gallery:
        print_matches(rows, search_gallery(gallery, rows, **options), as_json)


@command.command("calibration")
@PLACE
@click.argument("file", type=PATH, required=False)
@as_json
def calibration(place: str, file: Path | None, as_json: bool) -> None:
    """Keep a FILE that `calibrate` wrote: every later search tells probabilities and decisions. Without FILE: none.

    \b
    Example:
      dpm-edge gallery calibration seen calibration.json
    """
    from dpm_edge.gallery import Gallery
    from dpm_edge.gallery.calibration import Calibration

    with Gallery.open(place) as gallery:
        known = Calibration.load(file) if file else None
        gallery.use_calibration(known)
        _print({"place": place, "calibration": _about(known)}, as_json)


@command.command("statistics")
@PLACE
@click.argument("file", type=PATH, required=False)
@click.option("--write", "out", type=PATH, metavar="OUT", help="Write those of the gallery's rows to OUT instead.")
@as_json
def statistics(place: str, file: Path | None, out: Path | None, as_json: bool) -> None:
    """Keep a FILE of what the features of the site's cameras have in common, beside the rows' own. Without FILE: none.

    Such a file is cameras.json of `dpm-edge adapt`, or what --write wrote for another gallery of the same model.

    \b
    Example:
      dpm-edge gallery statistics seen site/cameras.json
      dpm-edge gallery statistics seen --write cameras.json
    """
    from dpm_edge.centring import CameraStatistics
    from dpm_edge.gallery import Gallery

    if file is not None and out is not None:
        raise click.UsageError("expected FILE to keep, or --write OUT, got both")
    with open_to_read(place) if out is not None else Gallery.open(place) as gallery:
        known: CameraStatistics | None
        if out is not None:
            known = gallery.camera_statistics()
            known.save(out)
        else:
            known = CameraStatistics.load(file) if file else None
            gallery.use_statistics(known)
    _print({"place": place, "written" if out else "kept": known.counts if known else "none"}, as_json)


def _about(calibration: Calibration | None) -> str:
    """What a calibration is for, in a few words."""
    if calibration is None:
        return "none"
    by = ", by tracks" if calibration.by == "tracks" else ""
    return f"metric {calibration.metric}{', centred' if calibration.centred else ''}{by}"


@command.command("forget")
@PLACE
@click.argument("person")
@as_json
def forget(place: str, person: str, as_json: bool) -> None:
    """Remove a person's rows, and their bytes from the disk.

    \b
    Example:
      dpm-edge gallery forget seen 0002
    """
    from dpm_edge.errors import GalleryError
    from dpm_edge.gallery import Gallery
    from dpm_edge.gallery.rows import Where

    with Gallery.open(place) as gallery:
        forgotten = gallery.forget(person)
        if not forgotten:
            people = {one for rows in gallery.store.scan(Where(), vectors=False) for one in rows.people} - {""}
            close = difflib.get_close_matches(person, people, n=1)
            offer = f" Did you mean {close[0]!r}?" if close else ""
            raise GalleryError(f"expected a person of this gallery, got {person!r}; no row was removed.{offer}")
        _print({"forgotten": forgotten, "rows": len(gallery)}, as_json)


@command.command("expire")
@PLACE
@click.option("--older-than", help="Seconds, or 30d, 12h, 45min; without it, each camera's own retention acts.")
@click.option("--camera", help="Only rows of this camera.")
@click.option("--retain", help="Remember this as the retention of --camera: seconds, or 30d, 12h.")
@as_json
def expire(place: str, older_than: str | None, camera: str | None, retain: str | None, as_json: bool) -> None:
    """Remove rows that are older than they may be kept.

    \b
    Example:
      dpm-edge gallery expire seen --camera gate-3 --retain 7d
    """
    from dpm_edge.gallery import Gallery

    if retain is not None and camera is None:
        raise click.UsageError("expected --camera with --retain, got none")
    with Gallery.open(place) as gallery:
        if retain is not None:
            gallery.retain(camera, retain)
        _print({"expired": gallery.expire(older_than, camera=camera), "rows": len(gallery)}, as_json)


@command.command("stats")
@PLACE
@click.option("--drift", is_flag=True, help="Compare each camera's last tracks with its other rows, too.")
@as_json
def stats(place: str, drift: bool, as_json: bool) -> None:
    """Rows, people, cameras, and what the gallery says of itself.

    --drift tells how far the last 50 tracks of each camera are from what is known of it, and warns where that is more
    than other people explain: the camera was turned, is dirty, or sees at night (docs/site.md).

    \b
    Example:
      dpm-edge gallery stats seen --json
      dpm-edge gallery stats seen --drift
    """
    from dpm_edge.gallery.answers import gallery_json
    from dpm_edge.progress import say

    with open_to_read(place) as gallery:
        result = gallery_json(gallery)
        drifts = gallery.camera_drift() if drift else {}
    if drift:
        result["drift"] = {camera: round(one.drift, 3) for camera, one in drifts.items()}
    _print(result, as_json)
    for camera, one in drifts.items():
        if one.warns:
            say(one.sentence(camera))


@command.command("check-recall")
@PLACE
@click.option("--target", type=click.FloatRange(0, 1), default=0.99, show_default=True)
@click.option("-k", "--top", type=click.IntRange(1), default=10, show_default=True)
@click.option("--sample", type=click.IntRange(1), default=50, show_default=True, help="Own rows to ask with.")
@click.option("--keep", is_flag=True, help="Use what was found in every later search.")
@as_json
def check_recall(place: str, target: float, top: int, sample: int, keep: bool, as_json: bool) -> None:
    """How many candidates reach a recall against brute force, on the gallery's own rows.

    \b
    Example:
      dpm-edge gallery check-recall seen --target 0.99 --keep
    """
    from dpm_edge.gallery import Gallery
    from dpm_edge.gallery.search.recall import check_recall as check

    with Gallery.open(place) as gallery:
        result = check(gallery, k=top, target=target, sample=sample, keep=keep)
    if not as_json:
        for row in result.pop("measured"):
            click.echo(f"{row['candidates']:>6} candidates  recall {row['recall']:.4f}  {row['ms']:.1f} ms")
    _print(result, as_json)


@command.command("snapshot")
@PLACE
@click.argument("folder", type=PATH)
@as_json
def snapshot(place: str, folder: Path, as_json: bool) -> None:
    """Copy a gallery to a new folder, which opens as a gallery; a .parquet name exports any gallery to one file.

    \b
    Example:
      dpm-edge gallery snapshot seen seen-monday
    """
    with open_to_read(place) as gallery:
        if folder.suffix == ".parquet":
            gallery.export(folder)
        else:
            gallery.snapshot(folder)
        _print({"snapshot": str(folder), "rows": len(gallery)}, as_json)


command.add_command(fill.command)
command.add_command(migrate.command)
