"""Thresholds and probabilities, on pairs of a known distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpm_edge.errors import DataError
from dpm_edge.gallery.calibration import Calibration, calibrate


def pairs(seed: int = 0, n: int = 40_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities whose strangers spread wider, and whose matches are farther off, where less is seen."""
    rng = np.random.default_rng(seed)
    visibility, same = rng.uniform(0, 1, n), rng.random(n) < 0.3
    spread = 0.3 - 0.2 * visibility
    return np.where(same, 0.4 + 0.5 * visibility, 0.0) + spread * rng.standard_normal(n), same, visibility


def test_thresholds_hold_their_rate_on_other_pairs_and_fall_with_visibility(tmp_path: Path) -> None:
    made = calibrate(*pairs(0), fingerprint="f", false_match_rate=0.01, bands=4)
    s, same, visibility = pairs(1)
    at = made.band_of(visibility)
    for number, band in enumerate(made.bands):
        strangers = s[(at == number) & ~same]
        assert (strangers >= band.threshold).mean() == pytest.approx(0.01, abs=0.006)
        assert band.false_match_rate <= 0.01
    thresholds = [band.threshold for band in made.bands]
    assert thresholds == sorted(thresholds, reverse=True)
    decided = made.decide(s, visibility)
    assert ((decided == "same") == (s >= np.array(thresholds)[at])).all()
    made.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == made


def test_probabilities_are_frequencies() -> None:
    s, same, visibility = pairs(2)
    made = calibrate(s, same, visibility, fingerprint="f", false_match_rate=0.01, bands=4)
    s, same, visibility = pairs(3)
    p = made.probability(s, visibility)
    weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (p >= low) & (p < low + 0.2)
        assert np.average(same[here], weights=weight[here]) == pytest.approx(
            np.average(p[here], weights=weight[here]), abs=0.08
        )


def test_a_band_that_finds_nobody_does_not_decide_and_too_few_pairs_are_refused() -> None:
    s, same, visibility = pairs(4)
    hidden = visibility < 0.25
    s = np.where(hidden, np.random.default_rng(0).standard_normal(len(s)), s)
    made = calibrate(s, same, visibility, fingerprint="f", false_match_rate=0.01, bands=4)
    assert [band.decides for band in made.bands] == [False, True, True, True]
    assert made.decide(5.0, 0.1) == "too occluded to decide" and made.decide(5.0, 0.9) == "same"
    with pytest.raises(DataError, match="expected 10000 pairs of strangers and 2 of one person"):
        calibrate(s[:900], same[:900], visibility[:900], fingerprint="f", false_match_rate=1e-4)


def test_a_broken_calibration_is_named(tmp_path: Path) -> None:
    for text in ("{", "{}", '{"format": 9}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(DataError, match=r"calibration|format 9"):
            Calibration.load(tmp_path / "c.json")
