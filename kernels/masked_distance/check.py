"""What masked_distance accepts; each error says what was expected, what came, and what to do.

B queries, N targets, D feature dimensions, k results
"""

from __future__ import annotations

import torch
from torch import Tensor

from dpm_edge.kernels.masked_distance import contract

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _wrong(name: str, got: object, expected: str) -> ValueError:
    return ValueError(f"masked_distance: expected {name} to be {expected}, got {got}")


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {tuple(x.shape)} on {x.device}"


def check_inputs(q: Tensor, m: Tensor, t: Tensor, row_scale: Tensor | None, t_mask: Tensor | None) -> None:
    """Raises ValueError where queries, masks, targets, scales and target masks do not fit together."""
    if q.ndim != 2 or q.shape[0] < 1 or q.dtype not in FLOATS:
        raise _wrong("q", _describe(q), "a float (B, D) with B ≥ 1")
    if m.shape != q.shape or m.dtype not in FLOATS or m.device != q.device:
        raise _wrong("m", _describe(m), f"a float {tuple(q.shape)} beside q on {q.device}")
    if t.ndim != 2 or t.shape[0] < 1 or t.shape[1] != q.shape[1] or t.device != q.device:
        raise _wrong("targets", _describe(t), f"(N, {q.shape[1]}) with N ≥ 1 on {q.device}")
    if t.dtype not in (*FLOATS, torch.int8):
        raise _wrong("targets", _describe(t), " or ".join(contract.TARGET_DTYPES))
    if t.is_cuda and torch.float64 in (q.dtype, m.dtype, t.dtype):
        raise ValueError(
            "masked_distance: expected float32 or less on a GPU, got float64. Convert q, m and the targets"
        )
    if not t.is_contiguous():
        raise ValueError(
            "masked_distance: expected contiguous targets, got strides. Call .contiguous() once, where they are stored"
        )
    if (t.dtype == torch.int8) != (row_scale is not None):
        raise ValueError(
            f"masked_distance: expected row_scale with int8 targets and with no others, got targets {_describe(t)}"
        )
    if row_scale is not None and (
        row_scale.shape != t.shape[:1] or row_scale.dtype != torch.float32 or row_scale.device != t.device
    ):
        raise _wrong("row_scale", _describe(row_scale), f"float32 ({t.shape[0]},) on {t.device}")
    if t_mask is not None and (
        t_mask.shape != t.shape or t_mask.dtype not in FLOATS or t_mask.device != t.device or not t_mask.is_contiguous()
    ):
        raise _wrong("target_masks", _describe(t_mask), f"a contiguous float {tuple(t.shape)} on {t.device}")


def check_labels(labels: Tensor, q: Tensor) -> None:
    """Raises ValueError unless labels are integers (B,) beside q. Their range is the caller's to keep."""
    if labels.shape != q.shape[:1] or labels.is_floating_point() or labels.device != q.device:
        raise _wrong("labels", _describe(labels), f"an integer ({q.shape[0]},) on {q.device}")


def check_k(k: int) -> None:
    """Raises ValueError unless 1 ≤ k ≤ K_MAX."""
    if not 1 <= k <= contract.K_MAX:
        raise ValueError(
            f"masked_distance: expected k of 1 to {contract.K_MAX}, got {k}. For more, rank masked_similarity"
        )


def check_filters(row_filter: Tensor | None, junk: tuple[Tensor, ...] | None, q: Tensor, t: Tensor) -> None:
    """Raises ValueError where the row filter or the (person, camera) ids do not fit the queries and targets."""
    shapes = ((t.shape[0],), (q.shape[0], -(-t.shape[0] // 8)))
    if row_filter is not None and (
        tuple(row_filter.shape) not in shapes
        or row_filter.dtype != torch.uint8
        or row_filter.device != t.device
        or not row_filter.is_contiguous()
    ):
        raise _wrong(
            "row_filter", _describe(row_filter), f"a contiguous uint8 {shapes[0]} or {shapes[1]} on {t.device}"
        )
    for name, ids, beside in zip(("q_person", "q_camera", "t_person", "t_camera"), junk or (), (q, q, t, t)):
        if ids.shape != beside.shape[:1] or ids.dtype != torch.int32 or ids.device != t.device:
            raise _wrong(f"junk {name}", _describe(ids), f"int32 ({beside.shape[0]},) on {t.device}")
