"""Joules while something runs, from whatever this machine has: NVML's counter, a Jetson's rails, or RAPL.

All of it is of the whole GPU, board or processor package, whoever uses it, idle power included.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from dpm_edge.bench import nvml
from dpm_edge.bench.sensors import ROOT

INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "5V_IN")
"""Names of the rail that feeds a whole Jetson module; where there is none, every named rail is added up."""
EVERY = 0.02
"""Seconds between two readings of the rails."""


class Meter(Protocol):
    """Something that knows how much energy went by."""

    name: str

    def start(self) -> None:
        """Begin."""

    def stop(self) -> float:
        """Joules since `start`."""


def find(root: Path = ROOT) -> Meter | str:
    """This machine's meter, or why there is none."""
    if nvml.joules() is not None:
        return Counter("GPU, NVML's counter", lambda: nvml.joules() or 0.0)
    if rails := find_rails(root):
        names = ", ".join(rail.name for rail in rails)
        return Sampled(f"board, rails {names}", lambda: sum(rail.watts() for rail in rails))
    packages = sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]"))
    if not packages:
        return f"not reported by this machine ({nvml.missing()}; no INA3221 rails; no RAPL)"
    try:
        for package in packages:
            _number(package / "energy_uj")
    except OSError as error:
        return f"not reported: {packages[0] / 'energy_uj'} ({error.strerror}; it is for root only)"
    return Counter("processor packages, RAPL", Rapl(packages).joules)


@dataclass
class Counter:
    """A counter of joules that only rises."""

    name: str
    read: Callable[[], float]
    _from: float = 0.0

    def start(self) -> None:
        """Remember where the counter stands."""
        self._from = self.read()

    def stop(self) -> float:
        """How far it has come."""
        return self.read() - self._from


class Sampled:
    """Watts, read every EVERY seconds on a thread and added up (trapezoids)."""

    def __init__(self, name: str, watts: Callable[[], float], every: float = EVERY) -> None:
        self.name = name
        self._watts, self._every = watts, every
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self._readings: list[tuple[float, float]] = []

    def start(self) -> None:
        """Begin to read."""
        self._end.clear()
        self._readings = [(time.perf_counter(), self._watts())]
        self._thread = threading.Thread(target=self._read, name="dpm-edge-energy", daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Read once more and add up."""
        assert self._thread is not None, "stop comes after start"
        self._end.set()
        self._thread.join()
        self._readings.append((time.perf_counter(), self._watts()))
        pairs = zip(self._readings, self._readings[1:])
        return sum((t1 - t0) * (w0 + w1) / 2 for (t0, w0), (t1, w1) in pairs)

    def _read(self) -> None:
        while not self._end.wait(self._every):
            self._readings.append((time.perf_counter(), self._watts()))


@dataclass(frozen=True)
class Rail:
    """One channel of an INA3221: millivolts and milliamperes in files."""

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float:
        """Now."""
        return _number(self.volts) * _number(self.amperes) * 1e-6


def find_rails(root: Path) -> list[Rail]:
    """The rail that feeds the module, or else every rail that has a name and can be read."""
    rails = []
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in[123]_label")):
        channel = label.name[2]
        rail = Rail(
            label.read_text().strip(), label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input")
        )
        try:
            rail.watts()
        except (OSError, ValueError):
            continue
        if rail.name not in ("", "NC"):
            rails.append(rail)
    return [rail for rail in rails if rail.name in INPUT_RAILS] or rails


class Rapl:
    """Processor packages whose counters of microjoules start again at zero once they are full."""

    def __init__(self, packages: list[Path]) -> None:
        self._packages = packages
        self._full = [_number(package / "max_energy_range_uj") for package in packages]
        self._last = [_number(package / "energy_uj") for package in packages]
        self._sum = 0.0

    def joules(self) -> float:
        """Since this object was made; to be read more often than a counter fills up."""
        for i, package in enumerate(self._packages):
            now = _number(package / "energy_uj")
            self._sum += now - self._last[i] + (self._full[i] if now < self._last[i] else 0)
            self._last[i] = now
        return self._sum * 1e-6


def _number(path: Path) -> int:
    return int(path.read_text())
