"""Camera centring against hand-worked cases and a plain loop in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import EmbeddingsError


def made(features: np.ndarray, cameras: list[str], shrink: float = 0.0) -> CameraStatistics:
    known = CameraStatistics(fingerprint="f", dimension=features.shape[1], shrink=shrink)
    known.add(features, cameras)
    return known


def test_the_mean_of_a_camera_is_taken_off_by_hand() -> None:
    features = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    known = made(features, ["a", "a", "b"])
    np.testing.assert_allclose(known.mean("a"), [0.5, 0.5])
    np.testing.assert_allclose(known.centre(features[:1], ["a"]), [[2**-0.5, -(2**-0.5)]], atol=1e-7)


def test_few_features_are_shrunk_toward_the_site_by_hand() -> None:
    known = made(np.array([[1.0, 0.0], [0.0, 1.0]]), ["a", "b"], shrink=3.0)
    # site (0.5, 0.5); a: (1·(1, 0) + 3·(0.5, 0.5)) / 4
    np.testing.assert_allclose(known.mean("a"), [0.625, 0.375])


def test_an_unknown_camera_gets_the_sites_mean() -> None:
    known = made(np.array([[1.0, 0.0], [0.0, 1.0]]), ["a", "b"])
    for camera in ("", "never seen"):
        np.testing.assert_allclose(known.mean(camera), [0.5, 0.5])


def test_no_features_change_nothing() -> None:
    known = CameraStatistics(fingerprint="f", dimension=2)
    np.testing.assert_allclose(known.centre(np.array([[3.0, 4.0]]), ["a"]), [[0.6, 0.8]], atol=1e-7)


def test_features_that_were_added_and_removed_leave_what_was_there() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.normal(size=(20, 8)), draw.normal(size=(10, 8))
    known = made(first, ["a", "b"] * 10)
    before = {camera: known.mean(camera) for camera in "ab"}
    known.add(second, ["b", "c"] * 5)
    known.add(second, ["b", "c"] * 5, sign=-1)
    assert set(known.counts) == {"a", "b"}
    for camera in "ab":
        np.testing.assert_allclose(known.mean(camera), before[camera], atol=1e-12)


def test_what_is_saved_centres_alike(tmp_path: Path) -> None:
    draw = np.random.default_rng(1)
    features, cameras = draw.normal(size=(30, 8)), [f"camera-{i % 4}" for i in range(30)]
    known = made(features, cameras, shrink=20.0)
    known.save(tmp_path / "cameras.json")
    again = CameraStatistics.load(tmp_path / "cameras.json")
    np.testing.assert_array_equal(again.centre(features, cameras), known.centre(features, cameras))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 99, "cameras": {}}', '{"format": 1, "cameras": 3}'])
def test_another_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(EmbeddingsError, match=r"x\.json"):
        CameraStatistics.load(tmp_path / "x.json")


def test_sums_of_another_dimension_are_refused() -> None:
    with pytest.raises(EmbeddingsError, match="expected a sum of 3 dimensions"):
        CameraStatistics(fingerprint="f", dimension=3, counts={"a": 1}, sums={"a": np.zeros(2)})
