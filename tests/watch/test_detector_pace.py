"""The detector looks at every n-th frame where the machine is slow, n by measured times; tracks go on between."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stand_ins import make_seeing, scene, walk, write_scenes

from dpm_edge.errors import DataError
from dpm_edge.watch import detector_pace, watch_site
from dpm_edge.watch.detector_pace import CALM_SECONDS, LEAST_FRAMES, WARM_UP, DetectorPace
from dpm_edge.watch.site_config import CameraConfig, CountingLine, Rule, Site
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.tracker import Tracker
from dpm_edge.watch.watch_site import WatchSite


def timed(detector: float, rest: float, cameras: tuple[str, ...] = ("a",), given: int | None = None) -> DetectorPace:
    """A pace whose cameras' frames took so long."""
    pace = DetectorPace(dict.fromkeys(cameras, given))
    for camera in cameras:
        for _ in range(WARM_UP + LEAST_FRAMES):
            pace.took(camera, detector, detector + rest)
    return pace


@pytest.mark.parametrize(
    ("rate", "detector", "rest", "n"),
    [
        (10, 0.05, 0.02, 1),  # 0.7 of the time
        (10, 0.12, 0.02, 2),  # 1.4 of it; every second: 0.8
        (10, 0.20, 0.02, 3),  # 2.2; 1.2; 0.87
        (10, 0.50, 0.02, 3),  # three detections a second are left in any case
        (2, 0.90, 0.02, 1),
    ],
)
def test_n_is_the_least_that_keeps_up(rate: float, detector: float, rest: float, n: int) -> None:
    pace = timed(detector, rest)
    pace.choose({"a": rate}, 0.0)
    assert pace.every("a") == 1
    for second in range(1, 10):
        pace.choose({"a": rate}, float(second))
    assert pace.every("a") == n


def test_one_slow_frame_and_the_first_ones_change_nothing() -> None:
    pace = DetectorPace({"a": None})
    for number in range(100):
        took = 2.0 if number < WARM_UP or number == 50 else 0.03
        pace.took("a", took, took + 0.02)
        if number % 10 == 9:
            pace.choose({"a": 10}, number / 10)
        assert pace.every("a") == 1


def test_all_cameras_count_together() -> None:
    pace = timed(0.05, 0.01, ("a", "b"))
    for second in range(5):
        pace.choose({"a": 10}, float(second))
    assert pace.every("a") == 1
    for second in range(5, 10):
        pace.choose({"a": 10, "b": 10}, float(second))
    assert (pace.every("a"), pace.every("b")) == (2, 2)


def test_n_falls_only_after_a_calm_time_and_does_not_go_to_and_fro() -> None:
    pace = timed(0.12, 0.02)
    seen = []
    for second in range(60):
        slow = second < 20 or second % 4 == 0  # then it is slow now and then
        for _ in range(20):
            pace.took("a", 0.12 if slow else 0.03, (0.12 if slow else 0.03) + 0.02)
        pace.choose({"a": 10}, float(second))
        seen.append(pace.every("a"))
    assert set(seen[:2]) == {1} and set(seen[2:]) == {2}
    for second in range(60, 75):
        for _ in range(20):
            pace.took("a", 0.03, 0.05)
        pace.choose({"a": 10}, float(second))
        seen.append(pace.every("a"))
    assert seen[-1] == 1 and 2 in seen[60 : 60 + int(CALM_SECONDS)]


def test_files_have_every_frame_detected_unless_they_say_otherwise() -> None:
    pace = timed(5.0, 0.1)
    pace.choose({}, 0.0)
    assert pace.every("a") == 1
    assert timed(0.001, 0.0, given=4).every("a") == 4


