"""What a search returns: one validated set of arrays of equal length.

Q queries · k places
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """The k nearest gallery rows of each query, best first.

    A place that no row fills has row −1, similarity −inf, and empty names.

    Raises:
        GalleryError: on construction, when the arrays differ in shape.
    """

    rows: NDArray[np.int64]
    """(Q, k) int64: gallery rows; −1 where there were fewer than k candidates."""
    similarity: NDArray[np.float32]
    """(Q, k) float32, falling; equal similarities in the gallery's order."""
    people: NDArray[np.str_]
    """(Q, k) str: the person of each row."""
    cameras: NDArray[np.str_]
    """(Q, k) str: the camera of each row."""

    def __post_init__(self) -> None:
        for name in ("rows", "similarity", "people", "cameras"):
            shape = getattr(self, name).shape
            if len(shape) != 2 or shape != self.rows.shape:
                raise GalleryError(f"{name} have shape {shape}; {self.rows.shape}, (Q, k), is wanted")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def found(self) -> NDArray[np.bool_]:
        """(Q, k) bool: places that a gallery row fills."""
        return self.rows >= 0
