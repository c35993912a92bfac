"""How many re-ranked candidates a gallery needs: recall against brute force, on the gallery's own rows.

Q queries · k places · K candidates
"""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.gallery import Gallery
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.search import exact
from dpm_edge.runtime.embeddings import Embeddings

FACTORS = (1, 2, 5, 10, 20, 50, 100)
"""K as multiples of k that are tried, rising."""


def check_recall(
    gallery: Gallery, *, queries: Embeddings | None = None, k: int = 10, target: float = 0.99, sample: int = 50,
    keep: bool = False,
) -> dict[str, Any]:  # fmt: skip
    """Recall@k of candidates and re-ranking under the masked metric, for rising K, until the target is reached.

    Args:
        gallery: with masks, unless queries are given.
        queries: Q rows to ask with; `sample` of the gallery's own rows without, which then do not count as found.
        k: places.
        target: the recall to reach, in 0..1.
        sample: own rows to ask with.
        keep: use the least factor that reaches the target in every later search of this gallery.

    Returns:
        rows, k, target, the measured list (candidates, recall, ms per query), and candidates: the least K that reaches
        the target, None where none of FACTORS does.

    Raises:
        GalleryError: the gallery is empty, or keeps no masks and no queries were given.
    """
    own = queries is None
    queries, own_ids = (queries, None) if queries is not None else _own_rows(gallery, sample)
    truth = brute_force(gallery, queries, k + own)
    measured: list[dict[str, float]] = []
    chosen = None
    for factor in FACTORS:
        start = time.perf_counter()
        ids = gallery.search(queries, k + own, candidates=factor * k + own).rows
        spent = time.perf_counter() - start
        recall = float(
            np.mean(
                [
                    _share(got, true, None if own_ids is None else own_ids[i])
                    for i, (got, true) in enumerate(zip(ids, truth))
                ]
            )
        )
        measured.append(
            {"candidates": factor * k, "recall": round(recall, 5), "ms": round(1e3 * spent / len(queries), 3)}
        )
        if recall >= target:
            chosen = factor
            break
        if factor * k >= len(gallery):
            break
    if keep and chosen is not None:
        gallery.describe(candidates_per_place=chosen, candidates_checked={"target": target, "rows": len(gallery)})
    return {
        "rows": len(gallery),
        "queries": len(queries),
        "k": k,
        "target": target,
        "measured": measured,
        "candidates": None if chosen is None else chosen * k,
        "kept": bool(keep and chosen is not None),
    }


def brute_force(gallery: Gallery, queries: Embeddings, k: int) -> NDArray[np.int64]:
    """The exact answer of any store under the masked metric, by reading all of it: ids (Q, k), −1 for no row."""
    ids = np.full((len(queries), k), -1, np.int64)
    best = np.full((len(queries), k), -np.inf, np.float32)
    q = exact.unit(queries.features)
    for part in gallery.store.scan(Where(), vectors=True):
        assert part.features is not None, "whole rows were read"
        rows, s = exact.top_k(q, exact.Vectors(part.features), k, query_masks=queries.masks, ids=part.ids)
        both = np.concatenate([ids, np.where(rows >= 0, part.ids[rows], -1)], axis=1)
        scores = np.concatenate([best, s], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        ids, best = np.take_along_axis(both, order, axis=1), np.take_along_axis(scores, order, axis=1)
    return ids


def _own_rows(gallery: Gallery, sample: int) -> tuple[Embeddings, NDArray[np.int64]]:
    """Rows of the gallery as queries, evenly spread, and their ids."""
    ids = np.concatenate([np.zeros(0, np.int64), *(part.ids for part in gallery.store.scan(Where(), vectors=False))])
    if not len(ids):
        raise GalleryError("expected rows to check recall on, got an empty gallery. Add rows first")
    chosen = ids[:: max(1, math.ceil(len(ids) / sample))]
    rows = gallery.rows(chosen)
    if rows.masks is None or rows.features is None:
        raise GalleryError("expected a gallery with masks, or queries to check recall with, got neither. Pass queries=")
    queries = Embeddings(
        features=rows.features,
        masks=rows.masks,
        visibility=rows.visibility,
        rows=np.arange(len(rows)),
        fingerprint=gallery.fingerprint,
    )
    return queries, rows.ids


def _share(ids: NDArray[np.int64], truth: NDArray[np.int64], own: int | None) -> float:
    """Share of the true places that were found; the query's own row aside."""
    places = set(truth[truth >= 0].tolist()) - {own}
    return len(places & set(ids.tolist())) / len(places) if places else 1.0
