"""masked_distance as torch operators: similarity, distance, margin logits, top-k.

    B queries, N targets (or C prototypes), D feature dimensions, k results

On a GPU, and under TRITON_INTERPRET=1, the Triton kernels run; on other CPUs the reference does. Formula:
`contract.py` (DPM, ACM MM 2022, arXiv 2207.09046). torch.compile and torch.export pass through.
"""

import torch
from torch import Tensor

from dpm_edge.kernels.dispatch import runs_kernel
from dpm_edge.kernels.masked_distance import contract, reference
from dpm_edge.kernels.masked_distance.check import check_filters, check_inputs, check_k, check_labels

__all__ = ["margin_logits", "masked_arccos", "masked_similarity", "masked_topk"]

Junk = tuple[Tensor, Tensor, Tensor, Tensor]


def masked_similarity(
    q: Tensor, m: Tensor, t: Tensor, *, row_scale: Tensor | None = None, target_masks: Tensor | None = None
) -> Tensor:
    """Similarity of every query with every target under the query's mask, in [−1, 1].

    Args:
        q, m: (B, D) float queries and their masks in 0..1; need not be normalised.
        t: (N, D) contiguous targets, float32, float16 (|t| ≤ 255), bfloat16 or int8.
        row_scale: (N,) float32; needed with int8 targets, which stand for t · row_scale.
        target_masks: (N, D) float, contiguous: both masks act, m ⊙ target_masks.

    Returns:
        (B, N) float32; 0 where a query or a target has nothing left under the mask. float64 for float64 queries on a
        CPU. Differentiable in q, m and t where t is float and there are no target masks.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together.
    """
    check_inputs(q, m, t, row_scale, target_masks)
    return torch.ops.dpm_edge.masked_distance(q, m, t, row_scale, target_masks, None, "similarity", 1.0, 0.0)


def masked_arccos(
    q: Tensor, m: Tensor, t: Tensor, *, row_scale: Tensor | None = None, target_masks: Tensor | None = None
) -> Tensor:
    """arccos of `masked_similarity` clipped to ±(1 − 1e-5): (B, N) radians. Same arguments and errors."""
    if torch.is_grad_enabled() and (q.requires_grad or m.requires_grad or t.requires_grad):
        s = masked_similarity(q, m, t, row_scale=row_scale, target_masks=target_masks)
        return s.clamp(-1 + contract.ARCCOS_CLIP, 1 - contract.ARCCOS_CLIP).arccos()
    check_inputs(q, m, t, row_scale, target_masks)
    return torch.ops.dpm_edge.masked_distance(q, m, t, row_scale, target_masks, None, "distance", 1.0, 0.0)


def margin_logits(
    q: Tensor, m: Tensor, w: Tensor, labels: Tensor, *, scale: float = contract.SCALE, margin: float = contract.MARGIN
) -> Tensor:
    """ArcFace logits over the masked similarity: scale · cos(arccos(s) + margin) at the label, scale · s elsewhere.

    Where s ≤ cos(π − margin), s − margin·sin(margin) instead. Nothing of B×C is kept for the backward pass, which
    computes it again.

    Args:
        q, m: (B, D) float features and masks. w: (C, D) contiguous float prototypes. labels: (B,) int, 0 ≤ label < C.
        margin: radians.

    Returns:
        (B, C) float32, differentiable in q, m and w.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together.
    """
    check_inputs(q, m, w, None, None)
    check_labels(labels, q)
    return torch.ops.dpm_edge.masked_distance(q, m, w, None, None, labels.int(), "margin_logits", scale, margin)


def masked_topk(
    q: Tensor,
    m: Tensor,
    t: Tensor,
    k: int,
    *,
    row_scale: Tensor | None = None,
    target_masks: Tensor | None = None,
    row_filter: Tensor | None = None,
    junk: Junk | None = None,
) -> tuple[Tensor, Tensor]:
    """The k targets most similar to each query, without a (B, N) buffer on the GPU.

    Args:
        q, m, t, row_scale, target_masks: as for `masked_similarity`.
        k: 1 to 128.
        row_filter: which targets may be returned: uint8 (N,), non-zero keeps; or a set of bits per query, uint8
            (B, ceil(N/8)), least significant bit first.
        junk: int32 person (B,), camera (B,) of the queries, person (N,), camera (N,) of the targets: a target of the
            query's person under the query's camera is not returned.

    Returns:
        scores (B, k) float32, falling, and rows (B, k) int64; ties go to the lower row. Where fewer than k targets are
        left: score −inf, row −1.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together, or k out of range.
    """
    check_inputs(q, m, t, row_scale, target_masks)
    check_k(k)
    check_filters(row_filter, junk, q, t)
    return torch.ops.dpm_edge.masked_topk(q, m, t, k, row_scale, target_masks, row_filter, *(junk or (None,) * 4))


