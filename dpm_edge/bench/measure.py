"""All measurements of one run: each engine in a process of its own, taking turns, so that all meet the same noise."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dpm_edge import env
from dpm_edge.bench import energy, ladder, points, sensors
from dpm_edge.bench.apart import Apart
from dpm_edge.bench.cameras import Load
from dpm_edge.bench.load import Calls
from dpm_edge.bench.report import ratios
from dpm_edge.bench.settings import STEPS, TURNS, Settings
from dpm_edge.bench.subject import Subject
from dpm_edge.errors import SpecError
from dpm_edge.manifest import Manifest
from dpm_edge.progress import say, track

FORMAT = 1
WARM_UP_SECONDS = 0.3
REST = 0.5
"""Seconds of doing nothing before the engines are opened: whatever works then is somebody else."""
LEAST_FRAMES, LONGEST = 20, 4
"""An end-to-end measurement goes on for so many frames with people in them, but at most so many times as long."""


@dataclass(frozen=True)
class Entry:
    """An engine that takes part."""

    name: str
    folder: Path
    device: str | None
    """None: as it was built."""


@dataclass
class _Running:
    """An engine that is open, and what was measured of it."""

    entry: Entry
    manifest: Manifest
    process: Apart
    engine_only: list[dict[str, Any]] = field(default_factory=list)
    end_to_end: list[dict[str, Any]] = field(default_factory=list)
    max_batch: int = 1
    rate: float = 0.0
    """Crops per second of the calls that the batcher will make, engine only."""


def measure(entries: Sequence[Entry], settings: Settings, *, threads: int | None, quiet: bool) -> dict[str, Any]:
    """Measure all entries; the first is the one that the others are compared with.

    Returns:
        What `dpm-edge bench --json` prints; docs/bench.md says what is what.

    Raises:
        DpmError: an engine cannot be opened, or fails.
    """
    manifests = [Manifest.read(entry.folder) for entry in entries]
    meter = energy.find()
    before, resting = sensors.read(), sensors.cpu_times()
    time.sleep(REST)
    times = sensors.cpu_times()
    with contextlib.ExitStack() as stack:
        running = []
        for entry, manifest in zip(entries, manifests):
            _say(quiet, f"opening {entry.name}")
            arguments = entry.folder, entry.device, threads, settings.gallery
            process = stack.enter_context(Apart(Subject, *arguments, name=entry.name))
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
            "after": sensors.read(),
            "others_working": sensors.between(resting, times)["cores_working"],
            **sensors.between(times, sensors.cpu_times()),
            "energy": meter if isinstance(meter, str) else meter.name,
        },
        "engines": engines,
        "ratios": ratios(engines),
    }


def check(settings: Settings, manifest: Manifest) -> None:
    """Refuse batches that the engine does not take in one call.

    Raises:
        SpecError: there is one; the message has the engine's range.
    """
    low, high = manifest.batch.low, manifest.batch.high
    wrong = [batch for batch in settings.batches if not low <= batch <= high]
    if wrong:
        raise SpecError(f"batch {wrong[0]} is outside what the engine takes in one call, {low} to {high}: --batch")


def _warm_up(running: Sequence[_Running], settings: Settings) -> None:
    """Every batch size once or more, so that buffers exist and libraries have chosen their ways."""
    for one in running:
        for batch in settings.batches:
            one.process.call("engine_only", batch, max(settings.streams), WARM_UP_SECONDS / len(settings.batches))


def _runs(running: Sequence[_Running], settings: Settings, meter: energy.Meter | str) -> Iterator[None]:
    """Every measurement, one step of the iterator each."""
    for batch in settings.batches:
        for streams in settings.streams:
            calls: dict[str, list[tuple[Calls, float | None]]] = {one.entry.name: [] for one in running}
            for _ in range(TURNS):
                for one in running:
                    arguments = "engine_only", batch, streams, settings.seconds / TURNS
                    calls[one.entry.name].append(_metered(meter, one.process, *arguments))
                    yield
            for one in running:
                one.engine_only.append(points.cell(batch, streams, calls[one.entry.name]))
    for one in running:
        _choose_batch(one, settings)
    for cameras in settings.cameras:
        for step in range(STEPS):
            for one in running:
                share = ladder.next_load(points.tried(one.end_to_end, cameras))
                if share is None:
                    continue
                load = _load(one, cameras, share, settings)
                seen, joules = _metered(meter, one.process, "end_to_end", load, step)
                one.end_to_end.append({"share": share, **points.point(load, seen, joules, settings)})
                yield


def _metered(meter: energy.Meter | str, process: Apart, *call: Any) -> tuple[Any, float | None]:
    """A call's answer and the joules that went by."""
    if isinstance(meter, str):
        return process.call(*call), None
    meter.start()
    try:
        answer = process.call(*call)
    finally:
        joules = meter.stop()
    return answer, joules


def _choose_batch(one: _Running, settings: Settings) -> None:
    """The batcher's largest batch: the fastest that takes at most half of the deadline, or else the smallest."""
    cells = [cell for cell in one.engine_only if cell["streams"] == min(settings.streams)]
    quick = [cell for cell in cells if cell["p50_ms"] <= settings.deadline_ms / 2]
    best = max(quick, key=lambda cell: cell["crops_per_second"]) if quick else min(cells, key=lambda c: c["batch"])
    one.max_batch, one.rate = best["batch"], best["crops_per_second"]


def _load(one: _Running, cameras: int, share: float, settings: Settings) -> Load:
    """So many cameras that bring that share of the engine's own rate."""
    people = share * one.rate / (cameras * settings.fps)
    wanted = LEAST_FRAMES / (cameras * settings.fps * min(1.0, people))
    return Load(
        cameras=cameras,
        people=people,
        fps=settings.fps,
        seconds=min(max(wanted, settings.seconds), LONGEST * settings.seconds),
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
        "sustained": points.sustained(one.end_to_end),
    }


def _say(quiet: bool, message: str) -> None:
    if not quiet:
        say(message)