def test_the_tracker_predicts_by_motion_and_does_not_change() -> None:
    tracker = Tracker(frame_rate=10)
    for i in range(10):
        tracker.update([[10.0 + 5 * i, 50, 40 + 5 * i, 150]], [0.9], i / 10)
    before = replace(tracker.tracks[0])
    (moved,) = tracker.predict(1.1)
    assert moved.id == before.id and moved.box == pytest.approx([65, 50, 95, 150], abs=3)  # 0.2 s on, at 50 a second
    assert (tracker.tracks[0].box == before.box).all() and tracker.tracks[0].last == before.last
    (again,) = tracker.update([[65.0, 50, 95, 150]], [0.9], 1.1)
    assert again.id == before.id
    tracker.update([], [], 1.2)
    assert tracker.predict(1.3) == []  # it has no box: where it is, nobody knows
    with pytest.raises(DataError, match="in order"):
        tracker.predict(1.0)


def test_a_changed_rate_changes_what_confirms_a_track() -> None:
    tracker = Tracker(frame_rate=15)
    assert tracker.confirm == 6
    tracker.frame_rate = 5
    assert tracker.confirm == 3


def watched(folder: Path, **camera: Any) -> tuple[list[Any], int, dict[str, Any]]:
    """Events, calls of the detector and the camera's status of a walk of 20 frames and 60 empty ones."""
    video = write_scenes(folder / "a.avi", walk("red", 20) + [scene()] * 60)
    calls = []
    seeing = make_seeing()
    counted = replace(
        seeing, make_tracker=lambda rate: Tracker(frame_rate=rate),
        detector=lambda image: calls.append(1) or seeing.detector(image),
    )  # fmt: skip
    site = Site(
        cameras=(CameraConfig(name="a", source=str(video), start=1000.0, **camera),),
        lines=(CountingLine(name="gate", camera="a", begin=(0.25, 0.0), end=(0.25, 1.0)),),
        rules=tuple(Rule(name=kind, event=kind, line="gate" if kind == "crossed" else None)
                    for kind in ("entered", "left", "crossed")),
    )  # fmt: skip
    with WatchStore(":memory:", run="") as store, WatchSite(site, store) as watch:
        watch.run(counted)
        return [event for _, event in store.events()], len(calls), watch.status()[0]


def test_a_camera_with_every_third_frame_detected_gives_the_same_events(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    every, calls, status = watched(tmp_path)
    assert (calls, status["detect_every"], status["processed"]) == (80, 1, 80)
    third, calls, status = watched(tmp_path / "b", detect_every=3)
    assert (calls, status["detect_every"], status["processed"]) == (27, 3, 80)
    assert [(e.kind, e.identity) for e in third] == [(e.kind, e.identity) for e in every]
    told = [[one.seconds for one in events if one.kind != "entered"] for events in (every, third)]
    assert np.allclose(*told, atol=0.31)


class Endless:
    """A live camera with twenty-five frames a second."""

    total = 0

    def __init__(self) -> None:
        self.ended = threading.Event()

    def __iter__(self) -> Iterator[tuple[Any, None]]:
        while not self.ended.wait(0.04):
            yield scene(("red", 100, 200)), None

    def shortfall(self) -> str:
        return ""

    def __enter__(self) -> Endless:
        return self

    def __exit__(self, *error: object) -> None:
        self.ended.set()


@pytest.mark.parametrize(("seconds", "slow"), [(0.1, True), (0.0, False)])
def test_a_live_camera_whose_detector_is_too_slow_has_fewer_frames_detected(
    seconds: float, slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_site, "WRITE_SECONDS", 0.1)
    monkeypatch.setattr(detector_pace, "BUSY_SECONDS", 0.3)
    seeing = make_seeing()
    slowed = replace(seeing, detector=lambda image: time.sleep(seconds) or seeing.detector(image))  # type: ignore[func-returns-value]
    site = Site(cameras=(CameraConfig(name="a", source="rtsp://host/a"),))
    with WatchStore(":memory:", run="") as store, WatchSite(site, store, opener=lambda address: Endless()) as watch:
        thread = threading.Thread(target=watch.run, args=(slowed,))
        thread.start()
        end = time.monotonic() + (20 if slow else 2)
        while time.monotonic() < end and watch.detect_every()["a"] == 1:
            time.sleep(0.02)
        time.sleep(0.3)
        status = watch.status()[0]
        watch.stop()
        thread.join(10)
    assert (status["detect_every"] > 1) is slow
