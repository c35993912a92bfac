"""The obvious version of masked_distance, in torch: the CPU path, and what every test trusts.

    B queries, N targets, D feature dimensions, k results

    s(q, m, t) = Σ_d q̂_d m_d t̂_d / sqrt(Σ_d m_d² t̂_d²)          (DPM, ACM MM 2022, arXiv 2207.09046)

Everything is computed in the queries' own type when that is float32 or float64, otherwise in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dpm_edge.kernels.masked_distance.contract import ARCCOS_CLIP


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _root(x: Tensor) -> Tensor:
    """√x, and 0 with a gradient of 0 where x is 0."""
    some = x > 0
    return torch.where(some, torch.where(some, x, 1).sqrt(), 0)


def _over(x: Tensor, y: Tensor) -> Tensor:
    """x / y, and 0 where y is 0."""
    return torch.where(y > 0, x / torch.where(y > 0, y, 1), 0)


def similarity(
    q: Tensor, m: Tensor, t: Tensor, row_scale: Tensor | None = None, t_mask: Tensor | None = None
) -> Tensor:
    """(B, N) similarity in [−1, 1]; 0 where nothing of a query or a target is left under the mask.

    q, m: (B, D) queries and their masks. t: (N, D) targets; row_scale: (N,) for int8 targets. t_mask: (N, D) the
    targets' own masks: then both act, m ⊙ t_mask.
    """
    q, m, t = _wide(q), _wide(m), t.to(_wide(q).dtype)
    if row_scale is not None:
        t = t * row_scale.to(t)[:, None]
    if t_mask is not None:
        t = t * t_mask.to(t)
    q_unit = _over(q, _root((q * q).sum(-1, keepdim=True)))
    return _over((q_unit * m) @ t.T, _root((m * m) @ (t * t).T))


def _clip(s: Tensor) -> Tensor:
    return s.clamp(-1 + ARCCOS_CLIP, 1 - ARCCOS_CLIP)


def distance(q: Tensor, m: Tensor, t: Tensor, row_scale: Tensor | None = None, t_mask: Tensor | None = None) -> Tensor:
    """(B, N) arccos of the similarity, radians."""
    return _clip(similarity(q, m, t, row_scale, t_mask)).arccos()


def with_margin(s: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """ArcFace logits (arXiv 1801.07698): scale · cos(arccos(s) + margin) at each row's label, scale · s elsewhere.

    Where s ≤ cos(π − margin) the angle would pass π: there s − margin·sin(margin). s: (B, C); labels: (B,) int.
    """
    clipped = _clip(s)
    far = s * math.cos(margin) - (1 - clipped * clipped).sqrt() * math.sin(margin)
    penalised = torch.where(s > -math.cos(margin), far, s - margin * math.sin(margin))
    true = torch.arange(s.shape[1], device=s.device) == labels[:, None]
    return scale * torch.where(true, penalised, s)


def margin_logits(q: Tensor, m: Tensor, w: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """(B, C) logits of prototypes w (C, D) for features q (B, D) under masks m (B, D)."""
    return with_margin(similarity(q, m, w), labels, scale, margin)


def gradient(
    grad: Tensor, a: Tensor, mm: Tensor, t: Tensor, labels: Tensor | None, scale: float, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to A = q̂⊙m (B, D), MM = m⊙m (B, D) and t (N, D), in the type of a.

    grad: (B, N), of the similarity, or of the margin logits where labels (B,) are given. With r = 1/sqrt(MM·t²),
    s = (A·t) r, G = ∂L/∂s, P = G r, R = G s r²:  ∂A = P t,  ∂MM = −½ R t²,  ∂t = Pᵀ A − (Rᵀ MM) ⊙ t.
    """
    t, grad = t.to(a.dtype), grad.to(a.dtype)
    r = _over(torch.ones_like(grad), _root(mm @ (t * t).T))
    s = (a @ t.T) * r
    if labels is not None:
        slope = torch.where(s.abs() <= 1 - ARCCOS_CLIP, s * (1 - _clip(s) ** 2).rsqrt(), 0)
        turned = torch.where(s > -math.cos(margin), math.cos(margin) + math.sin(margin) * slope, 1)
        true = torch.arange(s.shape[1], device=s.device) == labels[:, None]
        grad = grad * scale * torch.where(true, turned, 1)
    p, r2 = grad * r, grad * s * r * r
    return p @ t, -0.5 * (r2 @ (t * t)), p.T @ a - (r2.T @ mm) * t


def kept(
    batch: int, count: int, row_filter: Tensor | None, junk: tuple[Tensor, Tensor, Tensor, Tensor] | None
) -> Tensor | None:
    """(B, N) or (1, N) bool: which targets each query may return; None keeps all.

    row_filter: uint8 (N,), non-zero keeps, or (B, ceil(N/8)) bits, least significant first. junk: person (B,), camera
    (B,) of the queries, person (N,), camera (N,) of the targets; one person under one camera is dropped.
    """
    keep = None
    if row_filter is not None and row_filter.ndim == 1:
        keep = (row_filter != 0)[None]
    elif row_filter is not None:
        at = torch.arange(count, device=row_filter.device)
        keep = (row_filter[:, at // 8] >> (at % 8).to(torch.uint8)) & 1 != 0
    if junk is not None:
        q_person, q_camera, t_person, t_camera = junk
        same = (q_person[:, None] == t_person) & (q_camera[:, None] == t_camera)
        keep = ~same if keep is None else keep & ~same
    return keep


def topk(s: Tensor, k: int, keep: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Best k of each row of s (B, N): scores fp32 (B, k) falling, rows int64 (B, k); ties go to the lower row.

    Where fewer than k are kept: score −inf, row −1.
    """
    if keep is not None:
        s = torch.where(keep, s, -torch.inf)
    if s.shape[1] < k:
        s = torch.nn.functional.pad(s, (0, k - s.shape[1]), value=-torch.inf)
    scores, rows = s.sort(dim=1, descending=True, stable=True)
    scores, rows = scores[:, :k].float().contiguous(), rows[:, :k]
    return scores, torch.where(scores == -torch.inf, -1, rows)
