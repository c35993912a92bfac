"""The losses of prototype learning. All are computed in float32, whatever the network ran in.

B pictures · C identities · d feature width · A heads · N patches · J joint width
Sources: masked logits, margin, HEM: DPM (ACM MM 2022, arXiv 2207.09046); ArcFace: arXiv 1801.07698; batch-hard
triplet: arXiv 1703.07737; class ignoring: SPT (AAAI 2024); i2t: CLIP-ReID (arXiv 2211.13977); anchoring: DPM++
(arXiv 2605.06637).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge import metrics
from dpm_edge.errors import MissingLibrary, SpecError, nearest

CLOSED = -1e4
"""Logit of a class that is ignored: exp of it is 0 beside any other, and its gradient is 0, not NaN."""


def masked_cosines(q_BD: Tensor, m_BD: Tensor, t_CD: Tensor) -> Tensor:
    """s(q, m, t) of every feature with every prototype, (B, C) float32."""
    return metrics.similarity(q_BD.float(), t_CD.float(), metric="masked", query_masks=m_BD.float())


def masked_logits(
    q_BD: Tensor, m_BD: Tensor, w_CD: Tensor, labels: Tensor, *, scale: float, margin: float, kernel: str
) -> Tensor:
    """ArcFace logits of the masked similarity with every prototype, (B, C) float32.

    kernel "triton" keeps nothing of B×C for the backward pass; "reference" is the same in plain torch.
    Raises MissingLibrary without triton, SpecError for another kernel.
    """
    if kernel == "reference":
        return arcface(masked_cosines(q_BD, m_BD, w_CD), labels, scale, margin)
    if kernel != "triton":
        raise SpecError(f"expected a loss.kernel, got {kernel!r}.{nearest(kernel, ('reference', 'triton'))}")
    try:
        from dpm_edge.kernels.masked_distance.op import margin_logits
    except ImportError as error:
        raise MissingLibrary("triton", "loss.kernel=triton", "pip install 'dpm-edge[gpu]'") from error
    return margin_logits(q_BD.float(), m_BD.float(), w_CD.float(), labels, scale=scale, margin=margin)


def arcface(cosines: Tensor, labels: Tensor, scale: float, margin: float) -> Tensor:
    """Logits with an additive angular margin on the true class: scale · cos(θ + margin).

    Below cos(π − margin), where cos(θ + margin) would rise again, the margin is taken off the cosine instead:
    cos θ − margin · sin(margin). (B, C) and (B,) int64 → (B, C).
    """
    true = labels.unsqueeze(1)
    cosine = metrics.clip_for_arccos(cosines.gather(1, true))
    sine = (1.0 - cosine * cosine).sqrt()
    turned = cosine * math.cos(margin) - sine * math.sin(margin)
    turned = torch.where(cosine > math.cos(math.pi - margin), turned, cosine - margin * math.sin(margin))
    return scale * cosines.scatter(1, true, turned)


def ignored_classes(labels: Tensor, donor_labels: Tensor, classes: int) -> Tensor:
    """(B, C) bool: the donor's class of each mixed picture, unless donor and picture are one identity."""
    donor = donor_labels.unsqueeze(1)
    return (donor == torch.arange(classes, device=donor.device)) & (donor != labels.unsqueeze(1))


