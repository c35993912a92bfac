"""Does a plan fit this machine? Compared with its manifest before a byte of it is deserialised."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Protocol

from dpm_edge.errors import EngineError
from dpm_edge.files import sha256
from dpm_edge.manifest import GpuCard, Manifest, rebuild_advice
from dpm_edge.plugin import plugin_library


class GpuOfThisMachine(Protocol):
    """A GPU of this machine."""

    @property
    def name(self) -> str:
        """Such as "Orin"."""

    @property
    def compute_capability(self) -> str:
        """Such as "8.7"."""

    @property
    def driver(self) -> str:
        """The newest CUDA version that its driver serves, such as "12.6"."""


def check(manifest: Manifest, folder: Path, device: GpuOfThisMachine, tensorrt: str) -> Path | None:
    """Refuse a plan of another GPU, TensorRT, plugin, or of a newer driver.

    Args:
        manifest: of the engine directory `folder`.
        device: the GPU that is to run it.
        tensorrt: version of the library here.

    Returns:
        The plugin library to load before the plan; None where it calls no plugin.

    Raises:
        EngineError: naming both sides and the command that builds the plan for this machine.
        MissingLibrary: the plan calls our plugin, which is not here.
    """
    gpu = manifest.gpu
    if gpu is None:
        raise EngineError(
            f"expected the GPU of the plan in the manifest of {folder}, got none. {rebuild_advice(folder)}"
        )
    differences = [
        *_hardware(gpu, device),
        *_library(gpu, tensorrt),
        *([f"driver {gpu.driver}, here is {device.driver}"] if _older(device.driver, gpu.driver) else []),
    ]
    plugin = plugin_library() if gpu.plugin else None
    if plugin is not None and sha256(plugin) != gpu.plugin:
        here = sha256(plugin)
        differences.append(f"plugin library {str(gpu.plugin)[:12]}…, here is {here[:12]}… ({plugin})")
    if differences:
        raise EngineError(
            f"expected a plan for this machine in {folder}, got one that was built for: {'; '.join(differences)}. "
            f"{rebuild_advice(folder)}"
        )
    return plugin


def _hardware(gpu: GpuCard, device: GpuOfThisMachine) -> list[str]:
    """How this GPU differs from those that the plan runs on."""
    built, here = _numbers(gpu.compute_capability), _numbers(device.compute_capability)
    if gpu.hardware_compatibility == "ampere_plus":
        fits = here >= [8, 0]
    elif gpu.hardware_compatibility == "same_compute_capability":
        fits = here == built
    else:
        fits = here == built and device.name == gpu.name
    if fits:
        return []
    return [
        f"GPU {gpu.name!r} of compute capability {gpu.compute_capability} (hardware compatibility "
        f"{gpu.hardware_compatibility}), here is {device.name!r} of {device.compute_capability}"
    ]


def _library(gpu: GpuCard, here: str) -> list[str]:
    """How this TensorRT differs from those that the plan runs on."""
    built, now = _numbers(gpu.tensorrt), _numbers(here)
    later = gpu.version_compatible and now[:1] == built[:1] and now >= built
    return [] if now == built or later else [f"TensorRT {gpu.tensorrt}, here is {here}"]


def _older(here: str, built: str) -> bool:
    """Whether this driver is older than the build's; an unknown one of the build's is not asked about."""
    return bool(built) and _numbers(here) < _numbers(built)


def _numbers(version: str) -> list[int]:
    return [int(part) for part in re.findall(r"\d+", version)]
