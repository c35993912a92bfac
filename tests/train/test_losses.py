"""The losses against obvious loops and closed forms."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from dpm_edge.errors import SpecError
from dpm_edge.model.network import DPMOutput
from dpm_edge.train import losses
from dpm_edge.train.config import LossConfig
from dpm_edge.train.criterion import Criterion, Targets


def test_masked_cosines_are_the_cosine_with_the_masked_prototype():
    draw = torch.Generator().manual_seed(0)
    q, t = torch.randn(5, 7, generator=draw), torch.randn(3, 7, generator=draw)
    m = torch.rand(5, 7, generator=draw)
    wanted = torch.stack(
        [torch.stack([F.cosine_similarity(q[i], m[i] * t[j], dim=0) for j in range(3)]) for i in range(5)]
    )
    torch.testing.assert_close(losses.masked_cosines(q, m, t), wanted)


def test_both_kernels_give_the_same_logits_and_gradients():
    pytest.importorskip("triton", reason="loss.kernel=triton needs triton")
    draw = torch.Generator().manual_seed(5)
    q, m, w = torch.randn(9, 16, generator=draw), torch.rand(9, 16, generator=draw), torch.randn(11, 16, generator=draw)
    labels = torch.randint(11, (9,), generator=draw)
    found = []
    for kernel in ("reference", "triton"):
        leaves = [x.clone().requires_grad_() for x in (q, m, w)]
        logits = losses.masked_logits(*leaves, labels, scale=30.0, margin=0.3, kernel=kernel)
        found.append((logits, *torch.autograd.grad(F.cross_entropy(logits, labels), leaves)))
    for ours, theirs in zip(*found):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("angle", [0.1, 1.0, 2.0, 2.8, 3.1])
def test_arcface_adds_the_margin_to_the_true_angle_alone(angle):
    cosines = torch.tensor([[math.cos(angle), 0.3, -0.2]])
    logits = losses.arcface(cosines, torch.tensor([0]), 30.0, 0.3)
    past_the_turn = math.cos(angle) <= math.cos(math.pi - 0.3)
    wanted = math.cos(angle) - 0.3 * math.sin(0.3) if past_the_turn else math.cos(angle + 0.3)
    assert logits[0, 0].item() == pytest.approx(30 * wanted, abs=1e-3)
    torch.testing.assert_close(logits[0, 1:], 30 * cosines[0, 1:])


def test_arcface_falls_with_the_angle_everywhere():
    cosines = torch.cos(torch.linspace(0.02, 3.12, 200)).unsqueeze(1)
    logits = losses.arcface(cosines, torch.zeros(200, dtype=torch.int64), 30.0, 0.3).squeeze(1)
    assert (logits.diff() < 0).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_ignored_classes_leave_the_softmax(smoothing):
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 6, generator=draw, dtype=torch.float64, requires_grad=True)
    ignored = torch.zeros(2, 6, dtype=torch.bool)
    ignored[0, 4] = ignored[1, 4] = True
    loss = losses.cross_entropy(logits, torch.tensor([1, 2]), ignored, smoothing)
    left = logits[:, [0, 1, 2, 3, 5]]
    wanted = F.cross_entropy(left, torch.tensor([1, 2]), label_smoothing=smoothing)
    torch.testing.assert_close(loss, wanted)
    loss.backward()
    assert (logits.grad[:, 4] == 0).all()


def test_a_donor_of_the_same_identity_is_not_ignored():
    ignored = losses.ignored_classes(torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]), 4)
    assert ignored.nonzero().tolist() == [[1, 2]]


def hard_triplet_by_loops(f, labels, donors):
    terms = []
    for a in range(len(f)):
        shares_scene = lambda b: donors[a] == labels[b] or donors[b] == labels[a]  # noqa: B023
        positive = [(f[a] - f[b]).norm() for b in range(len(f)) if b != a and labels[b] == labels[a]]
        negative = [(f[a] - f[b]).norm() for b in range(len(f)) if labels[b] != labels[a] and not shares_scene(b)]
        if positive and negative:
            terms.append(F.softplus(max(positive) - min(negative)))
    return torch.stack(terms).mean()


@pytest.mark.parametrize("count", [12, 80])
def test_batch_hard_triplet_with_donors_is_what_loops_find(count):
    draw = torch.Generator().manual_seed(2)
    f = torch.randn(count, 5, generator=draw)
    labels = torch.arange(count) // 4
    donors = torch.where(torch.rand(count, generator=draw) < 0.5, labels, labels[torch.randperm(count, generator=draw)])
    found = losses.batch_hard_triplet(f, labels, donors)
    torch.testing.assert_close(found, hard_triplet_by_loops(f, labels, donors), rtol=1e-4, atol=1e-4)


def test_the_triplet_loss_reads_the_side_of_the_neck_that_it_is_told_to():
    draw = torch.Generator().manual_seed(3)
    f = 5 + 0.01 * torch.randn(16, 6, generator=draw)  # shrunk to a point, as without a neck
    neck = F.batch_norm(f, None, None, training=True)
    labels = torch.arange(16) // 4
    none = torch.zeros(16, 0)
    out = DPMOutput(f, neck, none, None, none, [], torch.zeros(16, 4))
    net = SimpleNamespace(prototypes=torch.zeros(4, 6))
    found = {}
    for side, feature in (("before", f), ("after", neck)):
        config = LossConfig(masked=False, hem=0.0, triplet=0.5, triplet_side=side)
        found[side] = Criterion(config)(out, net, Targets(labels=labels), 0.0)["triplet"]
        wanted = 0.5 * hard_triplet_by_loops(feature, labels, labels)
        torch.testing.assert_close(found[side], wanted, rtol=1e-3, atol=1e-4)
    assert abs(found["before"] - 0.5 * math.log(2)) < 0.03 < abs(found["after"] - 0.5 * math.log(2))
    with pytest.raises(SpecError, match="triplet_side"):
        Criterion(LossConfig(triplet_side="behind"))


def test_triplet_of_equal_features_has_finite_gradients():
    f = torch.ones(8, 3, requires_grad=True)
    losses.batch_hard_triplet(f, torch.arange(8) // 4).backward()
    assert torch.isfinite(f.grad).all()


def test_hem_is_zero_for_orthogonal_heads_and_largest_for_equal_ones():
    assert losses.head_enrich(torch.eye(3, 8).expand(5, 3, 8)).item() == pytest.approx(0.0, abs=1e-6)
    alike = losses.head_enrich(torch.ones(5, 3, 8))
    assert alike.item() == pytest.approx(losses.HEM_BATCH * 6 / 9, rel=1e-5)  # six entries of 1 off the diagonal


def test_anchors_vanish_where_prototypes_are_the_texts():
    draw = torch.Generator().manual_seed(3)
    texts = torch.randn(6, 8, generator=draw)
    people = torch.tensor([0, 2, 5])
    assert losses.anchor_relations(3 * texts, texts, people, 0.1).item() == pytest.approx(0.0, abs=1e-6)
    assert losses.anchor_projected(texts, texts, people, torch.eye(8)).item() == pytest.approx(0.0, abs=1e-6)
    other = torch.randn(6, 8, generator=draw)
    assert losses.anchor_relations(other, texts, people, 0.1) > 1e-4
    assert losses.anchor_projected(other, texts, people, torch.eye(8)) > 0.01


def test_anchor_relations_is_the_divergence_of_two_softmaxes():
    draw = torch.Generator().manual_seed(4)
    w, t = torch.randn(5, 4, generator=draw), torch.randn(5, 4, generator=draw)
    rows = lambda x: (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T / 0.2).softmax(1)
    p, q = rows(t), rows(w)
    wanted = (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(losses.anchor_relations(w, t, torch.arange(5), 0.2), wanted)
