"""A search, checked once: what every store is given.

Q queries · k places · K candidates · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import GalleryError, SpecError
from dpm_edge.gallery.labels import label_column, make_filter
from dpm_edge.gallery.rows import Where
from dpm_edge.metrics import chosen_metric, normalise
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.frames import FrameQueries, Nearest, SearchBehind

CANDIDATES_PER_PLACE, LEAST_CANDIDATES = 10, 100
"""K = max(k · 10, 100) re-ranked candidates, unless `check_recall` has chosen another factor."""
BY = ("row", "person")


@dataclass(frozen=True, kw_only=True, eq=False)
class Query:
    """Q queries and the options of their search; `Gallery.search` says what each option does."""

    features: NDArray[np.float32]
    """(Q, D), L2-normalised."""
    masks: NDArray[np.float32]
    """(Q, D)."""
    k: int
    metric: str
    where: Where
    own_cameras: list[str] | None
    """(Q,) a query finds no row of its own camera, "" has none; None: it may."""
    candidates: int
    """K of the stores that re-rank; at least k."""
    expand: int = 0
    neighbours: int = 0
    by_person: bool = False
    cap: int = 8
    centre: list[str] | None = None
    """(Q,) cameras of queries that are to be centred, as `in_centred_space` does; None: they are not."""
    automatic: bool = False
    """Whether they are centred only where the rows are enough (`space.enough`), and never on a GPU."""
    centring: CameraStatistics | None = None
    """What features of rows are centred by, as `features` are already; None: rows as they are."""
    row_cameras: tuple[str, ...] = ()
    """Every camera that rows have, where they are centred."""
    nearest: Nearest | None = None
    """Candidates that an engine has found on the GPU of the rows, as a store of them asked it to."""

    @property
    def reranked(self) -> bool:
        """Whether the search has more steps than the store's own."""
        return bool(self.expand or self.neighbours or self.by_person)


def make_query(
    queries: Embeddings | FrameQueries,
    meta: Mapping[str, Any],
    *,
    k: int,
    metric: str | None,
    camera: Any,
    since: Any,
    until: Any,
    min_visibility: float | None,
    exclude_same_camera: bool,
    query_cameras: Iterable[Any] | None,
    candidates: int | None,
    expand: int,
    neighbours: int,
    by: str,
    cap: int,
    centre: bool | None,
) -> Query:
    """The options of `Gallery.search`, for a gallery that describes itself by `meta`.

    Features and masks of FrameQueries are not there yet: `with_vectors`.

    Raises:
        GalleryError: one of them cannot be.
    """
    try:
        metric = chosen_metric(metric, queries.has_masks)
    except SpecError as error:
        raise GalleryError(str(error)) from error
    if min_visibility is not None and not queries.has_masks:
        raise GalleryError(
            "expected a model with a visibility for min_visibility, got another project's network, which says nothing "
            "about it. Leave min_visibility out"
        )
    if metric == "mutual" and not meta["masks"]:
        raise GalleryError(
            "expected a gallery with masks for metric 'mutual', got one that was created without (masks=False). "
            "Search with metric='masked', or create the gallery with masks"
        )
    if k < 1:
        raise GalleryError(f"expected k of 1 or more, got {k}")
    if (exclude_same_camera or centre) and query_cameras is None:
        raise GalleryError(
            f"expected {len(queries)} query_cameras for {'exclude_same_camera' if exclude_same_camera else 'centre'}, "
            f'one a query, got none. Pass query_cameras=[…]; "" for one that nobody knows'
        )
    cameras = None if query_cameras is None else label_column(query_cameras, len(queries), "query_cameras")
    if by not in BY or (by == "person" and neighbours):
        raise GalleryError(
            f"expected by='row', or by='person' without neighbours, got by={by!r} with neighbours={neighbours}"
        )
    factor = meta.get("candidates_per_place", CANDIDATES_PER_PLACE)
    query = Query(
        features=np.zeros((0, queries.dimension), np.float32),
        masks=np.zeros((0, queries.dimension), np.float32),
        k=k,
        metric=metric,
        where=make_filter(camera=camera, since=since, until=until, min_visibility=min_visibility),
        own_cameras=cameras if exclude_same_camera else None,
        centre=None if centre is False else cameras,
        automatic=centre is None,
        candidates=max(candidates or max(factor * k, LEAST_CANDIDATES), k),
        expand=expand,
        neighbours=neighbours,
        by_person=by == "person",
        cap=cap,
    )
    return query if isinstance(queries, FrameQueries) else with_vectors(query, queries)


def embedded(queries: FrameQueries, query: Query, search: SearchBehind | None = None) -> tuple[Embeddings, Query]:
    """Let an engine embed its frame now, with a search of the store's behind its network."""
    embeddings = queries.embed(search)
    return embeddings, with_vectors(query, embeddings, None if search is None else search.nearest)


def in_centred_space(
    query: Query, embeddings: Embeddings, statistics: CameraStatistics, row_cameras: Iterable[str]
) -> Query:
    """The query of these embeddings among rows that are centred by the statistics, each by its own camera's."""
    assert query.centre is not None, "cameras of the queries were given"
    features = statistics.centre(embeddings.features, query.centre)
    return replace(query, features=features, centring=statistics, row_cameras=tuple(sorted(row_cameras)))


def with_vectors(query: Query, embeddings: Embeddings, nearest: Nearest | None = None) -> Query:
    """The query of these embeddings, once they are there; nearest: what was found for them on the GPU."""
    features = normalise(embeddings.features.astype(np.float64)).astype(np.float32)
    return replace(query, features=features, masks=embeddings.masks, nearest=nearest)
