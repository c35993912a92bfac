"""The mask generator taught alone: what is asked of a gate, the covers, and what stays as it was."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_world import TINY

from dpm_edge.errors import DataError
from dpm_edge.layouts import read_dataset, take
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.train import losses, mask, mask_command
from dpm_edge.train.config import LossConfig
from dpm_edge.train.criterion import Criterion, Targets
from dpm_edge.train.data import decode

SPEC = TINY.replace(height=64, width_px=32)
LESSON = mask.Lesson(pictures=128, epochs=4, batch=16, lr=5e-3)


def test_agreement_by_hand():
    """Distances 0.2, 0, 0.4, 1.0 to the person: the lower median is 0.2, so only the second dimension agrees."""
    feature = torch.tensor([[0.6, 0.0, 0.8, 0.0]])
    person = torch.tensor([[0.8, 0.0, 0.4, 1.0]])
    person = person / person.norm()
    apart = (feature - person).abs()[0].tolist()
    agrees = [distance < sorted(apart)[1] for distance in apart]
    gates = [0.9, 0.8, 0.3, 0.4]
    wanted = -np.mean([np.log(g if yes else 1 - g) for g, yes in zip(gates, agrees)])
    assert sum(agrees) == 1
    assert float(losses.agreement(torch.tensor([gates]), feature, person)) == pytest.approx(wanted, rel=1e-5)


def test_sharpness_scales_the_logits_that_are_wanted():
    draw = torch.Generator().manual_seed(0)
    logits, feature, person = (torch.randn(5, 16, generator=draw) for _ in range(3))
    soft = losses.agreement(torch.sigmoid(logits), feature, person)
    sharp = losses.agreement(torch.sigmoid(3 * logits), feature, person, sharpness=3.0)
    assert float(soft) == pytest.approx(float(sharp), rel=1e-4)


def test_only_the_mask_gets_a_gradient():
    gates, feature, person = (torch.rand(4, 8).requires_grad_() for _ in range(3))
    losses.agreement(gates, feature, person).backward()
    assert gates.grad is not None and gates.grad.abs().sum() > 0
    assert feature.grad is None and person.grad is None


def test_the_criterion_supervises_gates_where_it_is_asked_to():
    torch.manual_seed(0)
    net = DPM(SPEC, classes=6).train()
    torch.nn.init.normal_(net.mask_generator.linear.weight, std=0.1)
    targets = Targets(labels=torch.tensor([0, 1, 2, 3]))
    out = net.forward_train(torch.rand(4, 3, 64, 32))
    without = Criterion(LossConfig())(out, net, targets, 0.0)
    terms = Criterion(LossConfig(agreement=0.5, sharpness=3.0))(out, net, targets, 0.0)
    assert terms.keys() - without.keys() == {"agreement"}
    wanted = losses.agreement(out.mask, out.neck, net.prototypes[:4], 3.0)
    assert float(terms["agreement"].detach()) == pytest.approx(0.5 * float(wanted.detach()), rel=1e-6)
    terms["agreement"].backward()
    moved = {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert "mask_generator" in moved and not moved & {"prototypes", "neck"}


def test_covers_are_boxes_of_the_share_that_was_asked_for():
    pixels = torch.zeros(200, 3, 64, 32, dtype=torch.uint8)
    others = torch.full((3, 3, 64, 32), 255, dtype=torch.uint8)
    made = mask.covered(pixels, others, np.random.default_rng(0))
    assert (pixels == 0).all()
    assert torch.equal(made, mask.covered(pixels, others, np.random.default_rng(0)))
    changed = (made != 0).any(1)
    shares = []
    for one in changed:
        rows, columns = one.any(1).nonzero().flatten(), one.any(0).nonzero().flatten()
        if len(rows):
            shares.append(len(rows) * len(columns) / one.numel())
            assert one.float().sum() >= 0.98 * len(rows) * len(columns), "a full box, but for pixels that drew black"
    assert 0.08 < len(changed) / 200 - len(shares) / 200 < 0.25, "about 15 % stay whole"
    assert min(shares) > 0.07 and max(shares) < 0.62


def test_teaching_moves_the_mask_generator_alone_and_learns(train, capsys):
    torch.manual_seed(0)
    net = DPM(SPEC).eval()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    taught = mask.teach(net, train, LESSON)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "the given one is left"
    for name, value in taught.state_dict().items():
        if not name.startswith("mask_generator."):
            assert torch.equal(value, before[name]), name
    reported = [
        float(line.split("loss ")[1].split()[0]) for line in capsys.readouterr().err.splitlines() if "loss" in line
    ]
    assert len(reported) == 4 and reported[-1] < min(reported[0], np.log(2))
    x = torch.rand(6, 3, 64, 32) * 2 - 1
    with torch.inference_mode():
        (f0, m0), (f1, m1) = net(x), taught(x)
        mean = float(taught(mask.to_input(train.pixels, SPEC.preprocessing))[1].mean())
    assert torch.equal(f0, f1) and (m0 == 0.5).all() and m1.std(0).mean() > 1e-3
    again = mask.teach(net, train, LESSON, quiet=True)
    assert torch.equal(taught(x)[1], again(x)[1]), "the same seed teaches the same masks"
    assert taught.spec.mask_mean == pytest.approx(mean, abs=0.02)


def test_one_person_teaches_nothing(market):
    people = read_dataset(market, train=True).train
    one = decode(take(people, people.people == people.people[0]), SPEC.preprocessing, quiet=True)
    with pytest.raises(DataError, match="two people"):
        mask.teach(DPM(SPEC), one, LESSON, quiet=True)


@pytest.mark.slow
def test_the_command_writes_a_checkpoint_and_both_scores(market, tmp_path, capsys):
    torch.manual_seed(0)
    checkpoint.save(DPM(replace(SPEC, name="dpm-t")).eval(), tmp_path / "start")
    out = tmp_path / "taught"
    words = ["--data", str(market), "--out", str(out), "--shares", "0.3", "--epochs", "2", "--batch", "16"]
    assert mask_command.main([str(tmp_path / "start"), *words]) == 0
    held = json.loads((out / "results.json").read_text())
    before, after = held["before"], held["after"]
    assert before["summary"]["whole"]["plain_mAP"] == after["summary"]["whole"]["plain_mAP"], "features did not move"
    assert before["spread of a gate over queries"] == 0 < after["spread of a gate over queries"]
    assert before["another's mask, mAP"]["whole"] == pytest.approx(before["summary"]["whole"]["masked_mAP"], abs=0.01)
    assert "then train mask (seed 0)" in checkpoint.load(out / "model").spec.weights.recipe
    assert "after, occluded: mAP plain" in capsys.readouterr().out


def test_the_command_names_what_is_wrong(tmp_path, capsys):
    assert mask_command.main([str(tmp_path / "none"), "--data", str(tmp_path), "--out", str(tmp_path / "o")]) == 1
    assert "does not exist" in capsys.readouterr().err
