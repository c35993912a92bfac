"""From a network's output to one loss: the terms that the config asks for, weighted and named."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.errors import SpecError, nearest
from dpm_edge.model.network import DPM, DPMOutput
from dpm_edge.spec import NECKS
from dpm_edge.train import losses, sight
from dpm_edge.train.config import LossConfig


@dataclass(frozen=True)
class Targets:
    """What a batch is supervised with."""

    labels: Tensor
    """(B,) int64 in 0..C−1."""
    donor_labels: Tensor | None = None
    """(B,) int64: whose scene each picture stands in; its own label where SPT did nothing. None: no SPT."""
    people: Tensor | None = None
    """(P,) int64: the batch's identities, each once; anchoring reads it."""
    covered: Tensor | None = None
    """(B,) bool: pictures that something was pasted over; None: no covering."""
    shares: Tensor | None = None
    """(B, 2, h, w) float32: the share of each patch that shows the person, and that is hidden by something."""
    taught: Tensor | None = None
    """(B, T) float32: a teacher's L2-normalised features of the uncovered pictures."""


class Criterion:
    """L = L_id + triplet + HEM (+ i2t + anchor), method sections 3, 5 and 6; agreement is ours."""

    def __init__(self, config: LossConfig, texts: Tensor | None = None, compiled: str = "") -> None:
        """compiled: a mode of torch.compile, or "" for none. Raises SpecError for an unknown side of the neck."""
        if config.triplet_side not in NECKS:
            raise SpecError(
                f"expected a loss.triplet_side, got {config.triplet_side!r}.{nearest(config.triplet_side, NECKS)}"
            )
        self.config, self.texts = config, texts
        self._computed = torch.compile(self._terms, mode=compiled) if compiled else self._terms

    def __call__(self, out: DPMOutput, net: DPM, targets: Targets, progress: float) -> dict[str, Tensor]:
        """Weighted terms by name, scalars float32; their sum is the loss. progress: share of the epochs done, 0..1."""
        weight = self.config.anchor * max(0.0, 1.0 - progress / self.config.anchor_epochs)
        anchored = self.texts is not None and weight > 0
        anchor = torch.full((), weight, device=out.f.device) if anchored else None  # a tensor: compiled code takes any
        with torch.autocast(out.f.device.type, enabled=False):
            return self._computed(out, net, targets, anchor)

    def _terms(self, out: DPMOutput, net: DPM, targets: Targets, anchor: Tensor | None) -> dict[str, Tensor]:
        config, labels, donors = self.config, targets.labels, targets.donor_labels
        assert net.prototypes is not None and out.logits is not None
        ignored = losses.ignored_classes(labels, donors, len(net.prototypes)) if donors is not None else None
        plain = losses.cross_entropy(out.logits, labels, ignored, config.label_smoothing)
        terms = {"id_plain": plain}
        if config.masked:
            logits = losses.masked_logits(
                out.neck,
                out.mask,
                net.prototypes,
                labels,
                scale=config.scale,
                margin=config.margin,
                kernel=config.kernel,
            )
            terms = {"id_plain": 0.5 * plain, "id_masked": 0.5 * losses.cross_entropy(logits, labels, ignored)}
            if config.agreement:
                prototypes = net.prototypes[labels]
                gates = losses.agreement(out.mask, out.neck, prototypes, config.sharpness)
                terms["agreement"] = config.agreement * gates
        if config.triplet:
            feature = out.side(config.triplet_side)
            terms["triplet"] = config.triplet * losses.batch_hard_triplet(feature, labels, donors)
        if config.hem:
            terms["hem"] = config.hem * losses.head_enrich(out.cls_attention)
        terms.update(self._sight_terms(out, net, targets))
        if self.texts is not None:
            terms.update(self._text_terms(out, net, targets, ignored, anchor))
        return terms

    def _sight_terms(self, out: DPMOutput, net: DPM, targets: Targets) -> dict[str, Tensor]:
        config, terms = self.config, {}
        if config.visibility and targets.shares is not None and out.visibility is not None:
            terms["visibility"] = config.visibility * sight.visibility_loss(out.visibility, targets.shares)
        if config.pull and targets.covered is not None:
            terms["pull"] = config.pull * sight.pull(out.neck, targets.labels, targets.covered)
        if config.distil and targets.taught is not None:
            terms["distil"] = config.distil * sight.distil(out.neck, targets.taught)
        if config.own and targets.taught is not None:
            feature = out.side(net.spec.neck).float()
            terms["own"] = config.own * (1 - F.cosine_similarity(feature, targets.taught, dim=1)).mean()
        return terms

    def _text_terms(
        self, out: DPMOutput, net: DPM, targets: Targets, ignored: Tensor | None, anchor: Tensor | None
    ) -> dict[str, Tensor]:
        config, texts = self.config, self.texts
        terms: dict[str, Tensor] = {}
        assert texts is not None and out.joint is not None and net.prototypes is not None
        if config.i2t:
            terms["i2t"] = config.i2t * losses.image_to_text(out.joint, texts, targets.labels, ignored)
        if anchor is not None:
            people = targets.people
            assert people is not None, "anchoring needs the batch's identities"
            if config.anchor_form == "projected":
                assert net.backbone.proj is not None, "a network without a projection gives no joint vector"
                pull = losses.anchor_projected(net.prototypes, texts, people, net.backbone.proj)
            else:
                pull = losses.anchor_relations(net.prototypes, texts, people, config.anchor_temperature)
            terms["anchor"] = anchor * pull
        return terms
