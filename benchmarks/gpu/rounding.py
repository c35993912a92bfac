"""How far a kernel's results may be from float64's: by a share of the terms that they are made of.

B queries, N targets, D dimensions; everything here is computed in float64
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from dpm_edge.kernels.masked_distance import contract, reference

Row = dict[str, Any]


def type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def row_of(
    what: str, dtype: torch.dtype, shape: tuple[int, ...], came: Tensor, wanted: Tensor, tolerance: float, of: Tensor
) -> Row:
    """The worst error, each element's over its own `of`: the sum of the sizes of the terms that it is made of.

    Rounding changes each term by a share of that term, so this is what it can be held to. The value itself is not: its
    terms may cancel, and with one target nothing else in the row keeps the scale from vanishing.
    """
    live = wanted.isfinite()
    scale = of[live].clamp(min=1e-3 * float(of[live].max())) if live.any() else None
    error = float(((came.double() - wanted)[live].abs() / scale).max()) if scale is not None else 0.0
    finite = bool((came.isfinite() == live).all()) and not bool(came.isnan().any())
    return {
        "name": what,
        "dtype": type_name(dtype),
        "shape": list(shape),
        "error": error,
        "tolerance": tolerance,
        "ok": bool(finite and error < tolerance),
    }


def reach(q: Tensor, m: Tensor, t: Tensor, row_scale: Tensor | None = None, t_mask: Tensor | None = None) -> Tensor:
    """(B, N) float64: the similarity if no two of its terms cancelled, Σ|q̂ m t| / sqrt(Σ m² t²); at most 1.

    With operands of unit rounding u a similarity is off by at most 2u of it: u from q̂⊙m, u from the root of two
    rounded squares.
    """
    return reference.similarity(q.double().abs(), m.double(), t.double().abs(), row_scale, t_mask)


NEAR = 0.8
"""Largest |similarity| at a label. Towards ±1 the margin's slope, s/sqrt(1 − s²), and with it any rounding, has no
bound; one target that lies on its query would fail the best of kernels."""


def labels_for(similarity: Tensor) -> Tensor | None:
    """(B,) int32: a random target of each query's among those with |similarity| < NEAR; None where a query has none."""
    fits = similarity.abs() < NEAR
    if not fits.any(1).all():
        return None
    lots = torch.rand(similarity.shape, device=similarity.device).masked_fill(~fits, -1)
    return lots.argmax(1).to(torch.int32)


def margin_slope(s: Tensor, labels: Tensor) -> Tensor:
    """(B, N): by how much a change of the similarity s changes its logit, over SCALE; 1 but at the labels."""
    cosine, sine = math.cos(contract.MARGIN), math.sin(contract.MARGIN)
    true = torch.arange(s.shape[1], device=s.device) == labels[:, None]
    turned = torch.where(s > -cosine, cosine + sine * s * (1 - s * s).clamp(min=1e-9).rsqrt(), 1)
    return torch.where(true, turned.abs(), 1)


def margin_row(
    came: Tensor, similarity: Tensor, near: Tensor, labels: Tensor, dtype: torch.dtype, shape: tuple[int, ...]
) -> Row:
    """Logits that came against those of the exact similarity (B, N).

    Held to SCALE · slope · reach: the logit is a function of the similarity, so the similarity's own rounding arrives
    times the slope. Over the logit itself one could not divide: scale · cos(θ + margin) passes through 0.
    """
    logits = reference.with_margin(similarity, labels, contract.SCALE, contract.MARGIN)
    of = contract.SCALE * margin_slope(similarity, labels) * near
    return row_of("margin logits", dtype, shape, came, logits, contract.TOLERANCE[type_name(dtype)], of)


def gradient_scales(q: Tensor, m: Tensor, t: Tensor, labels: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sums of the sizes of the terms of ∂q (B, D), ∂m (B, D) and ∂t (N, D), all float64.

    With n = ‖m t‖, s = q̂·(m t)/n, G = SCALE · slope · |grad|:  ∂q = (G m t/n − q̂ (…·q̂)) / ‖q‖,
    ∂m = G (q̂ t/n − s m t²/n²),  ∂t = G (q̂ m/n − s m² t/n²).
    """
    s, near = reference.similarity(q, m, t), reach(q, m, t)
    length = q.norm(dim=1, keepdim=True)
    unit = q.abs() / length
    root = ((m * m) @ (t * t).T).sqrt()
    g = contract.SCALE * margin_slope(s, labels) * grad.abs()
    p, r = g / root, g * s.abs() / root**2
    first = p @ t.abs()
    of_q = (first * m + unit * (g * near).sum(1, keepdim=True)) / length
    return of_q, first * unit + (r @ (t * t)) * m, p.T @ (unit * m) + (r.T @ (m * m)) * t.abs()
