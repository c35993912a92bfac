"""What the batcher adds: latency beyond its deadline, and whether any of 100,000 crops is lost or swapped.

    python benchmarks/batcher.py        writes benchmarks/results/batcher.json, about a minute

A stand-in engine of known delay; 16 camera threads at 200 crops per second in all for the latency, as fast as they
can for the count. A crop's own delay is what its future took, less the engine's, less the deadline.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dpm_edge.env import machine_card
from dpm_edge.runtime import Embeddings
from dpm_edge.runtime.batcher import Batcher

RESULTS = Path(__file__).parent / "results" / "batcher.json"
CAMERAS = 16


class StandIn:
    """Sleeps, then answers each crop with its own first pixel; remembers how long it really took."""

    def __init__(self, delay: float) -> None:
        self.delay = delay
        self.took: dict[int, float] = {}
        self.batches: list[int] = []

    def embed(self, images: list[np.ndarray]) -> Embeddings:
        start = time.perf_counter()
        features = np.stack([i[0, 0] for i in images]).astype(np.float32)
        if self.delay:
            time.sleep(self.delay)
        self.batches.append(len(images))
        took = time.perf_counter() - start
        for row in features:
            self.took[number_of(row)] = took
        return Embeddings(
            features=features,
            masks=np.full_like(features, 0.5),
            visibility=np.ones(len(images), np.float32),
            rows=np.arange(len(images)),
            fingerprint="stand-in",
        )


def crop(number: int) -> np.ndarray:
    """A picture that says which one it is."""
    return np.full((2, 2, 3), [number % 256, number // 256 % 256, number // 65536], np.uint8)


def number_of(row: np.ndarray) -> int:
    """The inverse of `crop`."""
    return int(row[0] + 256 * row[1] + 65536 * row[2])


def on_threads(work: Callable[[int], None]) -> None:
    """Run work(camera) on a thread for each camera."""
    threads = [threading.Thread(target=work, args=(i,)) for i in range(CAMERAS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def latency(seconds: float, rate: float, deadline: float, delay: float) -> dict[str, float]:
    """Percentiles, in milliseconds, of what a crop took beyond the deadline and the engine."""
    engine = StandIn(delay)
    beyond: list[float] = []

    def camera(index: int) -> None:
        draw = np.random.default_rng(index)
        end = time.perf_counter() + seconds
        number = index * 10_000
        while time.perf_counter() < end:
            time.sleep(draw.exponential(CAMERAS / rate))
            number += 1
            start, mine = time.perf_counter(), number

            def done(_: object, start: float = start, mine: int = mine) -> None:
                beyond.append(time.perf_counter() - start - engine.took[mine] - deadline)

            batcher.submit(crop(number), camera=str(index)).add_done_callback(done)

    with Batcher(engine, max_batch=32, max_wait=deadline, capacity=1024) as batcher:
        on_threads(camera)
    ms = np.array(beyond) * 1e3
    return {
        "crops": len(ms),
        "per_second": round(len(ms) / seconds, 1),
        "deadline_ms": deadline * 1e3,
        "engine_ms": delay * 1e3,
        "mean_batch": round(float(np.mean(engine.batches)), 2),
        **{f"beyond_p{p}_ms": round(float(np.percentile(ms, p)), 3) for p in (50, 90, 99)},
    }


def count(crops: int) -> dict[str, float]:
    """Every crop's answer against its input, 16 threads as fast as they can."""
    engine = StandIn(0.0)
    wrong: list[int] = []
    each = crops // CAMERAS

    def camera(index: int) -> None:
        for start in range(0, each, 50):
            numbers = range(index * each + start, index * each + min(start + 50, each))
            futures = [batcher.submit(crop(n), camera=str(index)) for n in numbers]
            wrong.extend(n for n, f in zip(numbers, futures) if number_of(f.result().features[0]) != n)

    start = time.perf_counter()
    with Batcher(engine, max_batch=32, max_wait=0.002, capacity=1024) as batcher:
        on_threads(camera)
    seconds = time.perf_counter() - start
    return {
        "crops": sum(engine.batches),
        "swapped": len(wrong),
        "lost": each * CAMERAS - sum(engine.batches),
        "seconds": round(seconds, 2),
    }


def main() -> None:
    """Measure and write."""
    report = {
        "command": "python benchmarks/batcher.py",
        "machine": machine_card(),
        "latency": [latency(15, 200, 0.010, delay) for delay in (0.002, 0.005)],
        "count": count(100_000),
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
