"""What `match` and `gallery search` share: the options of a search, the labels of rows, and how matches are printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.options import PATH, metric

if TYPE_CHECKING:
    from dpm_edge.gallery import Gallery, Matches
    from dpm_edge.runtime import Embeddings

PRIOR = click.FloatRange(0, 1, min_open=True, max_open=True)
OPTIONS = (
    click.option("-k", "--top", type=click.IntRange(1), default=5, show_default=True, help="Places for each query."),
    metric,
    click.option("--camera", multiple=True, help="Find only rows of this camera; may be given again."),
    click.option("--exclude-same-camera", is_flag=True, help="Never find a row of the query's own camera."),
    click.option("--by", type=click.Choice(["row", "person"]), default="row", help="Places for rows, or for people."),
    click.option(
        "--expand", type=click.IntRange(0), default=0, help="Move queries toward their first N, search again."
    ),
    click.option("--neighbours", type=click.IntRange(0), default=0, help="Re-rank by neighbourhoods of N rows."),
    click.option("--calibration", type=PATH, help="A file that `calibrate` wrote: adds a probability and a decision."),
    click.option("--prior", type=PRIOR, default=0.5, help="Share of such pairs that is one person beforehand: 0.5."),
)


def search_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of a search; `search` takes them."""
    for option in reversed(OPTIONS):
        command = option(command)
    return command


def labels(embeddings: Embeddings) -> tuple[list[str], list[str]]:
    """Person and camera of each row, from its source's name; the source itself and "" where the name says nothing."""
    from dpm_edge.market import NAME

    sources = embeddings.sources or [f"row {row}" for row in embeddings.rows]
    found = [NAME.match(Path(source).name) for source in sources]
    people = [match["person"] if match else source for match, source in zip(found, sources)]
    return people, [match["camera"] if match else "" for match in found]


def search(
    gallery: Gallery,
    asked: Embeddings,
    *,
    top: int,
    camera: tuple[str, ...],
    exclude_same_camera: bool,
    calibration: Path | None,
    **options: Any,
) -> Matches:
    """Search as the options say; queries' cameras come from Market-1501's file names."""
    from dpm_edge.gallery.calibration import Calibration

    return gallery.search(
        asked,
        top,
        camera=list(camera) or None,
        exclude_same_camera=exclude_same_camera,
        query_cameras=labels(asked)[1] if exclude_same_camera else None,
        calibration=Calibration.load(calibration) if calibration else None,
        **options,
    )


def print_matches(asked: Embeddings, matches: Matches, as_json: bool) -> None:
    """Print each query with its matches on stdout."""
    found = [_query(asked, matches, i) for i in range(len(asked))]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    for one in found:
        click.echo(f"{one['query']}  visibility {one['visibility']:.2f}")
        for place, match in enumerate(one["matches"], start=1):
            known = f"  {match['probability']:.3f} {match['decision']}" if "decision" in match else ""
            where = f"{match['camera']}  {match['source']}" if match["camera"] else match["source"]
            click.echo(f"  {place:>2}  {match['similarity']:.4f}  {match['person']}  {where}{known}")


def _query(asked: Embeddings, matches: Matches, i: int) -> dict[str, Any]:
    """JSON types."""
    rows = []
    for j in range(matches.rows.shape[1]):
        if matches.rows[i, j] < 0:
            continue
        when = float(matches.timestamps[i, j])
        row: dict[str, Any] = {
            "row": int(matches.rows[i, j]),
            "similarity": round(float(matches.similarity[i, j]), 6),
            "score": round(float(matches.score[i, j]), 6),
            "person": str(matches.people[i, j]),
            "camera": str(matches.cameras[i, j]),
            "timestamp": None if when != when else when,
            "source": str(matches.sources[i, j]),
            "payload": matches.payloads[i, j],
        }
        if matches.decision[i, j]:
            row["probability"] = round(float(matches.probability[i, j]), 4)
            row["decision"] = str(matches.decision[i, j])
        rows.append(row)
    name = asked.sources[i] if asked.sources else f"row {asked.rows[i]}"
    return {"query": name, "visibility": round(float(asked.visibility[i]), 4), "matches": rows}
