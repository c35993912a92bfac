"""What a run says while it works, and the epochs that a budget of minutes is worth."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace

import pytest
import torch

from dpm_edge.train import report, status
from dpm_edge.train.data import Pictures
from dpm_edge.train.run import EvaluationCosts
from dpm_edge.train.status import counted, working
from dpm_edge.train.watch import epochs_that_fit


def test_epochs_by_hand():
    """100 s: 4 epochs of 10 steps at 2 s are 80 s, and evaluations after epochs 2 and 4 of 10 s each the other 20."""
    asked = {"per_step": 2.0, "steps_done": 0, "batches": 10, "every": 2, "evaluation": 10.0}
    assert epochs_that_fit(100.0, **asked) == 4
    assert epochs_that_fit(99.0, **asked) == 3


def test_what_is_over_is_not_counted_again():
    """25 steps and an evaluation are over: to the end of epoch 4 it is 15 steps, one evaluation and two savings."""
    asked = {"per_step": 2.0, "steps_done": 25, "batches": 10, "every": 2, "evaluation": 10.0, "saving": 3.0}
    assert epochs_that_fit(15 * 2.0 + 10.0 + 2 * 3.0, **asked) == 4
    assert epochs_that_fit(15 * 2.0 + 10.0 + 2 * 3.0 - 0.1, **asked) == 3


def test_an_epoch_that_is_begun_is_finished():
    asked = {"per_step": 2.0, "steps_done": 25, "batches": 10, "every": 5, "evaluation": 1.0}
    assert epochs_that_fit(-50.0, **asked) == 3


@pytest.mark.parametrize("seed", range(20))
def test_the_most_epochs_are_taken_that_fit(seed):
    draw = torch.Generator().manual_seed(seed)
    per_step, evaluation, seconds = (
        float(x) for x in torch.rand(3, generator=draw) * torch.tensor([1.0, 30.0, 3000.0])
    )
    batches, every = (int(x) for x in torch.randint(1, 40, (2,), generator=draw))
    fits = [
        epochs
        for epochs in range(1, 10_000)
        if epochs * batches * per_step + math.ceil(epochs / every) * evaluation <= seconds
    ]
    asked = {"per_step": per_step, "steps_done": 0, "batches": batches, "every": every, "evaluation": evaluation}
    assert epochs_that_fit(seconds, **asked) == max(fits, default=1)


def test_the_end_is_foreseen_from_the_first_evaluation(monkeypatch):
    """Two shares of three kinds and the whole queries: 7 sets of 10 queries and 30 gallery pictures at 0.1 s each, and
    7 rankings on both sides of the neck at 2 s, after 5 s of covering."""
    monkeypatch.setattr(report, "covering_seconds", lambda *_: 5.0)
    config = SimpleNamespace(evaluate=SimpleNamespace(occlusion=True, shares=(0.0, 0.2, 0.4), covered=""))
    run = SimpleNamespace(config=config, costs=EvaluationCosts(4.0, 2.0), query=[0] * 10, gallery=[0] * 30, train=[])
    assert report.seconds_at_the_end(run) == pytest.approx(5 + 0.1 * (7 * 10 + 30) + 2 * 7 * 2)


def test_covering_takes_as_long_for_twice_the_queries_twice(monkeypatch):
    from dpm_edge.train import evaluate

    pixels = torch.randint(0, 256, (8, 3, 64, 32), dtype=torch.uint8)
    few = Pictures(pixels, torch.arange(8), torch.arange(8), [str(i) for i in range(8)])
    clock = iter(range(100))
    monkeypatch.setattr(evaluate.time, "perf_counter", lambda: float(next(clock)))
    monkeypatch.setattr(evaluate, "cores", lambda: 2)
    each = evaluate.covering_seconds(few, few, (0.0, 0.2)) - evaluate.WORKERS_START
    assert each == pytest.approx(1 / 4 * 8 / 2)  # a second for four queries of all kinds, eight of them, two processes


def test_lines_come_while_one_item_takes_long(monkeypatch, capsys):
    monkeypatch.setattr(status, "EVERY", 0.02)
    for item in counted([1, 2, 3], what="pictures"):
        if item == 2:
            time.sleep(0.3)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) >= 3 and all(line.startswith("pictures: 1 of 3, 0 s so far, about") for line in lines[1:-1])


def test_nothing_is_said_after_the_end_or_when_quiet(monkeypatch, capsys):
    monkeypatch.setattr(status, "EVERY", 0.02)
    with working("evaluating"):
        time.sleep(0.1)
    assert "evaluating: 0 s so far" in capsys.readouterr().err
    with working("evaluating", quiet=True):
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


def test_two_lines_are_less_than_ten_seconds_apart():
    assert status.EVERY < 10
