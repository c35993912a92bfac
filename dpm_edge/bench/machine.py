"""What the machine tells of itself: clocks, heat and other load (why two runs may differ), and the energy that is used.

From /proc, /sys, NVIDIA's management library (NVML, by `nvidia-ml-py`) and a Jetson's nvpmodel. Joules come from NVML's
counter, a Jetson's INA3221 rails, or Intel's RAPL: all of it is of the whole GPU, board or processor package, whoever
uses it, idle power included.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

ROOT = Path("/")
NVIDIA_DRIVERS = ("/proc/driver/nvidia", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu")
"""One of these is there where an NVIDIA driver is: Linux, WSL, Jetson."""
INPUT_RAILS = ("VDD_IN", "POM_5V_IN", "5V_IN")
"""Names of the rail that feeds a whole Jetson module; where there is none, every named rail is added up."""
READ_EVERY = 0.02
"""Seconds between two readings of the rails."""


def conditions(root: Path = ROOT) -> dict[str, Any]:
    """The machine as it is now. What cannot be read is a sentence that says why.

    root: where proc and sys are.
    """
    return {
        "load_average": _text(root / "proc/loadavg", lambda text: float(text.split()[0])),
        "cpu_mhz": _clocks(root),
        "governor": _text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", str.strip),
        "celsius": _temperatures(root),
        "times_slowed_by_heat": _slowed(root),
        "power_mode": _power_mode(),
        "gpu": gpu_state(),
    }


def cpu_times(root: Path = ROOT) -> dict[str, float] | None:
    """Seconds since the machine started, of all its cores together: working, stolen by the hypervisor, in all."""
    try:
        ticks = [int(word) for word in (root / "proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    user, nice, system, idle, waiting, irq, soft, stolen = (tick / os.sysconf("SC_CLK_TCK") for tick in ticks)
    working = user + nice + system + irq + soft
    return {"working": working, "stolen": stolen, "all": working + stolen + idle + waiting}


def between(before: dict[str, float] | None, after: dict[str, float] | None) -> dict[str, Any]:
    """Shares of the cores' time between two `cpu_times`: worked, and stolen by a hypervisor for other machines."""
    if before is None or after is None or after["all"] <= before["all"]:
        return dict.fromkeys(("cores_working", "cores_stolen"), "not readable: /proc/stat")
    span = after["all"] - before["all"]
    return {f"cores_{name}": round((after[name] - before[name]) / span, 3) for name in ("working", "stolen")}


def _text(path: Path, parse: Any) -> Any:
    """What a file holds, or why it cannot be read."""
    try:
        return parse(path.read_text())
    except OSError as error:
        return f"not readable: {path} ({error.strerror})"
    except (ValueError, IndexError):
        return f"not readable: {path} holds something else"


def _numbers(paths: list[Path], scale: float) -> list[float]:
    """The numbers that these files hold; those that cannot be read are left out."""
    found = []
    for path in paths:
        try:
            found.append(round(int(path.read_text()) * scale, 1))
        except (OSError, ValueError):
            continue
    return found


def _clocks(root: Path) -> list[float] | str:
    """MHz of each core: the governor's, or what /proc/cpuinfo says."""
    cores = sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"))
    if clocks := _numbers(cores, 1e-3):
        return clocks
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
        clocks = [round(float(line.split(":")[1]), 1) for line in lines if line.startswith("cpu MHz")]
    except (OSError, ValueError, IndexError):
        clocks = []
    return clocks or "not readable: neither cpufreq nor /proc/cpuinfo gives clocks"


def _temperatures(root: Path) -> dict[str, float] | str:
    """Zone → °C."""
    found = {}
    for zone in sorted((root / "sys/class/thermal").glob("thermal_zone*")):
        if values := _numbers([zone / "temp"], 1e-3):
            found[_text(zone / "type", str.strip)] = values[0]
    return found or "not readable: no thermal zone in /sys/class/thermal"


def _slowed(root: Path) -> int | str:
    """How often the cores were slowed down for heat since the machine started (Intel)."""
    counts = _numbers(
        sorted((root / "sys/devices/system/cpu").glob("cpu[0-9]*/thermal_throttle/core_throttle_count")), 1
    )
    return int(sum(counts)) if counts else "not readable: this CPU does not count it in /sys"


def _power_mode() -> str:
    """A Jetson's power mode."""
    tool = shutil.which("nvpmodel")
    if not tool:
        return "not readable: no nvpmodel, so this is no Jetson"
    try:
        said = subprocess.run([tool, "-q"], capture_output=True, text=True, timeout=10).stdout.split("\n")
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not readable: nvpmodel -q ({error})"
    return next((line.split(":", 1)[1].strip() for line in said if "Power Mode" in line), "not readable: nvpmodel -q")


@cache
def _nvml() -> tuple[Any, Any] | str:
    """The module and the GPU's handle, or why there is none."""
    try:
        import pynvml
    except ImportError:
        driver = any(Path(path).exists() for path in NVIDIA_DRIVERS)
        return "nvidia-ml-py is missing: pip install 'dpm-edge[bench]'" if driver else "no NVIDIA driver"
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError as error:
        return f"NVML: {error}"


