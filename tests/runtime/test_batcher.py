"""The batcher: every crop gets its own answer, in time, whatever the engine and the callers do."""

from __future__ import annotations

import threading
import time
from typing import Any

import known_delay
import numpy as np
import pytest
from known_delay import KnownDelay, numbered

from dpm_edge.errors import EngineError, ImageError
from dpm_edge.runtime import Embeddings
from dpm_edge.runtime.batcher import Batcher, QueueFull


def number_of(embedding: Embeddings) -> int:
    return known_delay.number_of(embedding.features[0])


class Keeps(KnownDelay):
    """An engine that remembers the pictures it was given."""

    def embed(self, images: list[np.ndarray]) -> Embeddings:
        self.images = images
        return super().embed([numbered(0) for _ in images])


def test_many_threads_lose_and_swap_nothing() -> None:
    engine, wrong = KnownDelay(), []

    def camera(index: int, batcher: Batcher) -> None:
        for start in range(0, 1000, 50):
            numbers = [index * 1000 + start + i for i in range(50)]
            futures = [batcher.submit(numbered(n), camera=str(index)) for n in numbers]
            wrong.extend(n for n, f in zip(numbers, futures) if number_of(f.result(timeout=30)) != n)

    with Batcher(engine, max_batch=16, max_wait=0.002, capacity=512) as batcher:
        threads = [threading.Thread(target=camera, args=(i, batcher)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not wrong
    assert sum(engine.batches) == 16_000
    assert max(engine.batches) == 16


def test_a_lone_crop_leaves_at_the_deadline() -> None:
    with Batcher(KnownDelay(), max_batch=8, max_wait=0.05) as batcher:
        start = time.monotonic()
        batcher.submit(numbered(7)).result(timeout=5)
        waited = time.monotonic() - start
    assert 0.045 <= waited < 0.5


def test_a_full_batch_does_not_wait() -> None:
    with Batcher(KnownDelay(), max_batch=4, max_wait=30) as batcher:
        futures = [batcher.submit(numbered(i)) for i in range(4)]
        assert [number_of(f.result(timeout=5)) for f in futures] == [0, 1, 2, 3]


def test_cameras_take_turns() -> None:
    engine = KnownDelay(delay=0.2)
    with Batcher(engine, max_batch=4, max_wait=0.0, capacity=64) as batcher:
        first = batcher.submit(numbered(200), camera="warm-up")
        time.sleep(0.05)  # the engine is busy with the first: what follows waits
        crowd = [batcher.submit(numbered(i), camera="crowd") for i in range(20)]
        lone = batcher.submit(numbered(100), camera="lone")
        lone.result(timeout=5)
        assert not crowd[-1].done()
        assert first.done()
    assert engine.seen.index(100) <= 4


def test_an_engine_error_reaches_its_crops_and_no_others() -> None:
    engine = KnownDelay()
    with Batcher(engine, max_batch=1, max_wait=0) as batcher:
        engine.error = EngineError("the engine broke")
        with pytest.raises(EngineError, match="broke"):
            batcher.submit(numbered(1)).result(timeout=5)
        engine.error = None
        assert number_of(batcher.submit(numbered(2)).result(timeout=5)) == 2


def test_a_bad_picture_is_refused_at_once_and_harms_nobody() -> None:
    with Batcher(KnownDelay(), max_batch=2, max_wait=0.01) as batcher:
        good = batcher.submit(numbered(3))
        with pytest.raises(ImageError, match="float"):
            batcher.submit(np.zeros((2, 2, 3)))
        assert number_of(good.result(timeout=5)) == 3


def test_back_pressure_policies() -> None:
    engine = KnownDelay(delay=0.3)
    with Batcher(engine, max_batch=1, max_wait=0, capacity=2, policy="error") as batcher:
        batcher.submit(numbered(0))
        time.sleep(0.1)
        kept = [batcher.submit(numbered(1)), batcher.submit(numbered(2))]
        with pytest.raises(QueueFull, match="capacity 2"):
            batcher.submit(numbered(3))
        assert [number_of(f.result(timeout=5)) for f in kept] == [1, 2]
    with Batcher(engine, max_batch=1, max_wait=0, capacity=2, policy="drop_oldest") as batcher:
        batcher.submit(numbered(0))
        time.sleep(0.1)
        oldest, middle, newest = (batcher.submit(numbered(i)) for i in (1, 2, 3))
        with pytest.raises(QueueFull, match="newer"):
            oldest.result(timeout=5)
        assert [number_of(f.result(timeout=5)) for f in (middle, newest)] == [2, 3]
    with Batcher(engine, max_batch=1, max_wait=0, capacity=1, policy="block") as batcher:
        start = time.monotonic()
        futures = [batcher.submit(numbered(i)) for i in range(4)]
        assert time.monotonic() - start > 0.5, "submit did not wait for room"
        assert [number_of(f.result(timeout=5)) for f in futures] == [0, 1, 2, 3]


def test_closing_finishes_what_was_submitted_and_refuses_more() -> None:
    batcher = Batcher(KnownDelay(delay=0.05), max_batch=2, max_wait=10)
    futures = [batcher.submit(numbered(i)) for i in range(5)]
    batcher.close()
    batcher.close()
    assert [number_of(f.result(timeout=0)) for f in futures] == list(range(5))
    with pytest.raises(EngineError, match="closed"):
        batcher.submit(numbered(9))


@pytest.mark.parametrize("cut", [np.s_[:], np.s_[:10], np.s_[:, 3:9]], ids=["whole crop", "full-width strip", "part"])
def test_a_frame_buffer_may_be_used_again_at_once(cut: Any) -> None:
    engine = Keeps()
    with Batcher(engine, max_wait=0.1) as batcher:
        frame = np.random.default_rng(0).integers(1, 256, (20, 12, 3), np.uint8)
        submitted = frame[cut].copy()
        future = batcher.submit(frame[cut])
        frame[:] = 0
        future.result(timeout=5)
    np.testing.assert_array_equal(engine.images[0], submitted)


def test_without_a_copy_the_engine_gets_the_callers_own_memory() -> None:
    engine = Keeps()
    frame = np.ones((20, 12, 3), np.uint8)
    with Batcher(engine, max_wait=0) as batcher:
        batcher.submit(frame, copy=False).result(timeout=5)
    assert np.shares_memory(engine.images[0], frame)


def test_closing_in_a_callback_finishes_the_rest() -> None:
    batcher = Batcher(KnownDelay(delay=0.02), max_batch=1, max_wait=0)
    errors: list[BaseException] = []

    def close(_: object) -> None:
        try:
            batcher.close()
        except BaseException as error:
            errors.append(error)

    futures = [batcher.submit(numbered(i)) for i in range(4)]
    futures[0].add_done_callback(close)
    assert [number_of(f.result(timeout=5)) for f in futures] == [0, 1, 2, 3]
    batcher.close()
    assert not batcher._thread.is_alive() and errors == []


@pytest.mark.parametrize("policy", ["block", "drop_oldest"])
def test_a_callback_may_submit_to_a_full_queue(policy: str) -> None:
    more: list[Any] = []
    with Batcher(KnownDelay(delay=0.05), max_batch=1, max_wait=0, capacity=1, policy=policy) as batcher:
        first = batcher.submit(numbered(1))
        first.add_done_callback(lambda _: more.append(batcher.submit(numbered(3))))
        time.sleep(0.02)
        batcher.submit(numbered(2))  # fills the queue
        first.result(timeout=5)
        time.sleep(0.05)
        assert number_of(more[0].result(timeout=5)) == 3


def test_a_callback_of_a_dropped_crop_may_submit() -> None:
    again: list[Any] = []
    with Batcher(KnownDelay(delay=0.1), max_batch=1, max_wait=0, capacity=1, policy="drop_oldest") as batcher:
        batcher.submit(numbered(0))
        time.sleep(0.03)
        dropped = batcher.submit(numbered(1))
        dropped.add_done_callback(lambda _: again.append(batcher.submit(numbered(3))))
        batcher.submit(numbered(2))
        assert number_of(again[0].result(timeout=5)) == 3


def test_a_cancelled_crop_is_skipped() -> None:
    engine = KnownDelay(delay=0.2)
    with Batcher(engine, max_batch=1, max_wait=0) as batcher:
        batcher.submit(numbered(0))
        time.sleep(0.05)
        cancelled, kept = batcher.submit(numbered(1)), batcher.submit(numbered(2))
        assert cancelled.cancel()
        assert number_of(kept.result(timeout=5)) == 2
    assert 1 not in engine.seen


def test_settings_that_cannot_be() -> None:
    for settings in ({"policy": "hope"}, {"max_batch": 0}, {"max_batch": 9, "capacity": 8}, {"max_wait": -1}):
        with pytest.raises(EngineError):
            Batcher(KnownDelay(), **settings)
