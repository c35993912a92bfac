"""Pictures where a gallery wants embeddings: its engine embeds them, every one or none.

N pictures
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.stores.store import check_model
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.folder import embed_files
from dpm_edge.runtime.frames import FrameQueries

if TYPE_CHECKING:
    from dpm_edge.runtime.engine import Engine

Pictures = Sequence[Any]
"""N picture files (str or Path), or N pictures (H, W, 3) uint8 BGR as `Engine.embed` takes them."""


def as_queries(
    given: Embeddings | Pictures | FrameQueries, engine: Engine | None, meta: dict[str, Any]
) -> Embeddings | FrameQueries:
    """As `as_embeddings`; a frame that its engine will embed on the way stays one.

    Raises:
        GalleryError, ImageError: as `as_embeddings`.
    """
    if isinstance(given, FrameQueries):
        check_model(meta, given.fingerprint, given.dimension)
        return given
    return as_embeddings(given, engine, meta)


def as_embeddings(given: Embeddings | Pictures, engine: Engine | None, meta: dict[str, Any]) -> Embeddings:
    """Embeddings as they are given; pictures embedded, a row for each in their order.

    Raises:
        GalleryError: they are of another model than the gallery that describes itself by `meta`, pictures were given
            and the gallery knows no engine, or one of them cannot be embedded.
        ImageError: what was given is no sequence of pictures.
    """
    if isinstance(given, Embeddings):
        check_model(meta, given.fingerprint, given.dimension)
        return given
    if engine is None:
        raise GalleryError(
            f"expected Embeddings, got {type(given).__name__}. Pass engine.embed(pictures), or let the gallery embed: "
            f"Gallery.for_engine(engine, place)"
        )
    files = [given] if isinstance(given, str | Path) else given
    if len(files) and all(isinstance(one, str | Path) for one in files):
        made = embed_files(engine, [Path(one) for one in files], quiet=True)
    else:
        made = engine.embed(given)
    if made.skipped:
        row, reason = made.skipped[0]
        more = f", and {len(made.skipped) - 1} more" if len(made.skipped) > 1 else ""
        raise GalleryError(
            f"expected pictures that can be embedded, got number {row}: {reason}{more}. Leave them out, or use "
            f"engine.embed, which embeds the others"
        )
    return made
