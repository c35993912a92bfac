"""`dpm-edge match`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dpm_edge.cli.matches import labels, print_matches, search, search_options
from dpm_edge.cli.options import PATH, as_json

if TYPE_CHECKING:
    from dpm_edge.gallery import Gallery


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
    print_matches(rows, search(_open(gallery, options["layout"]), rows, **options), as_json)


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
