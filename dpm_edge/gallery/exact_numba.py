"""Loops over gallery rows in numba: a row is read once, scored for every query, and kept where it is among the best.

N gallery rows · D feature dimensions · Q queries · K places

Compiled at the first search and cached beside this file (or where NUMBA_CACHE_DIR says). No function here uses numba's
own threads: the caller cuts the rows or the queries into parts, so that any number of searches may run at once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic, overload

FAST = {"reassoc", "contract", "nsz"}
"""Sums may be reordered; NaN and infinity keep their meaning."""
RUN = 8
"""A single query skips hidden rows only where so many lie together: leaving out a few breaks the stream of reads."""


@intrinsic
def _half(typingctx: Any, bits: Any) -> Any:
    """The float32 of a half's bits: one instruction (F16C on x86, FCVT on ARM)."""

    def emit(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fpext(builder.bitcast(arguments[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.uint16), emit


def _float(x: Any) -> Any:
    """x as float32: float32 itself, int8 codes, or a half's bits as uint16."""
    raise NotImplementedError("compiled code only")


@overload(_float, inline="always")
def _float_of(x: Any) -> Any:
    """What `_float` compiles to for the type of x."""

    def half(x: Any) -> Any:
        return _half(x)  # type: ignore[call-arg]

    def number(x: Any) -> Any:
        return np.float32(x)

    return half if x is types.uint16 else number


@njit(cache=True, fastmath=FAST)
def _read(row_D: Any, mask_D: Any, into_D: Any) -> None:
    """A row as float32; times its mask where there is one (length 0: none)."""
    if len(mask_D):
        for d in range(len(into_D)):
            into_D[d] = _float(row_D[d]) * _float(mask_D[d])
    else:
        for d in range(len(into_D)):
            into_D[d] = _float(row_D[d])


@njit(cache=True)
def _keep(score: float, row: int, s_K: Any, rows_K: Any) -> None:
    """Replace the least of a heap, the least first, and let the new one sink to its place."""
    size, at = len(s_K), 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and s_K[child + 1] < s_K[child]:
            child += 1
        if s_K[child] >= score:
            break
        s_K[at], rows_K[at] = s_K[child], rows_K[child]
        at = child
    s_K[at], rows_K[at] = score, row


@njit(cache=True, nogil=True, fastmath=FAST)
def _two(row_D: Any, qm_D: Any, mm_D: Any) -> Any:
    """qm·x and mm·x² of a row, read once."""
    over, under = np.float32(0), np.float32(0)
    for d in range(len(qm_D)):
        x = _float(row_D[d])
        over += qm_D[d] * x
        under += mm_D[d] * (x * x)
    return over, under


@njit(cache=True, nogil=True, fastmath=FAST)
def _two_masked(row_D: Any, mask_D: Any, qm_D: Any, mm_D: Any) -> Any:
    """The same of a row times its mask."""
    over, under = np.float32(0), np.float32(0)
    for d in range(len(qm_D)):
        x = _float(row_D[d]) * _float(mask_D[d])
        over += qm_D[d] * x
        under += mm_D[d] * (x * x)
    return over, under


@njit(cache=True, nogil=True, fastmath=FAST)
def scan_one(
    t_ND: Any,
    masks_ND: Any,
    floor_N: Any,
    qm_D: Any,
    mm_D: Any,
    hidden_N: Any,
    start: int,
    stop: int,
    s_K: Any,
    rows_K: Any,
) -> None:
    """Rows start..stop for one query, into its heap. hidden_N has length 0 where every row may be found."""
    masked = len(masks_ND) > 0
    for at in range(start, stop, RUN):
        end = min(at + RUN, stop)
        if len(hidden_N) and hidden_N[at:end].all():
            continue
        for n in range(at, end):
            if masked:
                over, under = _two_masked(t_ND[n], masks_ND[n], qm_D, mm_D)
            else:
                over, under = _two(t_ND[n], qm_D, mm_D)
            s = over / np.sqrt(max(under, floor_N[n]))
            if s > s_K[0] and not (len(hidden_N) and hidden_N[n]):
                _keep(s, n, s_K, rows_K)


@njit(cache=True, nogil=True, fastmath=FAST)
def _four(p_D: Any, r_D: Any, x_D: Any, y_D: Any) -> Any:
    """p·x, p·y, r·x, r·y in one pass: each value read serves two products."""
    a, b, c, e = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for d in range(len(p_D)):
        a += p_D[d] * x_D[d]
        b += p_D[d] * y_D[d]
        c += r_D[d] * x_D[d]
        e += r_D[d] * y_D[d]
    return a, b, c, e


@njit(cache=True, nogil=True, fastmath=FAST)
def scan_few(
    t_ND: Any, masks_ND: Any, floor_N: Any, qm_QD: Any, mm_QD: Any, hidden_N: Any, group_N: Any, own_Q: Any,
    start: int, stop: int, s_QK: Any, rows_QK: Any,
) -> None:  # fmt: skip
    """Rows start..stop for an even number of queries, two rows and two queries at a time.

    A row whose group_N is a query's own_Q is not for that query (length 0: no groups).
    """
    d_count, filtered, grouped = qm_QD.shape[1], len(hidden_N) > 0, len(group_N) > 0
    x, y = np.empty(d_count, np.float32), np.empty(d_count, np.float32)
    xx, yy = np.empty(d_count, np.float32), np.empty(d_count, np.float32)
    none = masks_ND[0:0].ravel()
    masked = len(masks_ND) > 0
    first = -1
    for n in range(start, stop + 1):
        if n < stop:
            if filtered and hidden_N[n]:
                continue
            if first < 0:
                first = n
                _read(t_ND[n], masks_ND[n] if masked else none, x)
                continue
            second = n
            _read(t_ND[n], masks_ND[n] if masked else none, y)
        elif first >= 0:
            second = first  # the last row has no partner
            y[:] = x
        else:
            break
        for d in range(d_count):
            xx[d] = x[d] * x[d]
            yy[d] = y[d] * y[d]
        for i in range(0, len(qm_QD), 2):
            over = _four(qm_QD[i], qm_QD[i + 1], x, y)
            under = _four(mm_QD[i], mm_QD[i + 1], xx, yy)
            for pair in range(4):
                j, row = i + pair // 2, second if pair % 2 else first
                if (pair % 2 and second == first) or (grouped and group_N[row] == own_Q[j]):
                    continue
                s = over[pair] / np.sqrt(max(under[pair], floor_N[row]))
                if s > s_QK[j, 0]:
                    _keep(s, row, s_QK[j], rows_QK[j])
        first = -1


@njit(cache=True, nogil=True, fastmath=FAST)
def select(
    over_QT: Any, under_QT: Any, floor_T: Any, rows_T: Any, group_T: Any, own_Q: Any,
    start: int, stop: int, s_QK: Any, rows_QK: Any,
) -> None:  # fmt: skip
    """What two products of a tile of T rows say, for queries start..stop, into their heaps.

    A first pass without branches asks whether anything of a run of rows can enter: over > least · sqrt(under).
    """
    grouped, step = len(group_T) > 0, 64
    for i in range(start, stop):
        over, under = over_QT[i], under_QT[i]
        for at in range(0, len(over), step):
            end = min(at + step, len(over))
            least = s_QK[i, 0]
            some = 0
            for n in range(at, end):
                some += over[n] > least * np.sqrt(max(under[n], floor_T[n])) * (1 - 1e-6 if least > 0 else 1 + 1e-6)
            if some == 0:
                continue
            for n in range(at, end):
                s = over[n] / np.sqrt(max(under[n], floor_T[n]))
                if s > s_QK[i, 0] and not (grouped and group_T[n] == own_Q[i]):
                    _keep(s, rows_T[n], s_QK[i], rows_QK[i])
