"""End to end against engines of known delay: every wait is in the latency, and every id is the right one."""

from __future__ import annotations

import dataclasses
import threading
import time

import numpy as np
import pytest
from known_delay import KnownDelay

from dpm_edge import Gallery
from dpm_edge.bench.cameras import CameraLoad, CameraTimes, Scene, run_cameras
from dpm_edge.bench.load import closed_loop, largest_sustained, next_load
from dpm_edge.errors import EngineError

COLOURS = ((250, 10, 10), (10, 250, 10), (10, 10, 250), (200, 200, 10))
LOAD = CameraLoad(
    cameras=1, people=2, fps=20, seconds=0.5, warm_up=0.2, max_batch=8, max_wait=0.01, capacity=64
)  # fmt: skip


@pytest.fixture
def scene() -> Scene:
    """Four people of one colour each, side by side."""
    frame = np.zeros((60, 200, 3), np.uint8)
    boxes = []
    for i, colour in enumerate(COLOURS):
        frame[10:50, 50 * i : 50 * i + 20] = colour
        boxes.append((50 * i, 10, 50 * i + 20, 50))
    return Scene(frame=frame, boxes=np.array(boxes, np.float64), people=[f"person {i}" for i in range(4)])


@pytest.fixture
def gallery(scene: Scene) -> Gallery:
    """The four people, as the engine of known delay sees them."""
    gallery = Gallery(KnownDelay.fingerprint, KnownDelay.dimension)
    crops = [scene.frame[y0:y1, x0:x1] for x0, y0, x1, y1 in scene.boxes.astype(int)]
    seen = KnownDelay().embed(crops)
    gallery.add(seen, people=scene.people)
    gallery.search(seen, 1)
    return gallery


def run(engine: KnownDelay, gallery: Gallery, scene: Scene, **changes: float) -> CameraTimes:
    return run_cameras(engine, gallery, scene, dataclasses.replace(LOAD, **changes))


def test_latency_end_to_end_is_the_engines_and_the_waits_around_it(gallery: Gallery, scene: Scene) -> None:
    """Engine only 30 ms; end to end the batcher's 10 ms come before it. Two people a frame never fill a batch."""
    engine = KnownDelay(0.03)
    alone = closed_loop(lambda: engine.embed([]), streams=1, seconds=0.3)
    seen = run(engine, gallery, scene)
    assert 0.030 <= min(alone.latencies) < 0.038 and 0.030 <= min(seen.engine) < 0.038
    assert 0.040 <= min(seen.latencies) < 0.060
    assert len(seen.latencies) == 10 and seen.people == seen.right == 20 and seen.refused == 0


def test_full_batch_does_not_wait_for_the_deadline(gallery: Gallery, scene: Scene) -> None:
    seen = run(KnownDelay(0.01), gallery, scene, max_batch=2, max_wait=5.0)
    assert 0.010 <= min(seen.latencies) < 1 and set(seen.batches) == {2}


def test_engine_that_does_not_keep_up_is_late_from_the_due_time_on(gallery: Gallery, scene: Scene) -> None:
    """D/D/1: a frame every 50 ms, a call of 80 ms each: the i-th has waited 30 i ms, which a closed loop hides."""
    seen = run(KnownDelay(0.08), gallery, scene, people=1, max_batch=1, max_wait=0, warm_up=0.0)
    wanted = 0.080 + 0.030 * np.arange(10)
    got = np.array(seen.latencies)
    assert len(got) == 10 and (got >= wanted - 0.001).all()
    assert got[-1] < 2 * wanted[-1]


def test_queue_that_is_full_refuses_whole_frames(gallery: Gallery, scene: Scene) -> None:
    seen = run(KnownDelay(0.3), gallery, scene, people=4, max_batch=4, max_wait=0, capacity=4, warm_up=0.0)
    assert seen.refused > 4
    assert seen.refused + len(seen.latencies) == 10
    assert seen.right == seen.people == 4 * len(seen.latencies)


@pytest.mark.parametrize(("people", "cameras"), [(0.25, 2), (1.5, 3), (9, 1)])
def test_people_per_frame_are_kept_on_average(gallery: Gallery, scene: Scene, people: float, cameras: int) -> None:
    seen = run(KnownDelay(), gallery, scene, people=people, cameras=cameras, fps=100, seconds=0.6, capacity=4096)
    assert seen.people == pytest.approx(people * cameras * 60, abs=cameras * max(1, people))
    assert seen.right == seen.people


def test_wrong_id_is_noticed(scene: Scene, gallery: Gallery) -> None:
    swapped = dataclasses.replace(scene, people=["person 1", "person 0", "person 2", "person 3"])
    seen = run(KnownDelay(), gallery, swapped, people=4)
    assert seen.right == seen.people // 2


def test_error_of_the_engine_ends_the_run_and_is_raised(gallery: Gallery, scene: Scene) -> None:
    engine = KnownDelay()
    engine.error = EngineError("the engine broke")
    before, start = threading.active_count(), time.perf_counter()
    with pytest.raises(EngineError, match="broke"):
        run(engine, gallery, scene)
    assert time.perf_counter() - start < 5 and threading.active_count() == before


def climb(most: float, steps: int) -> list[tuple[float, bool]]:
    """What is tried where every load up to `most` is sustained."""
    tried: list[tuple[float, bool]] = []
    for _ in range(steps):
        load = next_load(tried)
        if load is None:
            break
        tried.append((load, load <= most))
    return tried


def test_loads_go_up_in_quarters_and_then_halve() -> None:
    assert [load for load, _ in climb(0.8, 6)] == [0.25, 0.5, 0.75, 1.0, 0.875, 0.8125]
    assert largest_sustained(climb(0.8, 6)) == 0.75
    assert [load for load, _ in climb(9, 6)] == [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    assert [load for load, _ in climb(0.2, 5)] == [0.25, 0.125, 0.1875, 0.21875, 0.203125]
    assert climb(0.1, 6) == [(0.25, False), (0.125, False)] and largest_sustained(climb(0.1, 6)) is None


def test_load_above_one_that_failed_is_not_counted() -> None:
    assert largest_sustained([(0.25, True), (0.5, False), (0.75, True)]) == 0.25