def nvml_missing() -> str | None:
    """Why NVML says nothing here; None where it does."""
    found = _nvml()
    return found if isinstance(found, str) else None


def _ask_nvml(name: str, *arguments: Any) -> Any:
    """What the function `name` says of the GPU; None where this GPU does not support it."""
    found = _nvml()
    if isinstance(found, str):
        return None
    module, gpu = found
    try:
        return getattr(module, name)(gpu, *arguments)
    except module.NVMLError:
        return None


def gpu_joules() -> float | None:
    """The GPU's energy counter (Volta and newer)."""
    millijoules = _ask_nvml("nvmlDeviceGetTotalEnergyConsumption")
    return None if millijoules is None else millijoules / 1e3


def gpu_memory_of_this_process() -> float | None:
    """Megabytes that this process holds on the GPU."""
    processes = _ask_nvml("nvmlDeviceGetComputeRunningProcesses") or []
    held = [p.usedGpuMemory for p in processes if p.pid == os.getpid() and p.usedGpuMemory is not None]
    return round(sum(held) / 1e6, 1) if held else None


def gpu_state() -> dict[str, Any] | str:
    """Name, clocks, temperature and reasons for slowing down, or why they cannot be read."""
    found = _nvml()
    if isinstance(found, str):
        return f"not readable: {found}"
    module = found[0]
    return {
        "name": _ask_nvml("nvmlDeviceGetName"),
        "sm_mhz": _ask_nvml("nvmlDeviceGetClockInfo", module.NVML_CLOCK_SM),
        "memory_mhz": _ask_nvml("nvmlDeviceGetClockInfo", module.NVML_CLOCK_MEM),
        "celsius": _ask_nvml("nvmlDeviceGetTemperature", module.NVML_TEMPERATURE_GPU),
        "clock_event_reasons": _ask_nvml("nvmlDeviceGetCurrentClocksThrottleReasons"),
    }


class EnergyMeter(Protocol):
    """Something that knows how much energy went by."""

    name: str

    def start(self) -> None:
        """Begin."""

    def stop(self) -> float:
        """Joules since `start`."""


def find_meter(root: Path = ROOT) -> EnergyMeter | str:
    """This machine's meter, or why there is none."""
    if gpu_joules() is not None:
        return EnergyCounter("GPU, NVML's counter", lambda: gpu_joules() or 0.0)
    if rails := find_rails(root):
        names = ", ".join(rail.name for rail in rails)
        return SampledPower(f"board, rails {names}", lambda: sum(rail.watts() for rail in rails))
    packages = sorted((root / "sys/class/powercap").glob("intel-rapl:[0-9]"))
    if not packages:
        return f"not reported by this machine ({nvml_missing()}; no INA3221 rails; no RAPL)"
    try:
        for package in packages:
            _whole_number(package / "energy_uj")
    except OSError as error:
        return f"not reported: {packages[0] / 'energy_uj'} ({error.strerror}; it is for root only)"
    return EnergyCounter("processor packages, RAPL", RaplCounter(packages).joules)


@dataclass
class EnergyCounter:
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


class SampledPower:
    """Watts, read every READ_EVERY seconds on a thread and added up (trapezoids)."""

    def __init__(self, name: str, watts: Callable[[], float], every: float = READ_EVERY) -> None:
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
class PowerRail:
    """One channel of an INA3221: millivolts and milliamperes in files."""

    name: str
    volts: Path
    amperes: Path

    def watts(self) -> float:
        """Now."""
        return _whole_number(self.volts) * _whole_number(self.amperes) * 1e-6


def find_rails(root: Path) -> list[PowerRail]:
    """The rail that feeds the module, or else every rail that has a name and can be read."""
    rails = []
    for label in sorted((root / "sys/bus/i2c/drivers/ina3221").glob("*/hwmon/hwmon*/in[123]_label")):
        channel = label.name[2]
        rail = PowerRail(
            label.read_text().strip(), label.with_name(f"in{channel}_input"), label.with_name(f"curr{channel}_input")
        )
        try:
            rail.watts()
        except (OSError, ValueError):
            continue
        if rail.name not in ("", "NC"):
            rails.append(rail)
    return [rail for rail in rails if rail.name in INPUT_RAILS] or rails


class RaplCounter:
    """Processor packages whose counters of microjoules start again at zero once they are full."""

    def __init__(self, packages: list[Path]) -> None:
        self._packages = packages
        self._full = [_whole_number(package / "max_energy_range_uj") for package in packages]
        self._last = [_whole_number(package / "energy_uj") for package in packages]
        self._sum = 0.0

    def joules(self) -> float:
        """Since this object was made; to be read more often than a counter fills up."""
        for i, package in enumerate(self._packages):
            now = _whole_number(package / "energy_uj")
            self._sum += now - self._last[i] + (self._full[i] if now < self._last[i] else 0)
            self._last[i] = now
        return self._sum * 1e-6


def _whole_number(path: Path) -> int:
    return int(path.read_text())
