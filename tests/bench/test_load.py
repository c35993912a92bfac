"""Load and percentiles against what can be worked out by hand: queues of known service time, sorted lists."""

from __future__ import annotations

import time

import numpy as np
import pytest

from dpm_edge.bench.load import at_times, closed_loop, on_threads, poisson, regular
from dpm_edge.bench.results import percentile, spread


class Clock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


def waits(due: np.ndarray, service: float) -> np.ndarray:
    """Seconds between each call's due time and its start, where each call takes `service`."""
    clock, found = Clock(), []

    def call(i: int, at: float) -> None:
        found.append(clock.now() - at)
        clock.sleep(service)

    at_times(due, call, now=clock.now, sleep=clock.sleep)
    return np.array(found)


def test_queue_that_keeps_up_never_waits() -> None:
    np.testing.assert_allclose(waits(regular(10, 5), 0.1), 0, atol=1e-9)


def test_queue_that_does_not_keep_up_waits_longer_each_time() -> None:
    """D/D/1: a call every 50 ms that takes 80 ms; the i-th has waited 30 i ms. A closed loop would say 0."""
    np.testing.assert_allclose(waits(regular(20, 2), 0.08), 0.03 * np.arange(40), atol=1e-9)


@pytest.mark.parametrize("busy", [0.5, 0.8])
def test_random_arrivals_wait_as_long_as_pollaczek_and_khinchine_say(busy: float) -> None:
    """M/D/1: a mean wait of ρ / (2 (1 − ρ)) services."""
    due = poisson(busy, 150_000, seed=1)
    assert len(due) == pytest.approx(150_000 * busy, rel=0.01)
    assert waits(due, 1.0).mean() == pytest.approx(busy / (2 * (1 - busy)), rel=0.05)


def test_arrivals_of_a_camera_are_regular_and_of_poisson_are_not() -> None:
    times = regular(30, 2, phase=0.5)
    assert len(times) == 60 and times[0] == pytest.approx(0.5 / 30)
    np.testing.assert_allclose(np.diff(times), 1 / 30)
    gaps = np.diff(poisson(100, 1000, seed=2))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)
    np.testing.assert_array_equal(poisson(100, 2, seed=5), poisson(100, 2, seed=5))


def test_calls_on_the_real_clock_are_never_early() -> None:
    begin, starts = time.perf_counter() + 0.02, []
    due = begin + regular(100, 0.3)
    at_times(due, lambda i, at: starts.append(time.perf_counter()))
    assert len(starts) == 30 and (np.array(starts) >= due).all()


def test_closed_loop_counts_every_stream() -> None:
    calls = closed_loop(lambda: time.sleep(0.02), streams=3, seconds=0.3)
    assert (calls.latencies >= 0.02).all()
    assert 60 < calls.rate <= 150
    assert len(closed_loop(lambda: time.sleep(0.05), streams=1, seconds=0, least=4).latencies) == 4


def test_what_a_stream_raises_ends_all_of_them() -> None:
    start = time.perf_counter()
    with pytest.raises(ZeroDivisionError):
        closed_loop(lambda: 1 / 0, streams=4, seconds=30)
    with pytest.raises(KeyError):
        on_threads([lambda: None, lambda: {}["x"]])
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("count", [1, 2, 99, 100, 101, 1000])
def test_percentile_is_a_measured_value_that_enough_others_do_not_exceed(count: int) -> None:
    values = np.random.default_rng(count).exponential(1.0, count)
    for p in (1, 50, 90, 99, 100):
        by_rank = sorted(values)[max(0, -(-p * count // 100) - 1)]
        assert percentile(values, p) == by_rank
        lower, upper = (np.percentile(values, p, method=m) for m in ("lower", "higher"))
        assert lower <= by_rank <= upper


def test_spread_is_in_milliseconds() -> None:
    assert spread(np.arange(1, 201) / 1000) == {
        "count": 200,
        "p50_ms": 100.0,
        "p90_ms": 180.0,
        "p99_ms": 198.0,
        "mean_ms": 100.5,
    }
    with pytest.raises(ValueError, match="got none"):
        percentile([], 50)
