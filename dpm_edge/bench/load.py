"""Two ways to ask for work, and how much of it: at given times, whatever is still unanswered (open loop), or as soon as
the last call is answered (closed loop); and which load to try next.

In a closed loop a slow answer delays the next question, so that nothing ever queues, and the latencies that it gives
say nothing about a machine that others send work to ("coordinated omission"). Those come from the open loop, counted
from the time at which a call was due. The closed loop says how much a machine can do at most.

n calls · times and durations in seconds
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

LOAD_STEP = 0.25
"""By how much the load rises from run to run, as a share of what the engine did alone."""
LEAST_LOAD = LOAD_STEP / 2
"""Where this share is too much, no smaller one is tried: one crop alone takes too long."""


def regular(rate: float, seconds: float, *, phase: float = 0.0) -> NDArray[np.float64]:
    """Times of a camera: every 1 / rate seconds, the first one at `phase` (a share of that, 0..1)."""
    return (np.arange(max(0, round(rate * seconds)), dtype=np.float64) + phase) / rate


def poisson(rate: float, seconds: float, *, seed: int) -> NDArray[np.float64]:
    """Times that know nothing of each other (Poisson), `rate` of them a second on average, in `seconds`."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, max(1, round(2 * rate * seconds + 50)))
    times = np.cumsum(gaps)
    return times[times < seconds]


def at_times(
    due: NDArray[np.float64],
    call: Callable[[int, float], None],
    *,
    now: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Call `call(i, due[i])` once each due time has come; where the last call took too long, at once.

    Args:
        due: (n,) rising times on the clock `now`.
        call: given the number of the call and its due time; latency is `now()` less that, once it is answered.
        now: the clock, in seconds.
        sleep: waits for so many seconds on that clock.
    """
    for i, at in enumerate(due.tolist()):
        left = at - now()
        if left > 0:
            sleep(left)
        call(i, at)


@dataclass(frozen=True)
class ClosedLoop:
    """What a closed loop did."""

    latencies: NDArray[np.float64]
    """(n,) seconds that each call took."""
    rate: float
    """Calls per second, of all streams together."""


def closed_loop(call: Callable[[], object], *, streams: int, seconds: float, least: int = 1) -> ClosedLoop:
    """Call from `streams` threads at once, each as fast as it is answered, for `seconds` and `least` calls each.

    Raises:
        Exception: the first one that a call raised; all threads have ended by then.
    """
    took: list[list[float]] = [[] for _ in range(streams)]
    rates = [0.0] * streams
    stop = threading.Event()
    together = threading.Barrier(streams)

    def stream(index: int) -> None:
        mine = took[index]
        together.wait()
        begin = end = time.perf_counter()
        try:
            while (len(mine) < least or end - begin < seconds) and not stop.is_set():
                start = time.perf_counter()
                call()
                end = time.perf_counter()
                mine.append(end - start)
        except BaseException:
            stop.set()
            raise
        rates[index] = len(mine) / (end - begin)

    on_threads([partial(stream, index) for index in range(streams)])
    return ClosedLoop(np.array([one for mine in took for one in mine]), sum(rates))


def on_threads(works: Sequence[Callable[[], object]]) -> None:
    """Run each on a thread of its own, and wait for all of them.

    Raises:
        BaseException: the first one that any of them raised; all have ended by then.
    """
    errors: list[BaseException] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def next_load(tried: Sequence[tuple[float, bool]]) -> float | None:
    """The next load to run, as a share of the engine's own rate; None where there is nothing left to find out.

    Loads go up in steps of LOAD_STEP, then halve the gap between the largest that was sustained and the smallest that
    was not.

    Args:
        tried: (load, whether it was sustained) of each run so far, in any order.
    """
    failed = min((load for load, kept_up in tried if not kept_up), default=None)
    if failed is None:
        return max((load for load, _ in tried), default=0.0) + LOAD_STEP
    return None if failed <= LEAST_LOAD else ((largest_sustained(tried) or 0.0) + failed) / 2


def largest_sustained(tried: Sequence[tuple[float, bool]]) -> float | None:
    """The largest load that was run and sustained, with none below it that was not; None where there is none.

    What failed once is not relied on, even where more was sustained another time.
    """
    failed = min((load for load, kept_up in tried if not kept_up), default=float("inf"))
    return max((load for load, kept_up in tried if kept_up and load < failed), default=None)
