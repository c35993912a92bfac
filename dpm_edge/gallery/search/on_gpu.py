"""Exact search of rows that lie on a GPU: its kernel finds candidates, float64 on the CPU orders them.

Q queries · N gallery rows · D feature dimensions · k places

The kernel rounds (kernels/masked_distance/contract.py says how much); how much it did is seen on the candidates
themselves. Where the border between in and out is narrower than that, every row within reach is scored again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import installed
from dpm_edge.errors import GalleryError, MissingLibrary
from dpm_edge.gallery.search.exact import SPARE, Vectors, exact_similarity, order_in_float64
from dpm_edge.metrics import normalise

if TYPE_CHECKING:
    from dpm_edge.kernels.masked_distance.resident import Resident


def resident(device: str) -> Resident:
    """Room for rows on a device: "cuda", "cuda:1".

    Raises:
        MissingLibrary: torch or Triton is not installed.
        GalleryError: there is no such device.
    """
    for library in ("torch", "triton"):
        if not installed(library):
            raise MissingLibrary(library, "a gallery on a GPU", "pip install torch 'dpm-edge[gpu]'")
    from dpm_edge.kernels.masked_distance.resident import Resident

    try:
        return Resident(device)
    except (ValueError, RuntimeError) as error:
        raise GalleryError(f'{error}. Search on the CPU: device="cpu"') from error


def top_k(
    q_QD: NDArray,
    vectors: Vectors,
    there: Resident,
    k: int,
    *,
    metric: str = "masked",
    query_masks: NDArray | None = None,
    hidden: NDArray[np.bool_] | None = None,
    group: NDArray[np.int32] | None = None,
    own: NDArray[np.int32] | None = None,
    ids: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `exact.top_k`, and the same answer; `there` holds a copy of `vectors`."""
    from dpm_edge.kernels.masked_distance.resident import K_MAX, TOLERANCE

    count, places = len(q_QD), min(k, len(vectors))
    rows = np.full((count, k), -1, np.int64)
    best = np.full((count, k), -np.inf, np.float32)
    if not count or not places:
        return rows, best
    q = normalise(np.asarray(q_QD, np.float64))
    m = np.ones_like(q) if metric == "plain" else np.asarray(query_masks, np.float64)
    q32, m32 = q.astype(np.float32), m.astype(np.float32)
    keep = None if hidden is None else ~hidden
    wide, unclear = min(places + SPARE, K_MAX, len(vectors)), list(range(count))
    reach = np.full(count, 2 * TOLERANCE[str(vectors.values.dtype)])
    mutual = metric == "mutual"
    if places < wide or wide == len(vectors):
        groups = None if group is None or own is None else (own, group)
        found, scores = there.topk(q32, m32, wide, mutual=mutual, keep=keep, groups=groups)
        unclear = []
        for i in range(count):
            here, s = found[i][found[i] >= 0], scores[i][found[i] >= 0]
            if len(here):
                off = np.abs(exact_similarity(q[i], m[i], vectors, here, metric) - s).max()
                reach[i] = max(reach[i], 8 * off)
            if len(here) == wide < len(vectors) and s[places - 1] - s[-1] <= reach[i]:
                unclear.append(i)
            else:
                order_in_float64(q[i], m[i], vectors, here, ids, metric, rows[i], best[i])
    for i in unclear:
        groups = None if group is None or own is None else (own[i : i + 1], group)
        one = slice(i, i + 1)
        here = next(there.within(q32[one], m32[one], places, reach[i], mutual=mutual, keep=keep, groups=groups))
        order_in_float64(q[i], m[i], vectors, here, ids, metric, rows[i], best[i])
    return rows, best
