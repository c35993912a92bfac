"""The people in a frame as the queries of a search: embedded when the gallery asks, on the GPU where its rows lie.

n boxes that can be used · N rows of a gallery · D feature dimensions · k places
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpm_edge.runtime.embeddings import Embeddings

Nearest = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Positions of rows and the kernel's scores, (n, k) each, falling; −1 and −inf where nothing is left."""


class SearchedRows(Protocol):
    """Rows of a gallery that lie on a GPU."""

    def enqueue(self, feature: Any, mask: Any, k: int, keep: NDArray[np.bool_] | None, stream: int) -> None:
        """Search for queries that lie there, (n, D) float32, behind what `stream` holds.

        keep: (N,) bool, rows that may be found; None: all.
        """

    def collect(self) -> Nearest:
        """What `enqueue` found, once its stream was waited for."""


class SearchBehind:
    """A search that an engine enqueues behind its network, once for each batch of the boxes."""

    def __init__(self, rows: SearchedRows, k: int, keep: NDArray[np.bool_] | None) -> None:
        self._rows, self._k, self._keep = rows, k, keep
        self._parts: list[Nearest] = []

    def enqueue(self, feature: Any, mask: Any, stream: int) -> None:
        """Arguments as of `SearchedRows`."""
        self._rows.enqueue(feature, mask, self._k, self._keep, stream)

    def collect(self) -> None:
        """Keep what was found for this batch; the stream was waited for."""
        self._parts.append(self._rows.collect())

    @property
    def nearest(self) -> Nearest:
        """Of all boxes, in their order."""
        if not self._parts:
            return np.full((0, self._k), -1, np.int64), np.full((0, self._k), -np.inf, np.float32)
        rows, scores = zip(*self._parts)
        return np.concatenate(rows), np.concatenate(scores)


class FrameQueries:
    """The people in some boxes of one frame. `Gallery.search` takes it in place of Embeddings."""

    def __init__(
        self, fingerprint: str, dimension: int, place: str, count: int, run: Callable[[SearchBehind | None], Embeddings]
    ) -> None:
        """For `Engine.search`; `run` embeds the boxes."""
        self.fingerprint = fingerprint
        self.dimension = dimension
        self.place = place
        """Where the engine can search behind its network: "cuda:0"; "" for nowhere."""
        self.embeddings: Embeddings | None = None
        """What `embed` gave last."""
        self._count, self._run = count, run

    def __len__(self) -> int:
        return self._count

    def lies_with(self, place: str) -> bool:
        """Whether a gallery's rows at `place` lie on the GPU that embeds these queries."""
        return place != "" and place == self.place

    def embed(self, search: SearchBehind | None = None) -> Embeddings:
        """Embed the boxes, and search behind the network.

        Raises:
            ImageError, EngineError: as `Engine.embed`.
        """
        self.embeddings = self._run(search)
        return self.embeddings
