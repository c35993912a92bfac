"""What `dpm-edge build` may ask of TensorRT's builder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from dpm_edge.errors import SpecError, nearest
from dpm_edge.manifest import HARDWARE

LOW_MEMORY = {"workspace": 256, "tactic_memory": 1024, "level": 2}
"""What --low-memory sets where the user sets nothing: MiB, MiB, level."""


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
                f"hardware compatibility {self.hardware_compatibility!r} is unknown."
                f"{nearest(self.hardware_compatibility, HARDWARE)}"
            )
        if self.workspace is not None and self.workspace < 1:
            raise SpecError(f"workspace is {self.workspace} MiB; 1 or more is wanted")
        if self.level is not None and not 0 <= self.level <= 5:
            raise SpecError(f"optimisation level is {self.level}; 0 to 5 is wanted")

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
        told: list[str] = []
        if self.workspace is not None:
            told += ["--workspace", str(self.workspace)]
        if self.level is not None:
            told += ["--opt-level", str(self.level)]
        if self.version_compatible:
            told.append("--version-compatible")
        if self.hardware_compatibility != "none":
            told += ["--hardware-compatibility", self.hardware_compatibility]
        if self.strip_weights:
            told.append("--strip-weights")
        if self.low_memory:
            told.append("--low-memory")
        return tuple(told)
