"""Drift of cameras against hand-worked cases."""

from __future__ import annotations

import numpy as np
import pytest

from dpm_edge.centring import CameraStatistics
from dpm_edge.drift import DRIFTED, LEAST_FEATURES, LEAST_TRACKS, WINDOW, Drift, DriftMeter, drift_of
from dpm_edge.errors import EmbeddingsError

RIGHT, UP, DOWN = np.array([[1.0, 0.0]]), np.array([[0.0, 1.0]]), np.array([[0.0, -1.0]])


def known(*features: np.ndarray, camera: str = "door", times: int = LEAST_FEATURES) -> CameraStatistics:
    """Statistics of these features, one after another, `times` in all."""
    some = np.concatenate([features[i % len(features)] for i in range(times)])
    made = CameraStatistics(fingerprint="f", dimension=2)
    made.add(some, [camera] * times)
    return made


def filled(meter: DriftMeter, *features: np.ndarray, tracks: int, first: int = 0) -> DriftMeter:
    for number in range(tracks):
        meter.add("door", first + number, features[number % len(features)])
    return meter


def test_drift_by_hand() -> None:
    tracks = np.concatenate([RIGHT, UP, RIGHT, UP])
    # m = (0.5, 0.5), s² = 4·0.5 / 3 = 2/3; ‖m − μ‖² = 1, of which chance gives s²/4 = 1/6: √(5/6) / √(2/3)
    assert drift_of(tracks, np.array([-0.5, 0.5])) == pytest.approx((5 / 4) ** 0.5)


def test_what_chance_explains_is_no_drift() -> None:
    assert drift_of(np.concatenate([RIGHT, UP]), np.array([0.4, 0.5])) == 0.0


def test_a_camera_as_it_was_has_no_drift_and_a_turned_one_has() -> None:
    meter = filled(DriftMeter(known(RIGHT, UP)), RIGHT, UP, tracks=WINDOW)
    assert meter.drifts()["door"] == Drift(0.0, WINDOW)
    turned = filled(meter, RIGHT, DOWN, tracks=WINDOW, first=WINDOW).drifts()["door"]
    # m = (0.5, −0.5), μ = (0.5, 0.5), s² = 50·0.5 / 49
    assert turned.drift == pytest.approx(((1 - 0.5 / 49) / (25 / 49)) ** 0.5) and turned.warns
    assert "door" in turned.sentence("door") and f"{turned.drift:.2f}" in turned.sentence("door")


def test_a_track_counts_once_however_many_features_it_has() -> None:
    meter = filled(DriftMeter(known(RIGHT, UP)), RIGHT, UP, tracks=WINDOW - 1)
    for _ in range(100):
        meter.add("door", "waits", UP)
    assert meter.drifts()["door"].tracks == WINDOW and meter.drifts()["door"].drift < 0.05


def test_features_are_normalised_first() -> None:
    small, large = DriftMeter(known(RIGHT, UP)), DriftMeter(known(RIGHT, UP))
    filled(small, RIGHT, DOWN, tracks=WINDOW)
    filled(large, 7 * RIGHT, 7 * DOWN, tracks=WINDOW)
    assert large.drifts() == small.drifts()


def test_few_tracks_and_few_known_features_tell_nothing() -> None:
    assert filled(DriftMeter(known(RIGHT)), UP, RIGHT, tracks=LEAST_TRACKS - 1).drifts() == {}
    few = known(RIGHT, times=LEAST_FEATURES - 1)
    assert filled(DriftMeter(few), UP, RIGHT, tracks=WINDOW).drifts() == {}


def test_a_camera_keeps_the_first_statistics_that_suffice() -> None:
    meter = filled(DriftMeter(known(RIGHT, times=10)), UP, RIGHT, tracks=WINDOW)
    meter.refer_to(known(RIGHT, UP))
    meter.refer_to(known(DOWN))
    assert meter.drifts()["door"].drift == 0.0


def test_unknown_cameras_are_not_compared() -> None:
    meter = DriftMeter(known(RIGHT, camera=""))
    for number in range(WINDOW):
        meter.add("", number, UP)
    assert meter.drifts() == {}


def test_nothing_of_a_forgotten_track_is_kept() -> None:
    meter = filled(DriftMeter(known(RIGHT, UP)), RIGHT, UP, tracks=LEAST_TRACKS)
    meter.add("door", "gone", DOWN)
    meter.forget("door", "gone")
    meter.forget("door", "never there")
    assert meter.drifts()["door"] == Drift(0.0, LEAST_TRACKS)


def test_features_of_another_dimension_are_refused() -> None:
    meter = DriftMeter(known(RIGHT))
    with pytest.raises(EmbeddingsError, match=r"expected features \(N, 2\) of camera 'door', got \(1, 3\)"):
        meter.add("door", 1, np.zeros((1, 3)))
    with pytest.raises(EmbeddingsError, match=r"expected features \(N, D\)"):
        meter.add("yard", 1, np.zeros(3))


def test_random_tracks_of_one_camera_are_not_reported() -> None:
    rng = np.random.default_rng(0)
    centre = rng.standard_normal(64) / 8
    people = rng.standard_normal((600, 64)) / 8 + centre
    people /= np.linalg.norm(people, axis=1, keepdims=True)
    made = CameraStatistics(fingerprint="f", dimension=64)
    made.add(people[:500], ["door"] * 500)
    meter = DriftMeter(made)
    for number in range(500, 600):
        meter.add("door", number, people[number : number + 1])
    assert meter.drifts()["door"].drift < DRIFTED / 2
