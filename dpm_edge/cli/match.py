"""`dpm-edge match`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from dpm_edge.cli.options import PATH, as_json, metric

if TYPE_CHECKING:
    from dpm_edge.gallery import Gallery, Matches
    from dpm_edge.runtime import Embeddings


@click.command("match", short_help="The nearest people of a gallery for each query.")
@click.argument("queries", type=PATH)
@click.argument("gallery", type=PATH)
@click.option("-k", "--top", type=click.IntRange(1), default=5, show_default=True, help="Places for each query.")
@metric
@click.option("--camera", help="Find only rows of this camera.")
@click.option("--exclude-same-camera", is_flag=True, help="Never find a row of the query's own camera.")
@as_json
def command(
    queries: Path, gallery: Path, top: int, metric: str, camera: str | None, exclude_same_camera: bool, as_json: bool
) -> None:
    """Match the rows of QUERIES (a file that `embed` wrote) against GALLERY (such a file, or a saved gallery).

    Files named like 0002_c1s1_000451_03.jpg bring their person and camera; other rows are named after their source.

    \b
    Example:
      dpm-edge match query.safetensors gallery.safetensors -k 5 --metric masked
    """
    import json

    from dpm_edge.runtime import Embeddings

    asked = Embeddings.load(queries)
    held = _open(gallery)
    names, cameras = labels(asked)
    matches = held.search(
        asked,
        top,
        metric=metric,
        camera=camera,
        exclude_same_camera=exclude_same_camera,
        query_cameras=cameras if exclude_same_camera else None,
    )
    rows = _rows(asked, names, matches)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        click.echo(f"{row['query']}  visibility {row['visibility']:.2f}")
        for place, found in enumerate(row["matches"], start=1):
            click.echo(f"  {place:>2}  {found['similarity']:.4f}  {found['person']}  {found['source']}")


def labels(embeddings: Embeddings) -> tuple[list[str], list[str]]:
    """Person and camera of each row, from its source's name; the source itself and "" where the name says nothing."""
    from dpm_edge.market import NAME

    sources = embeddings.sources or [f"row {row}" for row in embeddings.rows]
    found = [NAME.match(Path(source).name) for source in sources]
    people = [match["person"] if match else source for match, source in zip(found, sources)]
    return people, [match["camera"] if match else "" for match in found]


def _open(path: Path) -> Gallery:
    """A saved gallery, or one made of an embeddings file."""
    from dpm_edge.gallery import Gallery
    from dpm_edge.runtime import Embeddings
    from dpm_edge.tensorfile import kind_of

    if kind_of(path) != "embeddings":
        return Gallery.open(path)
    rows = Embeddings.load(path)
    gallery = Gallery(rows.fingerprint, rows.dimension)
    people, cameras = labels(rows)
    gallery.add(rows, people=people, cameras=cameras)
    return gallery


def _rows(asked: Embeddings, names: list[str], matches: Matches) -> list[dict]:
    """JSON types: each query with its matches."""
    return [
        {
            "query": asked.sources[i] if asked.sources else names[i],
            "visibility": round(float(asked.visibility[i]), 4),
            "matches": [
                {
                    "row": int(row),
                    "similarity": round(float(matches.similarity[i, place]), 6),
                    "person": str(matches.people[i, place]),
                    "camera": str(matches.cameras[i, place]),
                    "source": str(matches.sources[i, place]),
                }
                for place, row in enumerate(matches.rows[i])
                if row >= 0
            ],
        }
        for i in range(len(asked))
    ]