def _runs_kernel(t: Tensor) -> bool:
    """float64 takes the reference, in the interpreter too."""
    return t.dtype != torch.float64 and runs_kernel(t)


def _out_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


@torch.library.custom_op("dpm_edge::masked_distance", mutates_args=())
def _masked_distance(
    q: Tensor,
    m: Tensor,
    t: Tensor,
    row_scale: Tensor | None,
    t_mask: Tensor | None,
    labels: Tensor | None,
    epilogue: str,
    scale: float,
    margin: float,
) -> Tensor:
    if _runs_kernel(t):
        from dpm_edge.kernels.masked_distance import launch

        return launch.scores(
            q.contiguous(), m.contiguous(), t, row_scale, t_mask, labels, epilogue=epilogue, scale=scale, margin=margin
        )
    if epilogue == "distance":
        return reference.distance(q, m, t, row_scale, t_mask)
    s = reference.similarity(q, m, t, row_scale, t_mask)
    return s if labels is None else reference.with_margin(s, labels, scale, margin)


@_masked_distance.register_fake
def _(q, m, t, row_scale, t_mask, labels, epilogue, scale, margin):  # type: ignore[no-untyped-def]
    return q.new_empty((q.shape[0], t.shape[0]), dtype=_out_dtype(q))


@torch.library.custom_op("dpm_edge::masked_distance_gradient", mutates_args=())
def _gradient(
    grad: Tensor, q: Tensor, m: Tensor, t: Tensor, labels: Tensor | None, scale: float, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    dtype = _out_dtype(q)
    q_wide, m_wide = q.to(dtype), m.to(dtype)
    norm = torch.linalg.vector_norm(q_wide, dim=1, keepdim=True)
    over = torch.where(norm > 0, 1 / torch.where(norm > 0, norm, 1), 0)
    q_unit = q_wide * over
    a, mm = q_unit * m_wide, m_wide * m_wide
    if _runs_kernel(t):
        from dpm_edge.kernels.masked_distance import launch

        d_a, d_mm, d_t = launch.gradient(grad.contiguous(), a, mm, t, labels, scale, margin)
    else:
        d_a, d_mm, d_t = reference.gradient(grad, a, mm, t, labels, scale, margin)
    d_unit = m_wide * d_a
    d_q = (d_unit - q_unit * (q_unit * d_unit).sum(1, keepdim=True)) * over
    d_m = q_unit * d_a + 2 * m_wide * d_mm
    return d_q.to(q.dtype), d_m.to(m.dtype), d_t.to(t.dtype)


@_gradient.register_fake
def _(grad, q, m, t, labels, scale, margin):  # type: ignore[no-untyped-def]
    return torch.empty_like(q), torch.empty_like(m), torch.empty_like(t)


def _keep_inputs(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, m, t, row_scale, t_mask, labels, epilogue, scale, margin = inputs
    ctx.save_for_backward(q, m, t, labels)
    ctx.has_gradient = row_scale is None and t_mask is None and epilogue != "distance"
    ctx.scale, ctx.margin = scale, margin


def _backward(ctx, grad):  # type: ignore[no-untyped-def]
    if not ctx.has_gradient:
        raise ValueError(
            "masked_distance: expected float targets without target masks for a gradient, got others. Detach q and m"
        )
    q, m, t, labels = ctx.saved_tensors
    gradients = torch.ops.dpm_edge.masked_distance_gradient(grad, q, m, t, labels, ctx.scale, ctx.margin)
    return *gradients, None, None, None, None, None, None


_masked_distance.register_autograd(_backward, setup_context=_keep_inputs)


@torch.library.custom_op("dpm_edge::masked_topk", mutates_args=())
def _masked_topk(
    q: Tensor,
    m: Tensor,
    t: Tensor,
    k: int,
    row_scale: Tensor | None,
    t_mask: Tensor | None,
    row_filter: Tensor | None,
    q_person: Tensor | None,
    q_camera: Tensor | None,
    t_person: Tensor | None,
    t_camera: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if _runs_kernel(t):
        from dpm_edge.kernels.masked_distance import launch

        filters = (row_filter, q_person, q_camera, t_person, t_camera)
        return launch.topk(q.contiguous(), m.contiguous(), t, k, row_scale, t_mask, filters)
    junk = None
    if q_person is not None and q_camera is not None and t_person is not None and t_camera is not None:
        junk = (q_person, q_camera, t_person, t_camera)
    keep = reference.kept(q.shape[0], t.shape[0], row_filter, junk)
    return reference.topk(reference.similarity(q, m, t, row_scale, t_mask), k, keep)


@_masked_topk.register_fake
def _(q, m, t, k, row_scale, t_mask, row_filter, q_person, q_camera, t_person, t_camera):  # type: ignore[no-untyped-def]
    shape = (q.shape[0], k)
    return q.new_empty(shape, dtype=torch.float32), q.new_empty(shape, dtype=torch.int64)
