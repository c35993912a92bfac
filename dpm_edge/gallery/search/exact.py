"""Exact search under the masked metric: every row is scored, and the order is that of the formula in float64.

Q queries · N gallery rows · D feature dimensions · k places

Scores in float32 choose candidates; those within the rounding error of the last place are scored again in float64, and
more are taken until the border between in and out is wider than that error. Few queries go through loops that read each
row once (numba, the extra `fast`); many go through two matrix products, tile by tile. The whole Q×N never exists.
"""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import cores, installed
from dpm_edge.images import chunks
from dpm_edge.metrics import EPSILON, normalise, similarity

FEW = 64
"""Up to this many queries the loops beat the products: "crossover" in benchmarks/results/gallery-exact.json."""
QUERY_TILE = 256
GALLERY_TILE = 8192
COMPILE_FROM = 1 << 13
"""Scores below which numpy answers while no loop is loaded: loading them takes longer, and compiling them seconds."""
PIECE = 256
"""Rows that are converted at a time, so that what that needs beside them stays small."""
PARTS = 4
"""Parts of the gallery that each core scans, so that one which is held up by other work is helped out."""
SPARE = 16
"""Candidates beyond k, so that the border is usually clear at once."""


@dataclass(frozen=True, eq=False)
class Vectors:
    """What is searched: rows that need not be normalised, and what the kernels want to know of each."""

    values: NDArray
    """(N, D) float32, float16, or int8 codes, whose scale per row cancels out of the metric."""
    masks: NDArray | None = None
    """(N, D) of the same dtype: for the mutual metric. Codes are scaled by 127."""
    squares: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """(N,) float32: squared norms; computed where none are given."""

    def __post_init__(self) -> None:
        if len(self.squares) != len(self.values):
            object.__setattr__(self, "squares", squared_norms(self.values))

    def __len__(self) -> int:
        return len(self.values)


def squared_norms(values: NDArray) -> NDArray[np.float32]:
    """Σ v² of each row, (N, D) → (N,) float32, in pieces that stay small."""
    out = np.empty(len(values), np.float32)
    for part in chunks(len(values), PIECE):
        rows = values[part].astype(np.float32)
        out[part] = np.einsum("nd,nd->n", rows, rows)
    return out


def unit(values: NDArray) -> NDArray[np.float32]:
    """Rows scaled to L2 norm 1 in float64, (N, D) → (N, D) float32, in pieces that stay small."""
    out = np.empty(values.shape, np.float32)
    for part in chunks(len(values), PIECE):
        out[part] = normalise(values[part].astype(np.float64))
    return out


def quantise(values: NDArray) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Rows as int8 codes and their scales: values ≈ codes · scale[:, None]. (N, D) → (N, D) int8, (N,) float32."""
    scale = np.maximum(np.abs(values).max(axis=1, initial=0), 1e-30).astype(np.float32) / 127
    return np.rint(values / scale[:, None]).astype(np.int8), scale


@dataclass(frozen=True, eq=False)
class _Operands:
    """Queries as the kernels take them."""

    qm: NDArray[np.float32]
    mm: NDArray[np.float32]
    group: NDArray[np.int32]
    own: NDArray[np.int32]


def top_k(
    q_QD: NDArray,
    vectors: Vectors,
    k: int,
    *,
    metric: str = "masked",
    query_masks: NDArray | None = None,
    hidden: NDArray[np.bool_] | None = None,
    group: NDArray[np.int32] | None = None,
    own: NDArray[np.int32] | None = None,
    ids: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest rows of each query, best first: rows (Q, k) int64 and similarities (Q, k) float32.

    Args:
        q_QD: (Q, D) float queries, L2-normalised.
        vectors: N rows.
        k: places; those without a candidate hold −1 and −inf.
        metric: "plain", "masked" or "mutual", as in `dpm_edge.metrics`.
        query_masks: (Q, D) in 0..1; not for "plain".
        hidden: (N,) bool, True where no query may find the row.
        group: (N,) int32 with `own` (Q,) int32: a query does not find rows of its own group, such as its camera.
        ids: (N,) int64: among equal similarities the lower id comes first; the lower row without.
    """
    count, places = len(q_QD), min(k, len(vectors))
    rows = np.full((count, k), -1, np.int64)
    best = np.full((count, k), -np.inf, np.float32)
    if not count or not places:
        return rows, best
    q = np.asarray(q_QD, np.float64)
    m = np.ones_like(q) if metric == "plain" else np.asarray(query_masks, np.float64)
    no_groups = np.zeros(0, np.int32)
    hide = np.zeros(0, np.bool_) if hidden is None else hidden
    margin = 2 * (vectors.values.shape[1] + 16) * 2.0**-24
    waiting, wide = np.arange(count), places + SPARE
    while len(waiting):
        wide = min(wide, len(vectors))
        operands = _Operands(
            qm=(q[waiting] * m[waiting]).astype(np.float32),
            mm=(m[waiting] ** 2).astype(np.float32),
            group=no_groups if group is None else group,
            own=no_groups if own is None else own[waiting],
        )
        candidates, scores = _candidates(operands, vectors, wide, metric == "mutual", hide)
        unclear = []
        for at, i in enumerate(waiting):
            is_row = candidates[at] >= 0
            here, s = candidates[at][is_row], scores[at][is_row]
            if len(here) == wide < len(vectors) and np.sort(s)[-places] - s.min() <= 2 * margin:
                unclear.append(i)
                continue
            here = here[s >= np.sort(s)[-min(places, len(s))] - 2 * margin] if len(s) else here
            order_in_float64(q[i], m[i], vectors, here, ids, metric, rows[i], best[i])
        waiting, wide = np.array(unclear, np.int64), 4 * wide
    return rows, best


