"""What is measured, and in which order: each engine has a process of its own, and they take turns, so that all of them
meet the same noise.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpm_edge import env
from dpm_edge.bench import machine, results
from dpm_edge.bench.cameras import CameraLoad
from dpm_edge.bench.load import ClosedLoop, next_load
from dpm_edge.bench.worker import EngineUnderTest, WorkerProcess
from dpm_edge.errors import SpecError
from dpm_edge.manifest import BatchRange, Manifest
from dpm_edge.progress import say, track

FORMAT = 1
BATCHES = (1, 8, 32)
STEPS = 6
"""Loads that are tried for each number of cameras."""
TURNS = 2
"""Turns in which the engines share the measurement of a batch size."""
WARM_UP_SECONDS = 0.3
REST = 0.5
"""Seconds of doing nothing before the engines are opened: whatever works then is somebody else."""
LEAST_FRAMES, LONGEST = 20, 4
"""An end-to-end measurement goes on for so many frames with people in them, but at most so many times as long."""


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Everything that two runs must have in common to be compared."""

    batches: tuple[int, ...] = BATCHES
    """Crops in one call, engine only."""
    streams: tuple[int, ...] = (1, 2)
    """Threads that call at once, engine only."""
    cameras: tuple[int, ...] = (1, 2, 4, 8)
    """Cameras at once, end to end."""
    seconds: float = 1.5
    """Length of each measurement."""
    fps: float = 30.0
    """Frames per second of each camera."""
    deadline_ms: float = 100.0
    """A load is sustained when 99 of 100 frames have their ids within this time."""
    gallery: int = 1000
    """Rows of the gallery that every frame's people are looked up in."""
    max_wait_ms: float = 10.0
    """How long a crop waits for company in the batcher."""

    def __post_init__(self) -> None:
        for name in ("batches", "streams", "cameras"):
            values = getattr(self, name)
            if not values or min(values) < 1 or len(set(values)) < len(values):
                raise SpecError(f"expected different whole numbers of 1 or more as {name}, got {values}")
        for name in ("seconds", "fps", "deadline_ms"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SpecError(f"expected {name} above 0, got {getattr(self, name)}")
        if self.gallery < 1:
            raise SpecError(f"expected a gallery of 1 row or more, got {self.gallery}")

    @property
    def warm_up(self) -> float:
        """Seconds before each end-to-end measurement that are not counted."""
        return min(0.3, self.seconds / 4)

    def measurements(self, engines: int) -> int:
        """How many there are in all."""
        return engines * (len(self.batches) * len(self.streams) * TURNS + len(self.cameras) * STEPS)

    def duration(self, engines: int) -> float:
        """Seconds that they take, without opening and warming up the engines."""
        calls = len(self.batches) * len(self.streams) * self.seconds
        return engines * (calls + len(self.cameras) * STEPS * (self.seconds + self.warm_up + 0.2))


@dataclass(frozen=True)
class Contender:
    """An engine that takes part."""

    name: str
    folder: Path
    device: str | None
    """None: as it was built."""


@dataclass
class _Running:
    """An engine that is open, and what was measured of it."""

    entry: Contender
    manifest: Manifest
    process: WorkerProcess
    engine_only: list[dict[str, Any]] = field(default_factory=list)
    end_to_end: list[dict[str, Any]] = field(default_factory=list)
    max_batch: int = 1
    rate: float = 0.0
    """Crops per second of the calls that the batcher will make, engine only."""


def measure(
    entries: Sequence[Contender], settings: BenchSettings, *, threads: int | None, quiet: bool
) -> dict[str, Any]:
    """Measure all entries; the first is the one that the others are compared with.

    Returns:
        What `dpm-edge bench --json` prints; docs/bench.md says what is what.

    Raises:
        DpmError: an engine cannot be opened, or fails.
    """
    manifests = [Manifest.read(entry.folder) for entry in entries]
    meter = machine.find_meter()
    before, resting = machine.conditions(), machine.cpu_times()
    time.sleep(REST)
    times = machine.cpu_times()
    with contextlib.ExitStack() as stack:
        running = []
        for entry, manifest in zip(entries, manifests):
            _say(quiet, f"opening {entry.name}")
            arguments = entry.folder, entry.device, threads, settings.gallery
            process = stack.enter_context(WorkerProcess(EngineUnderTest, *arguments, name=entry.name))
            running.append(_Running(entry, manifest, process))
        _warm_up(running, settings)
        runs = settings.measurements(len(running))
        _say(quiet, f"{runs} measurements, about {settings.duration(len(running)):.0f} s")
        for _ in track(_runs(running, settings, meter), what="measurements", total=runs, quiet=quiet):
            pass
        engines = [_summary(one) for one in running]
    return {
        "format": FORMAT,
        "settings": asdict(settings) | {"threads": threads},
        "machine": env.machine_card(),
        "conditions": {
            "before": before,
            "after": machine.conditions(),
            "others_working": machine.between(resting, times)["cores_working"],
            **machine.between(times, machine.cpu_times()),
            "energy": meter if isinstance(meter, str) else meter.name,
        },
        "engines": engines,
        "ratios": results.ratios(engines),
    }


def usual_batches(taken: BatchRange) -> tuple[int, ...]:
    """Those of BATCHES that an engine takes in one call; its best one where it takes none of them."""
    return tuple(batch for batch in BATCHES if taken.low <= batch <= taken.high) or (taken.best,)


def check(settings: BenchSettings, manifest: Manifest) -> None:
    """Refuse batches that the engine does not take in one call.

    Raises:
        SpecError: there is one; the message has the engine's range.
    """
    low, high = manifest.batch.low, manifest.batch.high
    wrong = [batch for batch in settings.batches if not low <= batch <= high]
    if wrong:
        raise SpecError(
            f"expected batches that the engine takes in one call, {low} to {high}, got {wrong[0]}. "
            "Give others (--batch)"
        )


def _warm_up(running: Sequence[_Running], settings: BenchSettings) -> None:
    """Every batch size once or more, so that buffers exist and libraries have chosen their ways."""
    for one in running:
        for batch in settings.batches:
            one.process.call("engine_only", batch, max(settings.streams), WARM_UP_SECONDS / len(settings.batches))


def _runs(running: Sequence[_Running], settings: BenchSettings, meter: machine.EnergyMeter | str) -> Iterator[None]:
    """Every measurement, one step of the iterator each."""
    for batch in settings.batches:
        for streams in settings.streams:
            calls: dict[str, list[tuple[ClosedLoop, float | None]]] = {one.entry.name: [] for one in running}
            for _ in range(TURNS):
                for one in running:
                    arguments = "engine_only", batch, streams, settings.seconds / TURNS
                    calls[one.entry.name].append(_metered(meter, one.process, *arguments))
                    yield
            for one in running:
                one.engine_only.append(results.engine_only_cell(batch, streams, calls[one.entry.name]))
    for one in running:
        _choose_batch(one, settings)
    for cameras in settings.cameras:
        for step in range(STEPS):
            for one in running:
                share = next_load(results.tried_loads(one.end_to_end, cameras))
                if share is None:
                    continue
                load = _load(one, cameras, share, settings)
                seen, joules = _metered(meter, one.process, "end_to_end", load, step)
                one.end_to_end.append(
                    {"share": share, **results.end_to_end_point(load, seen, joules, deadline_ms=settings.deadline_ms)}
                )
                yield


def _metered(meter: machine.EnergyMeter | str, process: WorkerProcess, *call: Any) -> tuple[Any, float | None]:
    """A call's answer and the joules that went by."""
    if isinstance(meter, str):
        return process.call(*call), None
    meter.start()
    try:
        answer = process.call(*call)
    finally:
        joules = meter.stop()
    return answer, joules


def _choose_batch(one: _Running, settings: BenchSettings) -> None:
    """The batcher's largest batch: the fastest that takes at most half of the deadline, or else the smallest."""
    cells = [cell for cell in one.engine_only if cell["streams"] == min(settings.streams)]
    quick = [cell for cell in cells if cell["p50_ms"] <= settings.deadline_ms / 2]
    best = max(quick, key=lambda cell: cell["crops_per_second"]) if quick else min(cells, key=lambda c: c["batch"])
    one.max_batch, one.rate = best["batch"], best["crops_per_second"]


def _load(one: _Running, cameras: int, share: float, settings: BenchSettings) -> CameraLoad:
    """So many cameras that bring that share of the engine's own rate."""
    people = share * one.rate / (cameras * settings.fps)
    least_seconds = LEAST_FRAMES / (cameras * settings.fps * min(1.0, people))
    return CameraLoad(
        cameras=cameras,
        people=people,
        fps=settings.fps,
        seconds=min(max(least_seconds, settings.seconds), LONGEST * settings.seconds),
        warm_up=settings.warm_up,
        max_batch=one.max_batch,
        max_wait=settings.max_wait_ms / 1e3,
        capacity=one.max_batch + math.ceil(2 * one.rate * settings.deadline_ms / 1e3),
    )


def _summary(one: _Running) -> dict[str, Any]:
    """Everything about one engine."""
    manifest = one.manifest
    return {
        "name": one.entry.name,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "model": manifest.spec.name,
        "fingerprint": manifest.fingerprint,
        **one.process.call("opened"),
        "memory": one.process.call("memory"),
        "engine_only": one.engine_only,
        "batcher": {"max_batch": one.max_batch, "engine_only_crops_per_second": one.rate},
        "end_to_end": one.end_to_end,
        "sustained": results.sustained(one.end_to_end),
    }


def _say(quiet: bool, message: str) -> None:
    if not quiet:
        say(message)
