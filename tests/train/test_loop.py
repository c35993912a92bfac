"""Whole runs at toy size: learning, resuming, two processes, alternation, what stops a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from histogram import histogram_scores
from toy_world import SMALL, TINY

from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.train import cli, loop, optimisation, report, status, watch
from dpm_edge.train.config import override
from dpm_edge.train.evaluate import evaluate
from dpm_edge.train.loop import fit, train_step
from dpm_edge.train.report import comparison
from dpm_edge.train.run import EvaluationCosts, prepare
from dpm_edge.train.watch import LossIsNaN

WORKER = Path(__file__).parent / "train_worker.py"


def losses_of(out: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


@pytest.mark.slow
def test_a_run_learns_to_tell_unseen_people_apart(market, small, tmp_path):
    config = override(
        small, ["schedule.epochs=20", "evaluate.every=20", "transfer.probability=0", "augment.erase=0", "log_every=10"]
    )
    run = prepare(config, market, tmp_path, quiet=True)
    results = fit(run)
    logged = losses_of(tmp_path)
    assert logged[max(logged)] < 0.75 * logged[1]
    floor = histogram_scores(run.query, run.gallery)["mAP"]
    assert results["history"][-1]["plain"]["mAP"] > floor + 20
    kept = checkpoint.load(tmp_path / "best")
    assert kept.prototypes is None and kept.spec.weights.recipe == "market_tiny"
    assert kept.spec.mask_mean == pytest.approx(0.5, abs=0.3) and kept.spec.mask_mean != 0.5


@pytest.mark.slow
def test_killed_and_resumed_is_the_uninterrupted_run(market, small, tmp_path):
    words = ["schedule.epochs=3", "evaluate.every=3"]
    whole = fit(prepare(override(small, words), market, tmp_path / "whole", quiet=True))
    part = tmp_path / "part"
    command = [sys.executable, str(WORKER), str(market), str(part), *words]
    child = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True)
    deadline = time.monotonic() + 300
    while not ((part / "resume.pt").is_file() and (part / "log.jsonl").read_text().count("\n") > 3):
        assert time.monotonic() < deadline and child.poll() is None, "the run ended before it could be killed"
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (part / "results.json").exists()
    resumed = fit(prepare(override(small, words), market, part, quiet=True))
    assert losses_of(part) == losses_of(tmp_path / "whole")
    assert resumed["history"] == whole["history"]


def test_resuming_with_other_settings_is_refused_by_name(market, small, tmp_path):
    fit(prepare(override(small, ["schedule.epochs=1"]), market, tmp_path, quiet=True))
    with pytest.raises(CheckpointError, match=r"optimiser\.lr=0\.5"):
        fit(prepare(override(small, ["schedule.epochs=1", "optimiser.lr=0.5"]), market, tmp_path, quiet=True))
    (tmp_path / "resume.pt").write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(CheckpointError, match="damaged"):
        fit(prepare(override(small, ["schedule.epochs=1"]), market, tmp_path, quiet=True))


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_two_processes_train_as_one(market, small, tmp_path):
    words = ["schedule.epochs=1", "evaluate.every=1", "model.drop_path=0"]
    fit(prepare(override(small, words), market, tmp_path / "one", quiet=True))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    subprocess.run(
        [*torchrun, "--standalone", str(WORKER), str(market), str(tmp_path / "two"), *words],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=800,
        capture_output=True,
    )
    one, two = losses_of(tmp_path / "one"), losses_of(tmp_path / "two")
    assert one.keys() == two.keys() and len(one) >= 4
    for step in one:
        assert two[step] == pytest.approx(one[step], rel=2e-3), f"step {step}"


def test_alternation_steps_the_rest_first_and_the_mask_generator_second(market, small, tmp_path):
    config = override(small, ["optimiser.optimisation=alternating", "transfer.probability=0"])
    run = prepare(config, market, tmp_path, quiet=True)
    assert len(run.steppers) == 2
    mask = {id(p) for p in run.net.mask_generator.parameters()}
    assert {id(p) for p in optimisation.owned(run.steppers[1])} == mask
    rest = {id(p) for p in optimisation.owned(run.steppers[0])}
    assert not rest & mask and id(run.net.prototypes) in rest
    before = {n: p.detach().clone() for n, p in run.net.named_parameters()}
    train_step(run, torch.from_numpy(run.sampler.epoch(0)[0]), 0.5)
    moved = {n for n, p in run.net.named_parameters() if not torch.equal(p, before[n])}
    assert "mask_generator.linear.weight" in moved and "backbone.class_embedding" in moved
    assert "backbone.proj" not in moved


def test_without_masked_logits_the_mask_stays_half_open(market, small, tmp_path):
    config = override(small, ["loss.masked=false", "transfer.probability=0", "schedule.epochs=1"])
    results = fit(prepare(config, market, tmp_path, quiet=True))
    last = results["history"][-1]
    assert last["masked"]["mAP"] == pytest.approx(last["plain"]["mAP"], abs=0.5)


@pytest.mark.parametrize(("side", "said"), [("before", True), ("after", False)])
def test_features_that_shrink_to_a_point_are_told_of(market, small, tmp_path, capsys, side, said):
    words = ["transfer.probability=0", "schedule.epochs=1", f"loss.triplet_side={side}"]
    run = prepare(override(small, words), market, tmp_path)
    with torch.no_grad():  # f is a constant and little else
        run.net.backbone.ln_post.weight.fill_(0.01)
        run.net.backbone.ln_post.bias.fill_(1.0)
    if run.average is not None:
        run.average.load_state_dict({"count": 0, "module": run.net.state_dict()})
    results = fit(run)
    assert results["history"][0]["spread"] < 0.05
    assert ("nearly one point" in capsys.readouterr().err) == said


def test_nan_stops_the_run_and_leaves_the_batch(market, small, tmp_path):
    run = prepare(override(small, ["transfer.probability=0"]), market, tmp_path, quiet=True)
    with torch.no_grad():
        run.net.prototypes[0, 0] = float("nan")
    with pytest.raises(LossIsNaN, match=r"nan-batch-1\.pt"):
        fit(run)
    kept = torch.load(tmp_path / "nan-batch-1.pt", weights_only=True)
    assert kept["names"] == [run.train.names[r] for r in kept["rows"].tolist()]


def test_a_full_disk_keeps_the_last_state(market, small, tmp_path, monkeypatch):
    from dpm_edge.errors import DataError
    from dpm_edge.train import state

    state.save(tmp_path / "resume.pt", {"epoch": 1})
    before = (tmp_path / "resume.pt").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left"):
        state.save(tmp_path / "resume.pt", {"epoch": 2})
    assert (tmp_path / "resume.pt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["resume.pt"]


def test_the_paper_recipes_say_which_file_they_need(market, tmp_path):
    from dpm_edge.train.recipes import recipe

    with pytest.raises(SpecError, match=r"loss\.texts=FILE"):
        prepare(recipe("market"), market, tmp_path, quiet=True)
    with pytest.raises(SpecError, match=r"model\.clip=FILE"):
        prepare(override(recipe("market"), ["loss.i2t=0", "loss.anchor=0"]), market, tmp_path, quiet=True)


@pytest.mark.parametrize("minutes", [10, 40])
def test_a_time_budget_is_filled_from_the_reading_of_the_pictures_on(market, small, tmp_path, monkeypatch, minutes):
    """On a clock of our own: 100 s until the first step, 2 s a step, an evaluation as long as it was said to be."""
    words = [f"schedule.minutes={minutes}", "transfer.probability=0", "schedule.epochs=100000", "evaluate.every=5"]
    run = prepare(override(small, words), market, tmp_path, quiet=True)
    clock, costs = [100.0], EvaluationCosts(8.0, 2.0, saving=1.0)
    run.begin = 0.0

    def step(run, rows, epoch):
        clock[0] += 2.0
        return {"loss": torch.zeros(())}

    def evaluated(run, log):
        clock[0] += report.seconds_of_an_evaluation(run)

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(report, "score_start", lambda run, *_: setattr(run, "costs", costs))
    monkeypatch.setattr(report, "judge", evaluated)
    monkeypatch.setattr(report, "finish", lambda run, speed: {"epochs": run.epochs})
    monkeypatch.setattr(loop.state, "save", lambda *_: clock.__setitem__(0, clock[0] + 1.0))
    monkeypatch.setattr(watch, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    results = fit(run)
    assert results["epochs"] < 100000
    assert 0.9 * 60 * minutes < clock[0] <= 60 * minutes


def test_the_starting_weights_are_scored_first_on_the_same_test(market, small, tmp_path):
    torch.manual_seed(3)
    checkpoint.save(DPM(TINY.replace(height=64, width_px=32)), tmp_path / "first")
    words = [f"model.init={tmp_path / 'first'}", "transfer.probability=0", "schedule.epochs=1"]
    run = prepare(override(small, words), market, tmp_path / "run", quiet=True)
    results = fit(run)
    wanted = evaluate(checkpoint.load(tmp_path / "first"), run.query, run.gallery)
    assert results["start"] == {"weights": str(tmp_path / "first"), **wanted}
    assert [entry["epoch"] for entry in results["history"]] == [1]
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert kinds[0] == "start" and kinds[-1] == "evaluation"


def test_a_resumed_run_keeps_the_first_score(market, small, tmp_path):
    config = override(small, ["transfer.probability=0", "schedule.epochs=2", "evaluate.every=1"])
    first = prepare(config, market, tmp_path, quiet=True)
    first.epochs = 1
    start = fit(first)["start"]
    again = prepare(config, market, tmp_path, quiet=True)
    state_of = torch.load(tmp_path / "resume.pt", weights_only=True)
    torch.save({**state_of, "epochs": 2}, tmp_path / "resume.pt")
    results = fit(again)
    assert results["start"] == start and [entry["epoch"] for entry in results["history"]] == [1, 2]


def scored(plain: float, masked: float) -> dict:
    return {"plain": {"rank1": plain + 10, "mAP": plain}, "masked": {"rank1": masked + 10, "mAP": masked}}


@pytest.mark.parametrize(
    ("masked", "verdict"),
    [
        ((50.0, 45.0), "training helped: best.safetensors (epoch 1) has 8.0 points more masked mAP"),
        ((30.0, 41.5), "training did not help: the best epoch (2) has 0.5 points less masked mAP"),
    ],
)
def test_the_end_says_before_and_after_and_whether_it_helped(masked, verdict):
    history = [{"epoch": n + 1, **scored(20.0 + n, value)} for n, value in enumerate(masked)]
    lines = comparison({"start": {"weights": "dpm-t", **scored(40.0, 42.0)}, "history": history})
    assert lines[0].startswith("before: dpm-t · after: epoch 2")
    assert lines[1] == "plain: Rank-1 50.0 → 31.0 (-19.0)  mAP 40.0 → 21.0 (-19.0)"
    assert lines[-1].startswith(verdict)


@pytest.mark.parametrize(("words", "licence"), [([], "unknown"), (["data.licence=CC-BY-4.0"], "CC-BY-4.0")])
def test_the_command_says_whether_it_helped_and_the_card_what_the_user_said(market, tmp_path, capsys, words, licence):
    out = tmp_path / "run"
    settings = [*SMALL, "transfer.probability=0", "schedule.epochs=1", *words]
    assert cli.main(["rendered_tiny", *settings, "--data", str(market), "--layout", "market", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "plain: Rank-1" in said.out and "→" in said.out and "training " in said.out
    assert ("licence is unknown" in said.err) == (licence == "unknown")
    card = checkpoint.load(out / "best").spec.weights
    assert card.licence == licence
    assert card.data == "market, layout market: 24 people, 144 pictures"


def test_a_run_says_a_line_every_few_seconds(market, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(status, "EVERY", 0.05)
    fit(prepare(override(small, ["transfer.probability=0", "schedule.epochs=2"]), market, tmp_path))
    lines = capsys.readouterr().err.splitlines()
    assert any("before training (untrained): plain Rank-1" in line for line in lines)
    training = [line for line in lines if "min left to train" in line]
    assert training and all("pictures/s" in line and "id_plain" in line for line in training[2:])


def test_first_weights_come_over_to_another_grid_and_other_people(market, small, tmp_path):
    first = prepare(override(small, ["transfer.probability=0"]), market, tmp_path / "first", quiet=True)
    checkpoint.save(first.net, tmp_path / "net")
    config = override(
        small,
        [f"model.init={tmp_path / 'net'}", "model.height=96", "transfer.probability=0", "data.limit_identities=10"],
    )
    second = prepare(config, market, tmp_path / "second", quiet=True)
    ours, theirs = second.net.state_dict(), first.net.state_dict()
    assert len(ours["prototypes"]) == 10
    assert torch.equal(ours["backbone.conv1.weight"], theirs["backbone.conv1.weight"])
    assert torch.equal(ours["backbone.positional_embedding"][0], theirs["backbone.positional_embedding"][0])
    assert replace(second.net.spec, preprocessing=first.net.spec.preprocessing) == first.net.spec
