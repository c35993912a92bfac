"""Names for new rows."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import Store

EPOCH_US = 1_735_689_600_000_000
"""2025-01-01 in microseconds: new ids count from here."""
WRITER_BITS = 12


class Ids:
    """Rising ids. In memory 0, 1, …; elsewhere microseconds · 4096 + this writer's number, so that writers differ."""

    def __init__(self, store: Store) -> None:
        """For rows of this store."""
        self._store = store
        self._writer = random.SystemRandom().getrandbits(WRITER_BITS)
        self._last = -1

    def new(self, n: int) -> NDArray[np.int64]:
        """n ids, higher than any that was given here before, even when the clock goes backwards."""
        if isinstance(self._store, MemoryStore):
            if self._last < 0 and self._store.count(Where()):
                self._last = int(self._store.column("ids").max())
            ids = self._last + 1 + np.arange(n, dtype=np.int64)
        else:
            tick = max(time.time_ns() // 1000 - EPOCH_US, (self._last >> WRITER_BITS) + 1)
            ids = ((tick + np.arange(n, dtype=np.int64)) << WRITER_BITS) + self._writer
        if n:
            self._last = int(ids[-1])
        return ids

    def given(self, ids: Sequence[int]) -> NDArray[np.int64]:
        """An owner's ids, when they are new.

        Raises:
            GalleryError: one is negative, comes twice or is in the store.
        """
        names = np.asarray(ids, np.int64)
        if len(names) and names.min() < 0:
            raise GalleryError(f"id {names.min()} came; 0 or more is wanted")
        values, counts = np.unique(names, return_counts=True)
        twice = np.union1d(values[counts > 1], self._store.get(values, vectors=False).ids)
        if len(twice):
            raise GalleryError(f"ids {twice[:8].tolist()} came twice or are there already; nothing was added")
        if isinstance(self._store, MemoryStore) and len(names):
            self._last = max(self._last, int(names.max()))
        return names
