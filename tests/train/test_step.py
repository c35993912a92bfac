"""What a training step asks of the device, and that the fast forms of it are the plain ones."""

from __future__ import annotations

import pytest
import torch
from step_counts import Counted
from torch.optim.swa_utils import AveragedModel

from dpm_edge.errors import SpecError
from dpm_edge.model.network import DPM
from dpm_edge.train import losses, optimisation, prompts
from dpm_edge.train.config import override
from dpm_edge.train.criterion import Criterion, Targets
from dpm_edge.train.loop import train_step
from dpm_edge.train.moving_average import MovingAverage
from dpm_edge.train.run import forward_of, prepare

MOST_OPERATIONS = 700
"""Of a joint step of the toy network (4 blocks), forward to moving average. Each costs the host some microseconds."""


def counted_step(run) -> Counted:
    rows = torch.from_numpy(run.sampler.epoch(0)[0])
    train_step(run, rows, 0.5)
    with Counted() as counted:
        train_step(run, rows, 0.5)
    return counted


@pytest.mark.parametrize(
    "words", [[], ["model.camera=1"], ["optimiser.optimisation=alternating"], ["loss.masked=false"]]
)
def test_a_step_waits_for_nothing_on_the_device(market, small, tmp_path, words):
    run = prepare(override(small, words), market, tmp_path, quiet=True)
    counted = counted_step(run)
    assert counted.summary()["waits"] == 0, counted.operations
    if not words:
        assert counted.summary()["operations"] < MOST_OPERATIONS, counted.operations


def test_a_step_with_texts_waits_for_nothing_either(market, small, tmp_path):
    prompts.save_texts(tmp_path / "t.safetensors", torch.randn(24, 16), torch.arange(1, 25))
    words = [f"loss.texts={tmp_path / 't.safetensors'}", "loss.i2t=1", "loss.anchor=1", "loss.anchor_epochs=1"]
    counted = counted_step(prepare(override(small, [*words, "transfer.probability=0"]), market, tmp_path, quiet=True))
    assert counted.summary()["waits"] == 0, counted.operations


def test_the_counter_sees_waits():
    x = torch.arange(4.0)
    for wait in (lambda: x.sum().item(), lambda: x[x > 1], lambda: x.nonzero(), lambda: torch.tensor([1.0, 2.0])):
        with Counted() as counted:
            wait()
        assert counted.summary()["waits"] == 1
    with Counted() as counted:
        x.view(2, 2).add(1).mul_(2)
    assert counted.summary() == {"operations": 2, "views": 1, "waits": 0}


def test_the_average_is_torchs_own(small):
    def rising(averaged, current, count):
        now = min(0.7, (1 + int(count)) / (10 + int(count)))
        for a, p in zip(averaged, current):
            a.mul_(now).add_(p, alpha=1 - now)

    torch.manual_seed(0)
    net = DPM(small_spec(), classes=3)
    net.backbone.conv1.requires_grad_(False)
    ours, theirs = MovingAverage(net, 0.7), AveragedModel(net, multi_avg_fn=rising)
    for _ in range(12):
        with torch.no_grad():
            for p in net.parameters():
                p.add_(torch.randn_like(p) * p.requires_grad)
            for b in net.buffers():
                b.add_(1)
        ours.update()
        theirs.update_parameters(net)
    with torch.no_grad():
        for a, b in zip(theirs.module.buffers(), net.buffers()):
            a.copy_(b)  # torch's copies them only where use_buffers is off and the first update is over
    torch.testing.assert_close(dict(ours.module.state_dict()), dict(theirs.module.state_dict()))
    again = MovingAverage(net, 0.7)
    again.load_state_dict(ours.state_dict())
    assert again.count == 12 and torch.equal(again.module.neck.weight, ours.module.neck.weight)
    assert not any(p.requires_grad for p in ours.module.parameters())


def small_spec():
    from toy_world import TINY

    return TINY.replace(height=64, width_px=32)


def test_ignored_classes_are_a_loops():
    labels, donors = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 1, 0, 2])
    wanted = torch.zeros(4, 5, dtype=torch.bool)
    for row, (i, j) in enumerate(zip(labels.tolist(), donors.tolist())):
        wanted[row, j] = i != j
    assert torch.equal(losses.ignored_classes(labels, donors, 5), wanted)


@pytest.mark.parametrize("factor", [0.0, 0.25])
def test_the_mask_generator_has_a_rate_and_a_decay_of_its_own(market, small, tmp_path, factor):
    words = ["optimiser.mask_lr=3", f"optimiser.mask_weight_decay={factor}", "optimiser.weight_decay=0.04"]
    run = prepare(override(small, [*words, "transfer.probability=0"]), market, tmp_path, quiet=True)
    optimisation.set_rate(run.steppers, 0.1)
    of = {id(p): g for s in run.steppers for g in s.param_groups for p in g["params"]}
    mask, other = run.net.mask_generator.linear.weight, run.net.backbone.conv1.weight
    assert of[id(mask)]["lr"] == pytest.approx(0.3) and of[id(other)]["lr"] == pytest.approx(0.1)
    assert of[id(mask)]["weight_decay"] == pytest.approx(0.04 * factor)
    assert of[id(other)]["weight_decay"] == 0.04
    run.net.zero_grad()
    before = mask.detach().clone().normal_()
    with torch.no_grad():
        mask.copy_(before)
    for p in optimisation.owned(run.steppers[0]):
        p.grad = torch.zeros_like(p)
    run.steppers[0].step()
    torch.testing.assert_close(mask.detach(), before * (1 - 0.3 * 0.04 * factor))


@pytest.mark.slow
def test_forward_and_losses_compile_whole_and_come_to_the_same(small):
    """One graph each, no break: what runs on a GPU with fused kernels. aot_eager traces without writing kernels."""
    torch.manual_seed(0)
    net = DPM(small_spec(), classes=5).train()
    images, labels = torch.randn(8, 3, 64, 32), torch.arange(8) // 2
    targets = Targets(labels, labels.flip(0), labels[::2])
    small.loss.anchor, small.loss.i2t = 1.0, 1.0
    plain = Criterion(small.loss, torch.randn(5, 16))
    whole = torch.compile(net.forward_train, backend="aot_eager", fullgraph=True)
    terms = torch.compile(plain._terms, backend="aot_eager", fullgraph=True)
    found = {}
    for way, forward in (("eager", net.forward_train), ("compiled", whole)):
        net.zero_grad()
        plain._computed = plain._terms if way == "eager" else terms
        values = plain(forward(images), net, targets, 0.05)
        torch.stack(list(values.values())).sum().backward()
        gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        found[way] = ({n: v.detach() for n, v in values.items()}, gradients)
    assert {"id_masked", "triplet", "hem", "i2t", "anchor"} < set(found["eager"][0])
    torch.testing.assert_close(found["compiled"][0], found["eager"][0])
    torch.testing.assert_close(found["compiled"][1], found["eager"][1], rtol=1e-3, atol=1e-4)


def test_a_way_to_compile_that_does_not_exist_or_cannot_be_is_refused(small):
    net = DPM(small_spec())
    with pytest.raises(SpecError, match="reduce-overhead"):
        forward_of(net, "reduce_overhead", 1)
    with pytest.raises(SpecError, match="expected one process"):
        forward_of(net, "default", 2)