def order_in_float64(
    q: NDArray,
    m: NDArray,
    vectors: Vectors,
    here: NDArray,
    ids: NDArray | None,
    metric: str,
    rows: NDArray,
    best: NDArray,
) -> None:
    """Order candidates by the formula in float64 and write the best into one query's places."""
    if not len(here):
        return
    s = exact_similarity(q, m, vectors, here, metric)
    order = np.lexsort([here if ids is None else ids[here], -s])[: len(rows)]
    rows[: len(order)], best[: len(order)] = here[order], s[order]


def exact_similarity(q: NDArray, m: NDArray, vectors: Vectors, here: NDArray, metric: str) -> NDArray[np.float64]:
    """The formula in float64 for one query (D,), its mask (D,) and these rows: (R,)."""
    masks = _as_float64(vectors.masks, here) if metric == "mutual" else None
    targets = vectors.values[here].astype(np.float64)
    return similarity(q[None], targets, metric=metric, query_masks=m[None], target_masks=masks)[0]


def _as_float64(masks: NDArray | None, here: NDArray) -> NDArray[np.float64]:
    assert masks is not None, "the gallery checks that masks are stored"
    return masks[here].astype(np.float64) / (127 if masks.dtype == np.int8 else 1)


def _candidates(
    operands: _Operands, vectors: Vectors, wide: int, mutual: bool, hidden: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """`wide` rows of each query with the highest float32 scores, in no order: (Q, wide) rows and scores."""
    masks = vectors.masks if mutual else None
    floor = (EPSILON * np.maximum(vectors.squares, EPSILON)).astype(np.float32)
    if masks is not None and masks.dtype == np.int8:
        floor = floor * np.float32(127**2)
    loaded = "dpm_edge.gallery.search.exact_numba" in sys.modules
    fast = compiled() and (loaded or len(operands.qm) * len(vectors) >= COMPILE_FROM)
    if fast and len(operands.qm) <= FEW:
        return _by_loops(operands, vectors.values, masks, floor, wide, hidden)
    return _by_products(operands, vectors.values, masks, floor, wide, hidden, fast)


@cache
def compiled() -> bool:
    """Whether numba is installed."""
    return installed("numba") and os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"


@cache
def _pool(process: int) -> ThreadPoolExecutor:
    """One thread a core, for this process."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="dpm-exact")


def _heaps(count: int, wide: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    return np.full((count, wide), -1, np.int64), np.full((count, wide), -np.inf, np.float32)


def _bits(values: NDArray | None, like: NDArray) -> NDArray:
    """Halves as their bits, which numba can read; an empty table where there is none."""
    values = like[:0] if values is None else values
    return values.view(np.uint16) if values.dtype == np.float16 else values


def _aligned(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """A copy that begins a cache line: loads that straddle two lines cost the loops a tenth."""
    room = np.empty(values.size + 16, np.float32)
    start = -room.ctypes.data % 64 // 4
    copy = room[start : start + values.size].reshape(values.shape)
    copy[:] = values
    return copy


def _by_loops(
    operands: _Operands, values: NDArray, masks: NDArray | None, floor: NDArray, wide: int, hidden: NDArray
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    from dpm_edge.gallery.search import exact_numba

    t, tm = _bits(values, values), _bits(masks, values)
    count = len(operands.qm)
    four = np.arange(-(-count // 4) * 4) % count  # the loops take queries by fours
    qm, mm = _aligned(operands.qm[four]), _aligned(operands.mm[four])
    own = operands.own[four] if len(operands.own) else operands.own

    def work(part: slice) -> Any:
        rows, s = _heaps(len(four), wide)
        if count == 1 and not len(operands.group):
            exact_numba.scan_one(t, tm, floor, qm[0], mm[0], hidden, part.start, part.stop, s[0], rows[0])
        else:
            exact_numba.scan_few(t, tm, floor, qm, mm, hidden, operands.group, own, part.start, part.stop, s, rows)
        return rows[:count], s[:count]

    parts = list(chunks(len(t), max(1024, -(-len(t) // (PARTS * cores())))))
    done = [work(parts[0])] if len(parts) == 1 else list(_pool(os.getpid()).map(work, parts))
    return _best([rows for rows, _ in done], [s for _, s in done], wide)


def _by_products(
    operands: _Operands, values: NDArray, masks: NDArray | None, floor: NDArray, wide: int, hidden: NDArray, fast: bool
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    allowed = np.flatnonzero(~hidden) if len(hidden) else None
    rows, s = _heaps(len(operands.qm), wide)
    room = np.empty((2, min(GALLERY_TILE, len(values)), values.shape[1]), np.float32)
    for part in chunks(len(values) if allowed is None else len(allowed), GALLERY_TILE):
        here = np.arange(part.start, part.stop) if allowed is None else allowed[part]
        which = part if allowed is None else here
        mask = None if masks is None else masks[which]
        t, tt = _widen(values[which], mask, room, fast)
        group = operands.group[which] if len(operands.group) else operands.group
        for some in chunks(len(operands.qm), QUERY_TILE):
            tile = operands.qm[some] @ t.T, operands.mm[some] @ tt.T, floor[which], here, group
            own = operands.own[some] if len(operands.own) else operands.own
            (_take_compiled if fast else _take)(*tile, own, rows[some], s[some])
    return rows, s


def _widen(
    values: NDArray, masks: NDArray | None, room: NDArray[np.float32], fast: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A tile (T, D) as float32, times its masks where there are some, and its squares; both may lie in `room`."""
    x, xx = room[:, : len(values)]
    if values.dtype == np.float32 and masks is None:
        return values, np.multiply(values, values, out=xx)
    if not fast:
        np.multiply(values, np.float32(1) if masks is None else masks, out=x, dtype=np.float32)
        return x, np.multiply(x, x, out=xx)
    from dpm_edge.gallery.search import exact_numba

    t, tm = _bits(values, values), _bits(masks, values)

    def work(part: slice) -> None:  # numpy takes ten times as long to widen halves
        exact_numba.widen(t, tm, part.start, part.stop, x, xx)

    list(_pool(os.getpid()).map(work, chunks(len(t), -(-len(t) // cores()))))
    return x, xx


def _take_compiled(
    over: NDArray, under: NDArray, floor: NDArray, here: NDArray, group: NDArray, own: NDArray,
    rows: NDArray, s: NDArray,
) -> None:  # fmt: skip
    """Let the best of a tile into the heaps (Q, wide), which are views; the queries are cut into a part a core."""
    from dpm_edge.gallery.search import exact_numba

    def work(part: slice) -> None:
        exact_numba.select(over, under, floor, here, group, own, part.start, part.stop, s, rows)

    list(_pool(os.getpid()).map(work, chunks(len(over), -(-len(over) // cores()))))


def _take(
    over: NDArray, under: NDArray, floor: NDArray, here: NDArray, group: NDArray, own: NDArray,
    rows: NDArray, s: NDArray,
) -> None:  # fmt: skip
    """The same in numpy."""
    scores = over / np.sqrt(np.maximum(under, floor))
    if len(group):
        scores[own[:, None] == group] = -np.inf
    allowed = np.where(np.isneginf(scores), -1, here)
    rows[:], s[:] = _best([rows, allowed], [s, scores], s.shape[1])


def _best(rows: list[NDArray], s: list[NDArray], wide: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `wide` highest of several sets of candidates."""
    all_rows, all_s = np.concatenate(rows, axis=1), np.concatenate(s, axis=1)
    if all_s.shape[1] > wide:
        at = np.argpartition(-all_s, wide - 1, axis=1)[:, :wide]
        all_rows, all_s = np.take_along_axis(all_rows, at, axis=1), np.take_along_axis(all_s, at, axis=1)
    return all_rows, all_s
