"""`dpm-edge train mask` of somebody else's network: what it writes, what it refuses, and how it decides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from somebodys_network import imported
from toy_world import TINY

from dpm_edge.market import LabelledFolder
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.model.network import DPM
from dpm_edge.train import evaluate, foreign_mask, mask_command

LESSON = ["--epochs", "2", "--batch", "32"]
UNCOVERED = ["--shares", ""]
"""Where scores are made up, no query need be covered."""


def middle(folder: LabelledFolder, kept: list[str], *, quiet: bool = False) -> torch.Tensor:
    """In the teacher's place: the toy world's people stand in the middle."""
    maps = torch.zeros(len(kept), 2, 16, 8)
    maps[:, 0, 1:15, 2:6] = 1
    return maps


@pytest.fixture(autouse=True)
def exact_teacher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_mask, "teacher_maps", middle)
    monkeypatch.setattr(mask_command, "LEAST_SIGHT", -1.0)  # next to nothing is learned in two epochs


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start")
    return checkpoint.save(imported(folder), folder / "start")


def teach(start: Path, market: Path, out: Path, *words: str) -> int:
    data = ["--data", str(market), "--out", str(out), "--shares", "0.4"]
    return mask_command.main([str(start), *data, *LESSON, *words])


def fixed_scores(monkeypatch: pytest.MonkeyPatch, whole: tuple[float, ...], covered: tuple[float, ...]) -> None:
    """Let every network have these scores: (plain before, plain after, masked after)."""

    def judge(net: ForeignNetwork, *_: Any) -> dict[str, Any]:
        before = net.sight is None
        summary = {
            part: {"plain_mAP": one[not before], "masked_mAP": one[0 if before else 2]}
            for part, one in {"whole": whole, "occluded": covered}.items()
        }
        return {"summary": summary}

    monkeypatch.setattr(mask_command, "judge", judge)


def test_a_taught_network_is_written_beside_its_scores(start, market, tmp_path, capsys) -> None:
    code = teach(start, market, tmp_path / "out", "--pool", "seen")
    held = json.loads((tmp_path / "out" / "results.json").read_text())
    before, after = held["before"]["summary"], held["after"]["summary"]
    assert before["whole"]["plain_mAP"] == before["whole"]["masked_mAP"], "masks of ones"
    assert set(held["after"]["another's mask, mAP"]) == {"whole", "occluded"}
    assert set(held["visibility"]) == {"rank correlation", "mean error", "mean of whole", "mean of covered"}
    gains = [after[part]["masked_mAP"] - after[part]["plain_mAP"] for part in ("whole", "occluded")]
    kept = gains[1] > 0 and gains[0] >= -0.5 and -gains[0] < gains[1]
    metric = "masked_mAP" if kept else "plain_mAP"
    pooled = [after[part][metric] - before[part]["plain_mAP"] for part in ("whole", "occluded")]
    pool_kept = pooled[1] > 0 and pooled[0] >= -0.5 and -pooled[0] < pooled[1]
    assert code == (0 if kept and pool_kept else 1)
    assert (tmp_path / "out" / "model.json").is_file() == pool_kept
    said = capsys.readouterr().out
    assert f"after, whole: mAP plain {after['whole']['plain_mAP']:.2f}" in said and "visibility: rank corr" in said


def test_masks_that_find_more_are_written(start, market, tmp_path, monkeypatch) -> None:
    fixed_scores(monkeypatch, (50, 50, 49.8), (20, 20, 21))
    assert teach(start, market, tmp_path, *UNCOVERED) == 0
    net = checkpoint.load_any(tmp_path / "model")
    first = checkpoint.load_any(start)
    assert isinstance(net, ForeignNetwork) and net.sight is not None and net.sight.gates is not None
    assert net.spec.weights.recipe.endswith(", then train mask (seed 0)")
    for name, value in first.state_dict().items():
        assert torch.equal(net.state_dict()[name], value), name
    held = json.loads((tmp_path / "results.json").read_text())
    assert held["written"] == "masks and map" and held["refused"] == ""


def test_masks_that_lose_are_left_out_and_the_points_are_said(start, market, tmp_path, monkeypatch, capsys) -> None:
    fixed_scores(monkeypatch, (50, 50, 49.9), (20, 20, 19.25))
    assert teach(start, market, tmp_path, *UNCOVERED) == 1
    error = capsys.readouterr().err
    assert "expected masks that find more than the plain metric, got mAP whole -0.10, covered -0.75 points" in error
    assert "has the map, and masks of ones" in error
    net = checkpoint.load_any(tmp_path / "model")
    with torch.inference_mode():
        _, mask, seen = net(torch.randn(3, 3, 64, 32))
    assert (mask == 1).all() and seen.std() > 0.01
    held = json.loads((tmp_path / "results.json").read_text())
    assert held["written"] == "map" and "-0.75" in held["refused"]


@pytest.mark.parametrize(
    ("whole", "covered", "written"),
    [
        ((50, 49, 51), (20, 21, 22), "masks and map"),
        ((50, 50, 48), (20, 21, 20), "map"),
        ((50, 49, 48), (20, 21, 20), "nothing"),
    ],
)
def test_what_would_be_written_is_compared_with_what_there_was(
    whole: tuple, covered: tuple, written: str, start, market, tmp_path, monkeypatch
) -> None:
    """With masks under the masked metric; without them, where they lose, under the plain one."""
    fixed_scores(monkeypatch, whole, covered)
    assert teach(start, market, tmp_path, *UNCOVERED, "--pool", "seen") == (written != "masks and map")
    assert json.loads((tmp_path / "results.json").read_text())["written"] == written
    assert (tmp_path / "model.json").is_file() == (written != "nothing")


def test_a_pool_that_loses_is_refused_and_nothing_is_written(start, market, tmp_path, monkeypatch, capsys) -> None:
    fixed_scores(monkeypatch, (50, 47, 48), (20, 20.5, 21))
    assert teach(start, market, tmp_path, *UNCOVERED, "--pool", "seen") == 1
    assert "expected --pool to find more, got masked mAP whole -2.00, covered +1.00 points" in capsys.readouterr().err
    assert not (tmp_path / "model.json").exists()
    assert json.loads((tmp_path / "results.json").read_text())["written"] == "nothing"


def test_a_map_that_says_nothing_is_not_written(start, market, tmp_path, monkeypatch, capsys) -> None:
    """Untaught maps are the same for every picture."""
    monkeypatch.undo()
    monkeypatch.setattr(foreign_mask, "teacher_maps", middle)
    monkeypatch.setattr(foreign_mask, "_teach_map", lambda *_: None)
    assert teach(start, market, tmp_path) == 1
    error = capsys.readouterr().err
    assert "whose visibility follows the share in sight" in error and "got 0.00" in error
    assert "Nothing was written" in error and not (tmp_path / "model.json").exists()


@pytest.mark.parametrize(
    ("whole", "covered", "kept"),
    [
        (0.0, 0.1, True),
        (-0.4, 1.0, True),
        (-0.4, 0.3, False),
        (-0.6, 5.0, False),
        (2.0, -0.1, False),
        (2.0, 0.0, False),
    ],
)
def test_what_masks_have_to_bring(whole: float, covered: float, kept: bool) -> None:
    assert mask_command.worth({"whole": whole, "occluded": covered}) is kept


@pytest.mark.parametrize(("whole", "kept"), [(0.0, True), (-0.01, False)])
def test_without_covered_queries_whole_ones_lose_nothing(whole: float, kept: bool) -> None:
    assert mask_command.worth({"whole": whole}) is kept


def test_rank_correlation_by_hand() -> None:
    """Ranks 1 2.5 2.5 4 and 1 3 2 4: covariance 4.5 of deviations, norms √4.5 and √5."""
    found = evaluate.rank_correlation(np.array([0.1, 0.5, 0.5, 9.0]), np.array([-3.0, 8.0, 7.0, 100.0]))
    assert found == pytest.approx(4.5 / np.sqrt(4.5 * 5))
    assert evaluate.rank_correlation(np.ones(4), np.arange(4)) == 0


def test_pool_with_one_of_our_models_is_refused(market, tmp_path, capsys) -> None:
    checkpoint.save(DPM(TINY.replace(height=64, width_px=32)).eval(), tmp_path / "ours")
    assert teach(tmp_path / "ours", market, tmp_path / "out", "--pool", "seen") == 1
    assert "expected --pool with an imported network" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_with_a_camera_embedding_is_refused(market, tmp_path, capsys) -> None:
    spec = replace(TINY.replace(height=64, width_px=32), cameras=3)
    checkpoint.save(DPM(spec).eval(), tmp_path / "ours")
    assert teach(tmp_path / "ours", market, tmp_path / "out") == 1
    assert "expected a checkpoint without camera embedding" in capsys.readouterr().err


def test_data_without_a_training_part_is_refused(start, market, tmp_path, capsys) -> None:
    for part in ("query", "bounding_box_test"):
        (tmp_path / "data").mkdir(exist_ok=True)
        (tmp_path / "data" / part).symlink_to(market / part)
    assert teach(start, tmp_path / "data", tmp_path / "out") == 1
    assert "raining part" in capsys.readouterr().err or not (tmp_path / "out").exists()
