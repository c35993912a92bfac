"""Exact search of rows that lie on a GPU: its kernel finds candidates, float64 on the CPU orders them.

Q queries · N gallery rows · D feature dimensions · k places

The kernel rounds (kernels/masked_distance/contract.py says how much); how much it did is seen on the candidates
themselves. Where the border between in and out is narrower than that, every row within reach is scored again.

The rows are searched by kernels that were compiled ahead of time, or by Triton's own compilation through torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import installed
from dpm_edge.errors import EngineError, GalleryError, MissingLibrary
from dpm_edge.gallery.search.exact import SPARE, Vectors, exact_similarity, order_in_float64
from dpm_edge.gallery.search.exact import top_k as top_k_on_cpu
from dpm_edge.runtime.frames import Nearest, SearchBehind, SearchedRows

K_MAX = 128
"""Most places of the kernels' top-k."""
TOLERANCE = {"float32": 1e-5, "float16": 1e-3, "int8": 1e-3}
"""Type of the rows → largest error of a similarity that the kernels' contract allows."""
Groups = tuple[NDArray[np.int32], NDArray[np.int32]]


class RowsOnGpu(SearchedRows, Protocol):
    """A copy of a gallery's rows on a GPU."""

    place: str
    """Which GPU: "cuda:0"."""
    complete: bool
    """Whether these are CompleteRowsOnGpu."""

    def __len__(self) -> int:
        """Rows that were uploaded."""

    def clear(self) -> None:
        """Let go of every row."""

    def follow(self, values: NDArray, masks: NDArray | None) -> None:
        """Upload the rows (N, D) of a table that were added since."""

    def topk(
        self, q: NDArray, m: NDArray, k: int, *, mutual: bool = False, keep: NDArray | None = None,
        groups: Groups | None = None,
    ) -> Nearest:  # fmt: skip
        """The k best of each query (Q, D) by the kernel. keep: (N,) bool; groups: as `exact.top_k`'s own and group."""

    def close(self) -> None:
        """Let go of the GPU."""


class CompleteRowsOnGpu(RowsOnGpu, Protocol):
    """Rows with their masks, for the mutual metric, of which every one can be scored."""

    def within(
        self, q: NDArray, m: NDArray, k: int, reach: float, *, mutual: bool = False, keep: NDArray | None = None,
        groups: Groups | None = None,
    ) -> Iterator[NDArray[np.int64]]:  # fmt: skip
        """For each query, every row that scores at least the k-th best score less `reach`."""


def rows_on_gpu(device: str) -> RowsOnGpu:
    """Room for a gallery's rows on a device: "cuda", "cuda:1".

    Compiled kernels are taken where they are here, so that no torch is needed; else torch and Triton.

    Raises:
        MissingLibrary: neither is here; the message names both ways.
        GalleryError: there is no such device.
    """
    if not device.startswith("cuda") or not (index := device.partition(":")[2] or "0").isdigit():
        raise GalleryError(f'expected device "cpu", "cuda" or "cuda:1", got {device!r}')
    from dpm_edge.runtime.gpu.gallery_rows import GalleryRows

    try:
        try:
            return GalleryRows(int(index))
        except MissingLibrary as missing:
            for library in ("torch", "triton"):
                if not installed(library):
                    advice = f"pip install torch 'dpm-edge[gpu]'; or without torch: {missing}"
                    raise MissingLibrary(library, "a gallery on a GPU", advice) from missing
        from dpm_edge.kernels.masked_distance.resident import Resident

        return Resident(device)
    except (ValueError, RuntimeError, EngineError) as error:
        if isinstance(error, MissingLibrary):
            raise
        raise GalleryError(f'{error}. Search on the CPU: device="cpu"') from error


def search_behind(
    rows: RowsOnGpu, vectors: Vectors, k: int, metric: str, keep: NDArray[np.bool_] | None
) -> SearchBehind | None:
    """The search for candidates that an engine on the same GPU enqueues behind its network; None where it cannot be."""
    wide = _candidates(k, vectors)
    if metric != "masked" or wide is None or not len(vectors):
        return None
    rows.follow(vectors.values, vectors.masks)
    return SearchBehind(rows, wide, keep)


def _candidates(k: int, vectors: Vectors) -> int | None:
    """How many candidates the kernel finds for k places; None where it finds too few."""
    places = min(k, len(vectors))
    wide = min(places + SPARE, K_MAX, len(vectors))
    return wide if places < wide or wide == len(vectors) else None


def top_k(
    q_QD: NDArray,
    vectors: Vectors,
    copy: RowsOnGpu,
    k: int,
    *,
    metric: str = "masked",
    query_masks: NDArray | None = None,
    hidden: NDArray[np.bool_] | None = None,
    group: NDArray[np.int32] | None = None,
    own: NDArray[np.int32] | None = None,
    ids: NDArray[np.int64] | None = None,
    nearest: Nearest | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """As `exact.top_k`, and the same answer; `copy` is that of `vectors` on a GPU.

    nearest: candidates of these queries that an engine has found by `search_behind`.
    """
    on_cpu: dict[str, Any] = {"metric": metric, "hidden": hidden, "group": group, "ids": ids}
    if metric == "mutual" and not copy.complete:
        return top_k_on_cpu(q_QD, vectors, k, query_masks=query_masks, own=own, **on_cpu)
    count, places = len(q_QD), min(k, len(vectors))
    rows = np.full((count, k), -1, np.int64)
    best = np.full((count, k), -np.inf, np.float32)
    if not count or not places:
        return rows, best
    q = np.asarray(q_QD, np.float64)  # as `exact.top_k` has it: rows that differ in the last digit keep their order
    m = np.ones_like(q) if metric == "plain" else np.asarray(query_masks, np.float64)
    q32, m32 = q.astype(np.float32), m.astype(np.float32)
    keep = None if hidden is None else ~hidden
    wide, unclear = _candidates(k, vectors), list(range(count))
    reach = np.full(count, 2 * TOLERANCE[str(vectors.values.dtype)])
    mutual = metric == "mutual"
    if wide is not None:
        groups = None if group is None or own is None else (own, group)
        found, scores = nearest or copy.topk(q32, m32, wide, mutual=mutual, keep=keep, groups=groups)
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
    if unclear and not copy.complete:
        on_cpu["own"], some = None if own is None else own[unclear], m[unclear]
        rows[unclear], best[unclear] = top_k_on_cpu(q[unclear], vectors, k, query_masks=some, **on_cpu)
        return rows, best
    whole = cast(CompleteRowsOnGpu, copy)
    for i in unclear:
        groups = None if group is None or own is None else (own[i : i + 1], group)
        one = slice(i, i + 1)
        here = next(whole.within(q32[one], m32[one], places, reach[i], mutual=mutual, keep=keep, groups=groups))
        order_in_float64(q[i], m[i], vectors, here, ids, metric, rows[i], best[i])
    return rows, best
