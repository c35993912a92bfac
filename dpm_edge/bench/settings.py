"""What is measured, and what the numbers mean."""

from __future__ import annotations

from dataclasses import dataclass

from dpm_edge.errors import SpecError
from dpm_edge.manifest import BatchRange

BATCHES = (1, 8, 32)

STEPS = 6
"""Loads that are tried for each number of cameras."""
TURNS = 2
"""Turns in which the engines share the measurement of a batch size."""


@dataclass(frozen=True, kw_only=True)
class Settings:
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
                raise SpecError(f"{name} are {values}; different whole numbers, 1 or more, are wanted")
        for name in ("seconds", "fps", "deadline_ms"):
            if not 0 < getattr(self, name) < float("inf"):
                raise SpecError(f"{name} is {getattr(self, name)}; more than 0 is wanted")
        if self.gallery < 1:
            raise SpecError(f"gallery is {self.gallery}; 1 row or more is wanted")

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


def usual_batches(taken: BatchRange) -> tuple[int, ...]:
    """Those of BATCHES that an engine takes in one call; its best one where it takes none of them."""
    return tuple(batch for batch in BATCHES if taken.low <= batch <= taken.high) or (taken.best,)
