"""The masked metric: the one place with its formula. Takes numpy arrays or torch tensors, whichever it is given.

    B queries, N targets, D feature dimensions

    s(q, m, t) = Σ_d q̂_d m_d t̂_d / sqrt(Σ_d m_d² t̂_d²)      hats: L2-normalised       (DPM, arXiv 2207.09046)

Both sums are inner products over t, so that S = (q̂⊙m) T̂ᵀ / sqrt((m⊙m)(T̂⊙T̂)ᵀ): two matrix products, and no masked
copy of any target. Directional: only the query's mask acts; `mutual` (ours) uses m = m_q ⊙ m_t.
The query keeps its whole norm in both: a pair that sees little in common cannot score high. Dividing by ‖m ⊙ q̂‖ too
would give a pair with one common dimension ±1, and ranks far below the plain metric (tests/test_metrics.py).
"""

from __future__ import annotations

from typing import Any, TypeVar

from dpm_edge.errors import SpecError, nearest

Array = TypeVar("Array", bound=Any)

METRICS = ("plain", "masked", "mutual")
EPSILON = 1e-12
"""Floor of a squared norm. A zero mask or a zero feature has similarity 0 with everything."""
MASK_METRICS = ("masked", "mutual")
"""Those that compare under masks: of a model without masks they would be the cosine under another name."""
ARCCOS_CLIP = 1e-5
"""Similarities are clipped to ±(1 − this) before arccos."""


def normalise(x_ND: Array) -> Array:
    """Rows scaled to L2 norm 1; a zero row stays zero. (N, D) → (N, D), same dtype."""
    return x_ND / ((x_ND * x_ND).sum(-1)[..., None].clip(min=EPSILON)) ** 0.5


def chosen_metric(metric: str | None, has_masks: bool) -> str:
    """The metric that was asked for, or by default "masked", and "plain" of a model without masks.

    Raises:
        SpecError: it is unknown, or wants masks that the model does not have.
    """
    if metric is None:
        return "masked" if has_masks else "plain"
    if metric not in METRICS:
        raise SpecError(f"expected a metric, got {metric!r}.{nearest(metric, METRICS)}")
    if metric in MASK_METRICS and not has_masks:
        raise SpecError(
            f"expected a model with masks for metric {metric!r}, got another project's network, which has none. Use "
            "metric 'plain', or leave the metric out"
        )
    return metric


def similarity(
    q_BD: Array,
    t_ND: Array,
    *,
    metric: str = "masked",
    query_masks: Array | None = None,
    target_masks: Array | None = None,
) -> Array:
    """Similarity of every query with every target, in [−1, 1]; higher is nearer.

    Args:
        q_BD: (B, D) float queries; need not be normalised.
        t_ND: (N, D) float targets; need not be normalised.
        metric: "plain" (cosine), "masked" (the query's mask acts) or "mutual" (both masks act).
        query_masks: (B, D) float in 0..1; for "masked" and "mutual".
        target_masks: (N, D) float in 0..1; for "mutual".

    Returns:
        (B, N), dtype of the inputs.

    Raises:
        SpecError: the metric is unknown, a mask that it needs is missing, or shapes differ.
    """
    if metric not in METRICS:
        raise SpecError(f"expected a metric, got {metric!r}.{nearest(metric, METRICS)}")
    if q_BD.ndim != 2 or t_ND.ndim != 2 or q_BD.shape[1] != t_ND.shape[1]:
        raise SpecError(f"expected (B, D) queries and (N, D) targets, got {tuple(q_BD.shape)} and {tuple(t_ND.shape)}")
    needed = [("query_masks", query_masks, q_BD)] if metric != "plain" else []
    needed += [("target_masks", target_masks, t_ND)] if metric == "mutual" else []
    for name, mask, beside in needed:
        if mask is None or tuple(mask.shape) != tuple(beside.shape):
            came = "nothing" if mask is None else tuple(mask.shape)
            raise SpecError(f"expected {name} of shape {tuple(beside.shape)} for metric {metric!r}, got {came}")
    q, t = normalise(q_BD), normalise(t_ND)
    if metric == "plain":
        return q @ t.T
    assert query_masks is not None, "checked above"
    if metric == "masked":
        return _masked(q * query_masks, query_masks * query_masks, t, t * t)
    assert target_masks is not None, "checked above"
    visible = target_masks * t
    return _masked(q * query_masks, query_masks * query_masks, visible, visible * visible)


def _masked(qm: Array, mm: Array, t: Array, tt: Array) -> Array:
    """Σ qm·t over the root of Σ mm·tt: zero over the floor where nothing is left of the target."""
    return (qm @ t.T) / (mm @ tt.T).clip(min=EPSILON) ** 0.5


def clip_for_arccos(s: Array) -> Array:
    """s clipped to ±(1 − 1e-5), so that arccos and its gradient stay finite; distance = arccos of it, radians."""
    return s.clip(-1 + ARCCOS_CLIP, 1 - ARCCOS_CLIP)
