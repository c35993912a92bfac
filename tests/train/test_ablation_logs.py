"""An ablation that was cut off: the table of what its logs hold, and the words that say so."""

from __future__ import annotations

import json
from pathlib import Path

import ablation_logs
import ablation_plan
import pytest


def log(out: Path, row: str, seed: int, scores: dict[int, float], ending: str = "") -> None:
    lines = ['{"kind": "step", "step": 1, "loss": 3.0}']
    for epoch, value in scores.items():
        both = {m: {"mAP": value + more, "rank1": 2 * value} for m, more in (("plain", 0.0), ("masked", 1.0))}
        lines.append(json.dumps({"kind": "evaluation", "step": 9 * epoch, "epoch": epoch, **both}))
    folder = ablation_plan.job_folder(out, row, seed)
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n" + ending)


def test_rows_are_compared_at_the_last_epoch_that_all_reached(tmp_path, capsys):
    log(tmp_path, "full", 0, {4: 10.0, 8: 20.0}, ending='{"kind": "evalu')
    log(tmp_path, "full", 1, {4: 10.0, 8: 24.0, 12: 40.0})
    log(tmp_path, "full, from scratch", 0, {4: 1.0, 8: 5.0, 12: 9.0})
    out = tmp_path / "left.json"
    words = ["--planned", "12", "--device", "a GPU", "--date", "2026-01-02"]
    assert ablation_logs.main([str(tmp_path), "--out", str(out), *words]) == 0
    held = json.loads(out.read_text())
    assert held["state"] == "cut off: epoch 8 of 12, whole queries only"
    assert held["state"] in capsys.readouterr().out
    full, scratch = held["table"]
    assert (full["row"], full["seeds"], full["plain_mAP"], full["masked_mAP"]) == ("full", 2, 22.0, 23.0)
    assert full["plain_mAP_spread"] == 2.83  # sqrt(((20 - 22)² + (24 - 22)²) / 1)
    assert (scratch["row"], scratch["seeds"], scratch["plain_rank1"]) == ("full, from scratch", 1, 10.0)
    assert "plain_mAP_spread" not in scratch
    assert held["machine"] == {"device": "a GPU", "torch": "not recorded", "date": "2026-01-02"}
    assert str(tmp_path) not in out.read_text()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([], "no ROW-seedN"),
        ([("full", 0, {})], "no evaluation yet of full, seed 0"),
        ([("full", 0, {4: 1.0}), ("baseline", 0, {8: 1.0})], "baseline, seed 0: [8]"),
        ([("full", 0, {20: 1.0})], "at most 16"),
    ],
)
def test_what_gives_no_table_is_refused(made, said, tmp_path, capsys):
    for row, seed, scores in made:
        log(tmp_path, row, seed, scores)
    assert ablation_logs.main([str(tmp_path), "--out", str(tmp_path / "left.json")]) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "left.json").exists()
