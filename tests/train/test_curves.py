"""The plots and the ablation's bookkeeping."""

from __future__ import annotations

import json

import ablation
import curves
import pytest

from dpm_edge.errors import DataError


def run_results(value: float) -> dict:
    rows = [
        {"kind": kind, "share": share, "metric": metric, "rank1": value, "mAP": value - 10 * share}
        for kind, share in (("whole", 0.0), ("body", 0.3), ("texture", 0.3))
        for metric in ("plain", "masked")
    ]
    return {"recipe": "market_tiny", "occlusion": rows, "epochs": 3, "summary": {"whole": {"plain_mAP": value}}}


def test_curves_start_at_the_whole_queries_and_keep_seeds_apart(tmp_path):
    held = {"runs": [{**run_results(v), "row": "full"} for v in (50.0, 60.0)]}
    (tmp_path / "ablation.json").write_text(json.dumps(held))
    found = curves.read_curves(tmp_path / "ablation.json")["full"]["mAP"]
    assert found["body", "plain"] == {0.0: [50.0, 60.0], 0.3: [47.0, 57.0]}
    assert curves.main([str(tmp_path / "ablation.json"), "--out", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"


def test_curves_before_and_after_the_mask_was_taught(tmp_path):
    held = {"recipe": "r", "before": run_results(40.0), "after": run_results(45.0)}
    (tmp_path / "results.json").write_text(json.dumps(held))
    found = curves.read_curves(tmp_path / "results.json")
    assert [lines["mAP"]["body", "masked"][0.0] for lines in found.values()] == [[40.0], [45.0]]
    assert [name.split()[0] for name in found] == ["before", "after"]


def test_results_without_curves_say_how_to_get_them(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"recipe": "market_tiny", "occlusion": []}))
    with pytest.raises(DataError, match="evaluate"):
        curves.read_curves(tmp_path / "results.json")
    assert curves.main([str(tmp_path / "nothing.json")]) == 1


def test_the_table_has_means_and_spreads_over_seeds():
    found = {("full", 0): run_results(50.0), ("full", 1): run_results(54.0), ("+SPT", 0): run_results(40.0)}
    spt, full = ablation.table(found)
    assert (full["row"], full["seeds"], full["whole_plain_mAP"]) == ("full", 2, 52.0)
    assert full["whole_plain_mAP_spread"] == pytest.approx(2.83, abs=0.01)
    assert spt["seeds"] == 1 and "whole_plain_mAP_spread" not in spt


def test_rows_differ_in_what_their_names_say(small):
    from dpm_edge.train.config import override

    made = {row: override(small, words) for row, words in ablation.ROWS.items()}
    assert made["baseline"].transfer.probability == 0 and made["baseline"].augment.erase == 0.5
    assert made["+SPT"].transfer.probability == 0.5 and made["+SPT"].augment.erase == 0
    assert made["+HMG"].loss.masked and not made["+HEM"].loss.masked
    assert made["+HEM"].loss.hem == 0.1 and made["+HMG"].loss.hem == 0
    assert made["full, alternating"].optimiser.optimisation == "alternating"
