"""An engine of known delay, which says of each crop which one it saw: what measuring code is checked with."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpm_edge.runtime.embeddings import Embeddings


class KnownDelay:
    """Sleeps, then answers each crop with its first pixel as its feature (3,), and remembers what it was asked."""

    fingerprint = "known-delay"
    dimension = 3

    def __init__(self, delay: float = 0.0) -> None:
        """delay: seconds of every call; may be changed later."""
        self.delay = delay
        self.error: Exception | None = None
        """Raised, after the delay, by every call while it is set."""
        self.batches: list[int] = []
        """Crops of each call."""
        self.seen: list[int] = []
        """Numbers of all crops, in the order they came."""
        self.took: dict[int, float] = {}
        """Number of a crop → seconds that the call took in which it was answered."""

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> Embeddings:
        """A row for each picture that `numbered` made."""
        start = time.perf_counter()
        self.batches.append(len(images))
        features = np.array([image[0, 0] for image in images], np.float32).reshape(-1, 3)
        numbers = [number_of(row) for row in features]
        self.seen.extend(numbers)
        if self.delay:
            time.sleep(self.delay)
        if self.error:
            raise self.error
        found = Embeddings(
            features=features,
            masks=np.full_like(features, 0.5),
            visibility=np.ones(len(images), np.float32),
            rows=np.arange(len(images)),
            fingerprint=self.fingerprint,
        )
        took = time.perf_counter() - start
        self.took.update((number, took) for number in numbers)
        return found


def numbered(number: int) -> NDArray[np.uint8]:
    """A picture (2, 2, 3) that says which one it is, 0 to 2²⁴ − 1."""
    return np.full((2, 2, 3), [number % 256, number // 256 % 256, number // 65536], np.uint8)


def number_of(feature: NDArray[np.float32]) -> int:
    """The inverse of `numbered`, from a feature (3,)."""
    return int(feature[0] + 256 * feature[1] + 65536 * feature[2])
