"""What `dpm-edge build` may ask of TensorRT's builder, and the same in the words of NVIDIA's trtexec."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dpm_edge.build.portable import INPUT
from dpm_edge.errors import SpecError, nearest
from dpm_edge.manifest import HARDWARE, TYPED, BatchRange
from dpm_edge.spec import Preprocessing

LOW_MEMORY = {"workspace": 256, "tactic_memory": 1024, "level": 2}
"""What --low-memory sets where the user sets nothing: MiB, MiB, level."""
TRTEXEC = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
TRTEXEC_HARDWARE = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


def default_timing_cache() -> Path:
    """The folder of timing caches, below the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dpm-edge" / "timing"


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """Limits and flags of one build; the defaults are TensorRT's own, and a timing cache."""

    workspace: int | None = None
    """Most memory that one layer may use beside its tensors, MiB; None: all there is."""
    level: int | None = None
    """Builder optimisation level 0 (builds fastest) to 5 (searches longest); None: TensorRT's own, 3."""
    timing_cache: Path | None = field(default_factory=default_timing_cache)
    """Folder of timing caches, which make the next build quicker; None: no cache."""
    version_compatible: bool = False
    """Let later TensorRT versions of the same major version open the plan, through their lean runtime."""
    hardware_compatibility: str = "none"
    """One of HARDWARE: GPUs beside this one that may open the plan; slower, and not on a Jetson."""
    strip_weights: bool = False
    """Leave the weights out of the plan: they are read from the graph beside it, and `refit` replaces them."""
    low_memory: bool = False
    """For boards with little memory: a small workspace, fewer and smaller candidates, no streams beside the first."""

    def __post_init__(self) -> None:
        if self.hardware_compatibility not in HARDWARE:
            raise SpecError(
                f"expected a hardware compatibility, got {self.hardware_compatibility!r}."
                f"{nearest(self.hardware_compatibility, HARDWARE)}"
            )
        if self.workspace is not None and self.workspace < 1:
            raise SpecError(f"expected a workspace of 1 MiB or more, got {self.workspace}")
        if self.level is not None and not 0 <= self.level <= 5:
            raise SpecError(f"expected an optimisation level of 0 to 5, got {self.level}")

    @property
    def workspace_mib(self) -> int | None:
        """The workspace that is asked for, MiB; None for no limit."""
        return LOW_MEMORY["workspace"] if self.workspace is None and self.low_memory else self.workspace

    @property
    def tactic_mib(self) -> int | None:
        """Device memory that one candidate kernel may take while it is timed, MiB; None for no limit."""
        return LOW_MEMORY["tactic_memory"] if self.low_memory else None

    @property
    def optimisation_level(self) -> int | None:
        """The level that is asked for; None for TensorRT's own."""
        return LOW_MEMORY["level"] if self.level is None and self.low_memory else self.level

    def arguments(self) -> tuple[str, ...]:
        """The options of `dpm-edge build` that say the same; the timing cache is not among them."""
        arguments: list[str] = []
        if self.workspace is not None:
            arguments += ["--workspace", str(self.workspace)]
        if self.level is not None:
            arguments += ["--opt-level", str(self.level)]
        if self.version_compatible:
            arguments.append("--version-compatible")
        if self.hardware_compatibility != "none":
            arguments += ["--hardware-compatibility", self.hardware_compatibility]
        if self.strip_weights:
            arguments.append("--strip-weights")
        if self.low_memory:
            arguments.append("--low-memory")
        return tuple(arguments)


def trtexec_command(
    backend: str, pre: Preprocessing, profiles: Sequence[BatchRange], options: PlanOptions, plugin: Path | None = None
) -> str:
    """The command line with which NVIDIA's trtexec builds and times the same plan.

    Its options are those of trtexec's own source (NVIDIA/TensorRT, samples/common/sampleOptions.cpp), 10.3 and 11.1.
    To be run inside the engine directory: builds from the typed graph, then times the last profile's best size with
    CUDA graphs and without copies between host and
    device.
    """
    words = [TRTEXEC[backend], f"--onnx={TYPED}"]
    if backend == "tensorrt":
        words.append("--stronglyTyped")  # the default from TensorRT 11 on
    for index, batch in enumerate(profiles):
        if len(profiles) > 1:
            words.append(f"--profile={index}")
        for name, rows in (("min", batch.low), ("opt", batch.best), ("max", batch.high)):
            words.append(f"--{name}Shapes={_shape(rows, pre)}")
    if options.workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.optimisation_level is not None:
        words.append(f"--builderOptimizationLevel={options.optimisation_level}")
    if options.low_memory:
        words.append("--maxAuxStreams=0")
    if options.version_compatible:
        words += ["--versionCompatible", "--excludeLeanRuntime"]
    if options.hardware_compatibility != "none":
        words.append(f"--hardwareCompatibilityLevel={TRTEXEC_HARDWARE[options.hardware_compatibility]}")
    if options.strip_weights:
        words.append("--refit")  # timed with its weights: stripping changes the file, not the kernels
    if plugin is not None:
        words.append(f"--dynamicPlugins={plugin}")
    if len(profiles) > 1:
        words.append(f"--useProfile={len(profiles) - 1}")
    words += [f"--shapes={_shape(profiles[-1].best, pre)}", "--useCudaGraph", "--noDataTransfers", "--useSpinWait"]
    return shlex.join(words)


def _shape(rows: int, pre: Preprocessing) -> str:
    """The input's name and shape as trtexec takes them: "images:8x3x256x128"."""
    return f"{INPUT}:{rows}x3x{pre.height}x{pre.width}"
