"""`dpm-edge match`, and what `match`, `who` and `gallery search` share: options, labels, the printed matches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.options import PATH, as_json

if TYPE_CHECKING:
    from dpm_edge.gallery import Gallery
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from dpm_edge.cli.options import Decorator, metric

if TYPE_CHECKING:
    from dpm_edge.gallery import Gallery, Matches
    from dpm_edge.runtime import Embeddings


UNKNOWN = "unknown"
"""Printed for nobody known."""
layout: Decorator = click.option(
    "--layout",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="How paths name people and cameras: cameras (PERSON/CAMERA/picture), market, …, none; auto looks at them.",
)
"""As for labelled folders (`cli.options.layout`), and pictures may have no labels."""
PRIOR = click.FloatRange(0, 1, min_open=True, max_open=True)
OPTIONS = (
    click.option("-k", "--top", type=click.IntRange(1), default=5, show_default=True, help="Places for each query."),
    metric,
    click.option("--camera", multiple=True, help="Find only rows of this camera; may be given again."),
    click.option("--exclude-same-camera", is_flag=True, help="Never find a row of the query's own camera."),
    click.option(
        "--centre/--no-centre",
        default=None,
        help="Take off what each camera's rows have in common (docs/gallery.md), or do not; else where rows suffice.",
    ),
    click.option("--by", type=click.Choice(["row", "person"]), default="row", help="Places for rows, or for people."),
    click.option(
        "--expand", type=click.IntRange(0), default=0, help="Move queries toward their first N, search again."
    ),
    click.option("--neighbours", type=click.IntRange(0), default=0, help="Re-rank by neighbourhoods of N rows."),
    click.option("--calibration", type=PATH, help="A file that `calibrate` wrote: adds a probability and a decision."),
    click.option("--prior", type=PRIOR, default=0.5, help="Share of such pairs that is one person beforehand: 0.5."),
    layout,
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a search; `search` takes them."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def labels(embeddings: Embeddings, layout: str = "auto") -> tuple[list[str], list[str]]:
    """Return person and camera of each row, from its source's path; "" where that says nothing.

    Raises:
        DataError: unknown layout, or a path that does not follow the layout that was named.
    """
    from dpm_edge.labels import labels_of

    if not embeddings.sources:
        return [""] * len(embeddings), [""] * len(embeddings)
    people, cameras = labels_of(embeddings.sources, layout)
    return [one or "" for one in people], [one or "" for one in cameras]


def open_to_read(place: str) -> Gallery:
    """A gallery in its place; where another process holds the folder, a copy of this moment."""
    from dpm_edge.errors import GalleryInUse
    from dpm_edge.gallery import Gallery

    try:
        return Gallery.open(place)
    except GalleryInUse:
        return Gallery.open(place, read_only=True)


def search(
    gallery: Gallery,
    queries: Embeddings,
    *,
    top: int,
    camera: tuple[str, ...],
    exclude_same_camera: bool,
    centre: bool | None,
    calibration: Path | None,
    layout: str = "auto",
    **options: Any,
) -> Matches:
    """Search as the options say; queries' cameras come from their paths."""
    from dpm_edge.gallery.answers import cameras_to_search_with
    from dpm_edge.gallery.calibration import Calibration

    wanted = exclude_same_camera or centre is not False
    cameras = labels(queries, layout)[1] if wanted else []
    known = Calibration.load(calibration) if calibration else None
    return gallery.search(
        queries,
        top,
        camera=list(camera) or None,
        exclude_same_camera=exclude_same_camera,
        query_cameras=cameras_to_search_with(cameras, known, needed=bool(exclude_same_camera or centre)),
        centre=centre,
        calibration=known,
        **options,
    )


def print_matches(queries: Embeddings, matches: Matches, as_json: bool) -> None:
    """Print each query with its matches on stdout; on stderr what needs an explanation."""
    from dpm_edge.gallery.answers import query_json

    results = [query_json(queries, matches, i) for i in range(len(queries))]
    if as_json:
        click.echo(json.dumps(results, indent=2))
        return
    for one in results:
        click.echo(one["query"] + (f"  visibility {one['visibility']:.2f}" if "visibility" in one else ""))
        for place, match in enumerate(one["matches"], start=1):
            known = f"  {match['probability']:.3f} {match['decision']}" if "decision" in match else ""
            where = f"{match['camera']}  {match['source']}" if match["camera"] else match["source"]
            click.echo(f"  {place:>2}  {match['similarity']:.4f}  {match['person'] or UNKNOWN}  {where}{known}")
        if not one["matches"]:
            click.echo("  nothing found: the gallery has no row that the filters let through")
    explain_decisions([match for one in results for match in one["matches"]])


def explain_decisions(matches: Sequence[dict[str, Any]]) -> None:
    """Say on stderr why a probable match may be "different", where one is."""
    if any(one.get("decision") == "different" and one["probability"] >= 0.5 for one in matches):
        click.echo(
            "a match may be probable and yet 'different': 'same' takes a similarity that strangers reach only at the "
            "calibration's false-match rate, however likely this one pair is (docs/gallery.md)",
            err=True,
        )


@click.command("match", short_help="The nearest people of a gallery for each query.")
@click.argument("queries", type=PATH)
@click.argument("gallery", type=PATH)
@search_options
@as_json
def command(queries: Path, gallery: Path, as_json: bool, **options: Any) -> None:
    """Match the rows of QUERIES (a file that `embed` wrote) against GALLERY (such a file, or a saved gallery).

    Paths like PERSON/CAMERA/picture.jpg and names like 0002_c1s1_000451_03.jpg bring their person and camera.

    \b
    Example:
      dpm-edge match query.safetensors gallery.safetensors -k 5 --metric masked
    """
    from dpm_edge.runtime import Embeddings

    rows = Embeddings.load(queries)
    with _open(gallery, options["layout"]) as opened:
        print_matches(rows, search(opened, rows, **options), as_json)


def _open(path: Path, layout: str) -> Gallery:
    """A saved gallery, or one made of an embeddings file."""
    from dpm_edge.gallery import Gallery
    from dpm_edge.runtime import Embeddings
    from dpm_edge.tensorfile import kind_of

    if kind_of(path) != "embeddings":
        return Gallery.open(path)
    rows = Embeddings.load(path)
    gallery = Gallery(rows.fingerprint, rows.dimension)
    people, cameras = labels(rows, layout)
    gallery.add(rows, people=people, cameras=cameras)
    return gallery
