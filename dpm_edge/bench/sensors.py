"""Clocks, temperatures and other load, as /proc, /sys, NVML and nvpmodel tell them: why two runs may differ."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

from dpm_edge.bench import nvml

ROOT = Path("/")


def read(root: Path = ROOT) -> dict[str, Any]:
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
        "gpu": nvml.state(),
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
