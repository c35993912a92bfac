"""Exact top-k under the metric, tile by tile: the whole Q×N matrix never exists.

Q queries · N gallery rows · D feature dimensions · k places
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from dpm_edge.images import chunks
from dpm_edge.metrics import similarity

QUERY_TILE = 1024
GALLERY_TILE = 16384
"""One tile of similarities is at most 64 MB of float32."""

Excluded = Callable[[slice, slice], "NDArray[np.bool_] | None"]
"""(queries, gallery rows) → (q, n) bool, True where a row must not be found; None where all may be."""


def top_k(
    q_QD: NDArray,
    t_ND: NDArray,
    k: int,
    *,
    metric: str,
    query_masks: NDArray,
    target_masks: NDArray,
    excluded: Excluded = lambda queries, rows: None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest targets of each query: rows (Q, k) int64 and similarities (Q, k) float32, best first.

    Targets and their masks may be float16; they are computed in float32. Ties go to the lower row, so that the
    result does not depend on the tiles. Places without a candidate hold −1 and −inf.
    """
    rows = np.full((len(q_QD), k), -1, np.int64)
    best = np.full((len(q_QD), k), -np.inf, np.float32)
    for part in chunks(len(t_ND), GALLERY_TILE):
        targets = t_ND[part].astype(np.float32, copy=False)
        masks = target_masks[part].astype(np.float32, copy=False) if metric == "mutual" else None
        for queries in chunks(len(q_QD), QUERY_TILE):
            s = similarity(
                q_QD[queries], targets, metric=metric, query_masks=query_masks[queries], target_masks=masks
            ).astype(np.float32, copy=False)
            hide = excluded(queries, part)
            if hide is not None:
                s[hide] = -np.inf
            columns = _best_columns(s, k)
            found = np.take_along_axis(s, columns, axis=1)
            found_rows = np.where(np.isneginf(found), -1, columns + part.start)
            both = np.concatenate([best[queries], found], axis=1)
            order = np.argsort(-both, axis=1, kind="stable")[:, :k]
            best[queries] = np.take_along_axis(both, order, axis=1)
            rows[queries] = np.take_along_axis(np.concatenate([rows[queries], found_rows], axis=1), order, axis=1)
    return rows, best


def _best_columns(s: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """The min(k, n) highest columns of each row of s (q, n), highest first, ties to the lower column."""
    count = s.shape[1]
    if k >= count:
        return np.argsort(-s, axis=1, kind="stable")
    columns = np.argpartition(-s, k - 1, axis=1)[:, :k]
    least = np.take_along_axis(s, columns, axis=1).min(axis=1, keepdims=True)
    torn = np.flatnonzero((s >= least).sum(axis=1) > k)  # a tie across the border, which argpartition cuts anywhere
    columns[torn] = np.argsort(-s[torn], axis=1, kind="stable")[:, :k]
    columns.sort(axis=1)
    order = np.argsort(-np.take_along_axis(s, columns, axis=1), axis=1, kind="stable")
    return np.take_along_axis(columns, order, axis=1)
