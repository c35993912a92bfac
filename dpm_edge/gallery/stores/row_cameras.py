"""Cameras of a store's rows, each read once: a row keeps its camera until it is removed.

Centred searches ask for the cameras of all candidates; reading them would cost a tenth of the search.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

MOST = 1 << 17
"""Rows that are remembered: some 20 MB."""


class RowCameras:
    """Remembers the cameras of rows that were asked for. Hold the gallery's lock around each call."""

    def __init__(self, read: Callable[[list[int]], Iterable[tuple[int, str]]]) -> None:
        """read: gives (id, camera) of rows by id."""
        self._read = read
        self._known: dict[int, str] = {}

    def learn(self, ids: Iterable[int]) -> None:
        """Read those of the rows that are not known."""
        wanted = set(ids)
        missing = wanted.difference(self._known)
        if len(self._known) + len(missing) > MOST:
            self._known.clear()
            missing = wanted
        if missing:
            self._known.update((row, sys.intern(camera)) for row, camera in self._read(list(missing)))

    def of(self, ids: Iterable[int]) -> list[str]:
        """Cameras of rows that were learnt, in their order."""
        return [self._known[row] for row in ids]

    def drop(self, ids: Iterable[int] | None = None) -> None:
        """Forget removed rows; every row without."""
        if ids is None:
            self._known.clear()
        else:
            for row in ids:
                self._known.pop(row, None)
