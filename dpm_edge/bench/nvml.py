"""What NVIDIA's management library says of the first GPU; nothing where there is none, or no `nvidia-ml-py`."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import Any

DRIVERS = ("/proc/driver/nvidia", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvgpu")
"""One of these is there where an NVIDIA driver is: Linux, WSL, Jetson."""


@cache
def _open() -> tuple[Any, Any] | str:
    """The module and the GPU's handle, or why there is none."""
    try:
        import pynvml
    except ImportError:
        driver = any(Path(path).exists() for path in DRIVERS)
        return "nvidia-ml-py is missing: pip install 'dpm-edge[bench]'" if driver else "no NVIDIA driver"
    try:
        pynvml.nvmlInit()
        return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError as error:
        return f"NVML: {error}"


def missing() -> str | None:
    """Why NVML says nothing here; None where it does."""
    found = _open()
    return found if isinstance(found, str) else None


def _ask(name: str, *arguments: Any) -> Any:
    """What the function `name` says of the GPU; None where this GPU does not support it."""
    found = _open()
    if isinstance(found, str):
        return None
    module, gpu = found
    try:
        return getattr(module, name)(gpu, *arguments)
    except module.NVMLError:
        return None


def joules() -> float | None:
    """The GPU's energy counter (Volta and newer)."""
    millijoules = _ask("nvmlDeviceGetTotalEnergyConsumption")
    return None if millijoules is None else millijoules / 1e3


def memory_of_this_process() -> float | None:
    """Megabytes that this process holds on the GPU."""
    processes = _ask("nvmlDeviceGetComputeRunningProcesses") or []
    held = [p.usedGpuMemory for p in processes if p.pid == os.getpid() and p.usedGpuMemory is not None]
    return round(sum(held) / 1e6, 1) if held else None


def state() -> dict[str, Any] | str:
    """Name, clocks, temperature and reasons for slowing down, or why they cannot be read."""
    found = _open()
    if isinstance(found, str):
        return f"not readable: {found}"
    module = found[0]
    return {
        "name": _ask("nvmlDeviceGetName"),
        "sm_mhz": _ask("nvmlDeviceGetClockInfo", module.NVML_CLOCK_SM),
        "memory_mhz": _ask("nvmlDeviceGetClockInfo", module.NVML_CLOCK_MEM),
        "celsius": _ask("nvmlDeviceGetTemperature", module.NVML_TEMPERATURE_GPU),
        "clock_event_reasons": _ask("nvmlDeviceGetCurrentClocksThrottleReasons"),
    }
