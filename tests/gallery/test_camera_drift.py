"""Drift of a gallery's cameras: which rows are the last, and what they are compared with."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from dpm_edge import Embeddings, Gallery
from dpm_edge.cli import main
from dpm_edge.drift import LEAST_FEATURES, WINDOW
from dpm_edge.gallery.camera_drift import LastTracks
from dpm_edge.gallery.rows import Where

D = 16


def embeddings(n: int, seed: int, move: float = 0.0) -> Embeddings:
    """n random features around one direction; `move` adds another direction to all of them."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((n, D)) / 4 + np.eye(D)[0] + move * np.eye(D)[1]
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Embeddings(
        features=features.astype(np.float32), masks=np.ones((n, D), np.float32), visibility=np.ones(n, np.float32),
        rows=np.arange(n), fingerprint="f",
    )  # fmt: skip


def fill(gallery: Gallery, move: float) -> tuple[Embeddings, Embeddings]:
    """Camera a as it was and, later, moved; camera b as it was. The later rows of a come in first."""
    before, after = embeddings(LEAST_FEATURES, 1), embeddings(WINDOW, 2, move)
    n = len(before)
    gallery.add(after, people=[""] * WINDOW, cameras=["a"] * WINDOW, timestamps=5000.0 + np.arange(WINDOW))
    gallery.add(before, people=[""] * n, cameras=["a"] * n, timestamps=1000.0 + np.arange(n))
    other = embeddings(n + WINDOW, 3)
    gallery.add(other, people=[""] * len(other), cameras=["b"] * len(other), timestamps=np.arange(len(other)))
    return before, after


def by_the_formula(tracks: np.ndarray, rest: np.ndarray) -> float:
    """Drift in float64, of tracks of one feature each."""
    m, mu, n = tracks.mean(0), rest.mean(0), len(tracks)
    scatter = sum(np.dot(t - m, t - m) for t in tracks) / (n - 1)
    return float(np.sqrt(max(0.0, np.dot(m - mu, m - mu) - scatter / n) / scatter))


@pytest.mark.parametrize("place", ["memory", "folder"])
def test_the_last_tracks_by_time_are_compared_with_all_other_rows(place: str, tmp_path: Path) -> None:
    if place == "folder":
        pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")
    made = Gallery("f", D) if place == "memory" else Gallery.create(tmp_path / "g", "f", D)
    with made as gallery:
        before, after = fill(gallery, move=1.0)
        found = gallery.camera_drift()
    wanted = by_the_formula(after.features.astype(np.float64), before.features.astype(np.float64))
    assert found["a"].drift == pytest.approx(wanted, rel=2e-3) and found["a"].warns
    assert found["b"].drift < 0.1 and not found["b"].warns


def test_the_sites_statistics_count_beside_the_rows() -> None:
    with Gallery("f", D) as site, Gallery("f", D) as gallery:
        fill(site, move=0.0)
        few = embeddings(WINDOW, 4, move=1.0)
        gallery.add(few, people=[""] * WINDOW, cameras=["a"] * WINDOW)
        assert gallery.camera_drift() == {}
        gallery.use_statistics(site.camera_statistics())
        assert gallery.camera_drift()["a"].warns


def test_rows_of_one_track_are_one_track_and_the_latest_tracks_stay() -> None:
    with Gallery("f", D) as gallery:
        count = 5 * WINDOW
        some = embeddings(2 * count, 5)
        tracks = [f"t{i // 2}" for i in range(2 * count)]
        gallery.add(
            some, people=[""] * 2 * count, cameras=["a"] * 2 * count, tracks=tracks, timestamps=[7.0] * 2 * count
        )
        last = LastTracks()
        for rows in gallery.store.scan(Where(), vectors=False):
            last.take(rows)
        ids = gallery.ids()[-2 * WINDOW :].reshape(WINDOW, 2)
    assert last.ids() == {"a": ids.tolist()}


def test_stats_tells_the_drift_and_warns(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")
    with Gallery.create(tmp_path / "g", "f", D) as gallery:
        fill(gallery, move=1.0)
    result = CliRunner().invoke(main, ["gallery", "stats", str(tmp_path / "g"), "--drift", "--json"])
    drift = json.loads(result.stdout)["drift"]
    assert drift["a"] > 0.3 > drift["b"]
    assert "a: the features of its last 50 tracks have moved" in result.stderr and "\nb:" not in result.stderr


def test_stats_without_drift_reads_no_vectors(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")
    with Gallery.create(tmp_path / "g", "f", D) as gallery:
        fill(gallery, move=1.0)
    result = CliRunner().invoke(main, ["gallery", "stats", str(tmp_path / "g"), "--json"])
    assert "drift" not in json.loads(result.stdout) and "moved" not in result.stderr
