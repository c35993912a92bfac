"""Thresholds and probabilities, on pairs of a known distribution."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpm_edge.errors import DataError
from dpm_edge.gallery.calibration import Band, Calibration, calibrate


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


def test_a_band_that_finds_nobody_does_not_decide() -> None:
    s, same, visibility = pairs(4)
    s = np.where(visibility < 0.25, np.random.default_rng(0).standard_normal(len(s)), s)
    made = calibrate(s, same, visibility, fingerprint="f", false_match_rate=0.01, bands=4)
    assert [band.decides for band in made.bands] == [False, True, True, True]
    assert made.decide(5.0, 0.1) == "too occluded to decide" and made.decide(5.0, 0.9) == "same"


def test_too_few_pairs_for_the_rate_are_refused() -> None:
    s, same, visibility = (column[:900] for column in pairs(4))
    with pytest.raises(DataError, match="expected 10000 pairs of strangers and 2 of one person"):
        calibrate(s, same, visibility, fingerprint="f", false_match_rate=1e-4)


def test_a_pair_may_be_probable_and_decided_different() -> None:
    """Odds of ten to one are 10/11 at even odds beforehand, and a tenth of a prior of 0.01."""
    band = Band(
        low=0, threshold=0.5, true_match_rate=0.5, false_match_rate=0.001, slope=0, offset=float(np.log(10)),
        decides=True, same=9, different=9,
    )  # fmt: skip
    made = Calibration(fingerprint="f", metric="masked", wanted_false_match_rate=0.001, bands=[band])
    assert made.probability(0.4, 1.0) == pytest.approx(10 / 11)
    assert made.probability(0.4, 1.0, prior=0.01) == pytest.approx(10 / 109)
    assert made.decide(0.4, 1.0) == "different"


def test_a_broken_calibration_is_named(tmp_path: Path) -> None:
    for text in ("{", "{}", '{"format": 9}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(DataError, match=r"calibration|format 9"):
            Calibration.load(tmp_path / "c.json")
