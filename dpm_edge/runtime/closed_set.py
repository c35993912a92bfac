"""What an engine of a closed set says: how much each crop resembles each of the people it was built with.

n crops that could be used · C people
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True, eq=False)
class Identified:
    """Logits of n crops over C people."""

    people: tuple[str, ...]
    """C names."""
    logits: NDArray[np.float32]
    """(n, C) float32: masked similarity with each person's prototype."""
    rows: NDArray[np.int64]
    """(n,) int64: which input each row came from."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """(input row, reason) of each input that could not be used."""

    @property
    def best(self) -> list[str]:
        """The likeliest person of each crop."""
        return [self.people[i] for i in self.logits.argmax(axis=1)]
