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
TILE = 64
"""Rows that stay in the second-level cache while every group of four queries goes over them."""


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


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _two(row_D: Any, mask_D: Any, qm_D: Any, mm_D: Any) -> Any:
    """qm·x and mm·x² of a row x, read once; times its mask where there is one (length 0: none)."""
    masked = len(mask_D) > 0
    over, under = np.float32(0), np.float32(0)
    for d in range(len(row_D)):
        x = _float(row_D[d])
        if masked:
            x *= _float(mask_D[d])
        over += qm_D[d] * x
        under += mm_D[d] * (x * x)
    return over, under


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def scan_one(
    t_ND: Any, masks_ND: Any, floor_N: Any, qm_D: Any, mm_D: Any, hidden_N: Any,
    start: int, stop: int, s_K: Any, rows_K: Any,
) -> None:  # fmt: skip
    """Rows start..stop for one query, into its heap. hidden_N has length 0 where every row may be found."""
    masked, filtered, none = len(masks_ND) > 0, len(hidden_N) > 0, masks_ND[0:0].ravel()
    for at in range(start, stop, RUN):
        end = min(at + RUN, stop)
        if filtered and hidden_N[at:end].all():
            continue
        for n in range(at, end):
            over, under = _two(t_ND[n], masks_ND[n] if masked else none, qm_D, mm_D)
            s = over / np.sqrt(max(under, floor_N[n]))
            if s > s_K[0] and not (filtered and hidden_N[n]):
                _keep(s, n, s_K, rows_K)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def _eight(row_D: Any, mask_D: Any, qm_4D: Any, mm_4D: Any) -> Any:
    """The same for four queries: eight sums in registers, so that a value of x is read and squared once for all."""
    masked = len(mask_D) > 0
    a, b, c, e = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    aa, bb, cc, ee = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for d in range(len(row_D)):
        x = _float(row_D[d])
        if masked:
            x *= _float(mask_D[d])
        xx = x * x
        a += qm_4D[0, d] * x
        b += qm_4D[1, d] * x
        c += qm_4D[2, d] * x
        e += qm_4D[3, d] * x
        aa += mm_4D[0, d] * xx
        bb += mm_4D[1, d] * xx
        cc += mm_4D[2, d] * xx
        ee += mm_4D[3, d] * xx
    return (a, b, c, e), (aa, bb, cc, ee)


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
def scan_few(
    t_ND: Any, masks_ND: Any, floor_N: Any, qm_QD: Any, mm_QD: Any, hidden_N: Any, group_N: Any, own_Q: Any,
    start: int, stop: int, s_QK: Any, rows_QK: Any,
) -> None:  # fmt: skip
    """Rows start..stop for Q queries, a multiple of four; a tile of rows stays in the cache while all of them pass.

    A row whose group_N is a query's own_Q is not for that query (length 0: no groups).
    """
    masked, filtered, grouped = len(masks_ND) > 0, len(hidden_N) > 0, len(group_N) > 0
    none = masks_ND[0:0].ravel()
    for at in range(start, stop, TILE):
        for i in range(0, len(qm_QD), 4):
            for n in range(at, min(at + TILE, stop)):
                if filtered and hidden_N[n]:
                    continue
                over, under = _eight(t_ND[n], masks_ND[n] if masked else none, qm_QD[i : i + 4], mm_QD[i : i + 4])
                for j in range(4):
                    s = over[j] / np.sqrt(max(under[j], floor_N[n]))
                    if s > s_QK[i + j, 0] and not (grouped and group_N[n] == own_Q[i + j]):
                        _keep(s, n, s_QK[i + j], rows_QK[i + j])


@njit(cache=True, nogil=True, fastmath=FAST)
def _widen_row(row_D: Any, mask_D: Any, x_D: Any, xx_D: Any) -> None:
    """A row as float32, times its mask where there is one (length 0: none), and its squares."""
    masked = len(mask_D) > 0
    for d in range(len(row_D)):
        x = _float(row_D[d])
        if masked:
            x *= _float(mask_D[d])
        x_D[d] = x
        xx_D[d] = x * x


@njit(cache=True, nogil=True)
def widen(t_TD: Any, masks_TD: Any, start: int, stop: int, x_TD: Any, xx_TD: Any) -> None:
    """Rows start..stop of a tile as the products want them."""
    masked, none = len(masks_TD) > 0, masks_TD[0:0].ravel()
    for n in range(start, stop):
        _widen_row(t_TD[n], masks_TD[n] if masked else none, x_TD[n], xx_TD[n])


@njit(cache=True, nogil=True, fastmath=FAST, error_model="numpy")
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
