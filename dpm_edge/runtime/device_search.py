"""A gallery that lies in GPU memory, and what a search of it gives.

n boxes that could be used · G rows of the gallery · k results
"""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_RESULTS = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class DeviceMatches:
    """Who stands in which box, best first."""

    ids: list[list[Any]]
    """n lists of k ids, as they were given to `Engine.hold`."""
    similarity: NDArray[np.float32]
    """(n, k) float32 masked similarity in −1..1, falling."""
    rows: NDArray[np.int64]
    """(n,) int64: which box each row is."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """(box, reason) of each box that could not be used."""


class HeldGallery:
    """Features of a gallery in GPU memory, from `Engine.hold`. A context manager, or call `close`."""

    def __init__(self, ids: list[Any], held: Any) -> None:
        self.ids = ids
        self.held = held

    def __len__(self) -> int:
        return len(self.ids)

    def close(self) -> None:
        """Let go of the memory; a second call does nothing. No search of it is under way."""
        self.held.close()

    def __enter__(self) -> HeldGallery:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
