"""A running watch tells of cameras that look otherwise than they did."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from stand_ins import ColourEngine, make_seeing, scene, walk, write_scenes

from dpm_edge import drift
from dpm_edge.centring import CameraStatistics
from dpm_edge.drift import LEAST_FEATURES, WINDOW
from dpm_edge.runtime import Embeddings
from dpm_edge.watch.drift_watch import DriftWatch
from dpm_edge.watch.site_config import CameraConfig, Site
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.watch_site import WatchSite

RED, BLUE, GREEN = np.eye(3)[2:], np.eye(3)[:1], np.eye(3)[1:2]


class Statistics:
    """Of a camera that has seen red and green."""

    def all_statistics(self) -> CameraStatistics:
        made = CameraStatistics(fingerprint="f", dimension=3)
        made.add(np.repeat(np.concatenate([RED, GREEN]), LEAST_FEATURES, axis=0), ["door"] * 2 * LEAST_FEATURES)
        return made


def test_a_camera_is_reported_once_until_it_was_as_before(capsys: pytest.CaptureFixture[str]) -> None:
    watch = DriftWatch()

    def look(*features: np.ndarray) -> int:
        for number in range(WINDOW):
            watch.add("door", f"{np.random.default_rng().integers(2**60)}", features[number % len(features)])
        watch.compare(Statistics())
        watch.compare(Statistics())
        return capsys.readouterr().err.count("door: the features")

    assert [look(RED, GREEN), look(BLUE, GREEN), look(RED, GREEN), look(BLUE, GREEN)] == [0, 1, 0, 1]
    assert watch.message("door").startswith("door: the features") and watch.message("yard") == ""


def test_a_watch_gives_the_drift_to_its_status_and_metrics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift, "LEAST_TRACKS", 2)
    seeing = make_seeing()
    rows = np.repeat(RED, LEAST_FEATURES, axis=0).astype(np.float32)
    seen = Embeddings(
        features=rows, masks=np.ones_like(rows), visibility=np.ones(len(rows), np.float32), rows=np.arange(len(rows)),
        fingerprint=ColourEngine.fingerprint,
    )  # fmt: skip
    seeing.gallery.add(seen, people=["red"] * len(rows), cameras=["door"] * len(rows))
    video = write_scenes(tmp_path / "door.avi", walk("blue", 8) + [scene()] * 15 + walk("green", 8))
    site = Site(cameras=(CameraConfig(name="door", source=str(video), start=1e9),))
    with WatchStore(":memory:", run="") as store, WatchSite(site, store) as watch:
        watch.run(seeing)
        (camera,) = watch.status()
        assert camera["drift"] > 0.3 and camera["message"].startswith("door: the features of its last 2 tracks")
        assert watch.drift() == {"door": pytest.approx(camera["drift"], abs=1e-3)}
        watch.forget("blue")
        watch._drift.compare(seeing.gallery)
        assert watch.drift() == {}  # one track is left