def cross_entropy(logits: Tensor, labels: Tensor, ignored: Tensor | None = None, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the classes that are not ignored ((B, C) bool, or None); smoothing spreads over those."""
    if ignored is None:
        return F.cross_entropy(logits, labels, label_smoothing=smoothing)
    log_p = F.log_softmax(logits.masked_fill(ignored, CLOSED), dim=1)
    loss = -log_p.gather(1, labels.unsqueeze(1)).squeeze(1)
    if smoothing:
        spread = -log_p.masked_fill(ignored, 0.0).sum(1) / (~ignored).sum(1)
        loss = (1 - smoothing) * loss + smoothing * spread
    return loss.mean()


def batch_hard_triplet(f_BD: Tensor, labels: Tensor, donor_labels: Tensor | None = None) -> Tensor:
    """Soft-margin triplet on the hardest positive and negative of each anchor, Euclidean distance.

    A picture whose background comes from person p is no negative of p's pictures, and they are none of its.
    Anchors left without a positive or a negative do not count; a batch without any gives 0.
    """
    f = f_BD.float()
    distance = torch.cdist(f, f, compute_mode="donot_use_mm_for_euclid_dist") if len(f) <= 64 else _distances(f)
    same = labels.unsqueeze(0) == labels.unsqueeze(1)
    negative = ~same
    if donor_labels is not None:
        shown = donor_labels.unsqueeze(1) == labels.unsqueeze(0)  # [i, k]: i stands in k's scene
        negative = negative & ~shown & ~shown.T
    itself = torch.eye(len(f), dtype=torch.bool, device=f.device)
    positive = same & ~itself
    hardest_positive = distance.masked_fill(~positive, -1.0).amax(1)
    hardest_negative = distance.masked_fill(~negative, math.inf).amin(1)
    counted = positive.any(1) & negative.any(1)
    loss = F.softplus(hardest_positive - hardest_negative.masked_fill(~counted, 0.0))
    return (loss * counted).sum() / counted.sum().clamp(min=1)


def _distances(f: Tensor) -> Tensor:
    """Euclidean distances (B, B) by one matrix product, with a floor that keeps the root's gradient finite."""
    squares = (f * f).sum(1)
    return (squares.unsqueeze(0) + squares.unsqueeze(1) - 2 * f @ f.T).clamp(min=1e-12).sqrt()


def head_enrich(cls_attention: Tensor) -> Tensor:
    """HEM: mean over the batch of ‖ÂÂᵀ − I‖²_F / heads², Â the rows (heads) of the cls logits (B, A, N), normalised.

    DPM sums over a batch of 64; a weight of 0.1 there is the weight 0.1 · 64 here: `HEM_BATCH` carries the factor.
    """
    rows = F.normalize(cls_attention.float(), dim=2)
    heads = rows.shape[1]
    gram = rows @ rows.transpose(1, 2) - torch.eye(heads, device=rows.device)
    return HEM_BATCH * gram.square().sum((1, 2)).mean() / heads**2


HEM_BATCH = 64
"""Pictures that DPM sums HEM over."""


def image_to_text(joint_BJ: Tensor, texts_CJ: Tensor, labels: Tensor, ignored: Tensor | None = None) -> Tensor:
    """CE(f_p · Tᵀ) with label smoothing 0.1, over all identities' texts."""
    return cross_entropy(joint_BJ.float() @ texts_CJ.float().T, labels, ignored, smoothing=0.1)


def anchor_relations(prototypes: Tensor, texts: Tensor, people: Tensor, temperature: float) -> Tensor:
    """KL( softmax(T̂T̂ᵀ/τ) ‖ softmax(ŴŴᵀ/τ) ), mean over the batch's identities `people` (n,) int64."""
    w, t = F.normalize(prototypes[people].float(), dim=1), F.normalize(texts[people].float(), dim=1)
    target = F.log_softmax(t @ t.T / temperature, dim=1)
    return F.kl_div(F.log_softmax(w @ w.T / temperature, dim=1), target, reduction="batchmean", log_target=True)


def anchor_projected(prototypes: Tensor, texts: Tensor, people: Tensor, projection: Tensor) -> Tensor:
    """1 − cos(W·P, T), mean over `people`; P (d, J) is CLIP's own projection, which is not moved by this loss."""
    return (
        1.0
        - F.cosine_similarity(prototypes[people].float() @ projection.detach().float(), texts[people].float()).mean()
    )


def agreement(mask: Tensor, feature: Tensor, person: Tensor, sharpness: float = 1.0) -> Tensor:
    """Ours [R]: does each dimension of a picture's feature agree with its person? A gate is told the answer.

    A dimension agrees where |q̂ − t̂| is under the picture's median over the dimensions. Binary cross-entropy of the
    gates' logits over `sharpness`. mask (B, d) in (0, 1); feature (B, d) of the picture and person (B, d), such as its
    prototype, get no gradient. Half of the dimensions always agree, so a mask cannot win by opening or closing all.
    """
    with torch.no_grad():
        apart = (F.normalize(feature.float(), dim=1) - F.normalize(person.float(), dim=1)).abs()
        agrees = (apart < apart.median(dim=1, keepdim=True).values).float()
    return F.binary_cross_entropy_with_logits(torch.logit(mask.float(), eps=1e-6) / sharpness, agrees)
