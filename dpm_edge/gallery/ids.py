"""Ids of rows: given by the gallery or by the owner, whole numbers that name one row for ever.

N rows
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import Store

HIGHEST = 2**63 - 1
EPOCH_US = 1_735_689_600_000_000
"""2025-01-01 in microseconds. A clock that shows less was never set: it starts anew at each boot."""
WRITER_BITS = 12


class Ids:
    """Gives rising ids that no row of the store has.

    In memory they are 0, 1, …. In a folder, which has one writer, they follow the clock (microseconds · 4096 and a
    random number below that), so that they rise from one run to the next. A server has many writers that do not know of
    each other: each begins at a random place among 2^62, so that two runs of a million rows each share an id with a
    probability below 10⁻¹². Only a store of one writer is asked whether an id is taken: elsewhere that is a round trip.
    """

    def __init__(self, store: Store) -> None:
        """For rows of this store."""
        self._store = store
        self._writer = random.SystemRandom().getrandbits(WRITER_BITS)
        self._last: int | None = None

    def new(self, n: int) -> NDArray[np.int64]:
        """Return n new ids, higher than any that was given here before, whatever the clock says."""
        if n == 0:
            return np.zeros(0, np.int64)
        step = 1 << WRITER_BITS if self._store.one_writer and not isinstance(self._store, MemoryStore) else 1
        start = self._start(step)
        if start + n * step > HIGHEST:  # after an owner's id near the end: the gaps further down
            start = 0
        ids = self._free(start, n, step)
        self._last = int(ids[-1])
        return ids

    def given(self, ids: Any) -> NDArray[np.int64]:
        """Return an owner's ids, when they are new.

        Raises:
            GalleryError: one is negative, no whole number, comes twice, or is in the store.
        """
        numbers = whole_numbers(ids)
        values, counts = np.unique(numbers, return_counts=True)
        taken = np.union1d(values[counts > 1], self._store.taken(values))
        if len(taken):
            raise GalleryError(f"expected new ids, got {taken[:8].tolist()} twice or taken already; nothing was added")
        if isinstance(self._store, MemoryStore) and len(numbers):
            self._last = max(-1 if self._last is None else self._last, int(numbers.max()))
        return numbers

    def _start(self, step: int) -> int:
        """The first id to try."""
        if isinstance(self._store, MemoryStore):
            if self._last is None:
                self._last = int(self._store.column("ids").max()) if self._store.count(Where()) else -1
            return self._last + 1
        if not self._store.one_writer:
            return random.SystemRandom().getrandbits(62) if self._last is None else self._last + 1
        now = time.time_ns() // 1000 - EPOCH_US
        if now <= 0 and self._last is None:
            now = random.SystemRandom().getrandbits(50)
        return (max(now, 0 if self._last is None else (self._last >> WRITER_BITS) + 1) << WRITER_BITS) + self._writer

    def _free(self, start: int, n: int, step: int) -> NDArray[np.int64]:
        """The first n ids from `start` on that the store lacks."""
        if not self._store.one_writer:
            return start + np.arange(n, dtype=np.int64)
        if isinstance(self._store, MemoryStore) and start > 0:
            return start + np.arange(n, dtype=np.int64)  # above every one that is there
        ids = start + step * np.arange(n, dtype=np.int64)
        while len(taken := self._store.taken(ids)):
            free, start = np.setdiff1d(ids, taken), int(ids[-1]) + step
            ids = np.append(free, start + step * np.arange(len(taken), dtype=np.int64))
        return ids


def whole_numbers(ids: Any) -> NDArray[np.int64]:
    """Return ids as (N,) int64, out of any collection.

    Raises:
        GalleryError: one is no whole number, or not in 0..2^63 − 1; or they are a mask of booleans.
    """
    if isinstance(ids, np.ndarray) and ids.dtype.kind in "iu" and ids.ndim == 1:
        numbers = ids
        bad = numbers[(numbers < 0) | (numbers > HIGHEST)]
        if len(bad):
            raise GalleryError(f"expected ids of 0 or more and below 2^63, got {bad[0]}")
        return numbers.astype(np.int64)
    if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
        raise GalleryError(
            f"expected a list of ids, whole numbers of 0 or more, got {ids!r:.80} ({type(ids).__name__})"
        )
    return np.array([_whole(value) for value in ids], np.int64)


def _whole(value: Any) -> int:
    if isinstance(value, bool | np.bool_):
        raise GalleryError("expected ids, got a mask of booleans. Pass the ids themselves: gallery.ids()[mask]")
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    if not isinstance(value, int | np.integer) or not 0 <= int(value) <= HIGHEST:
        kind = type(value).__name__
        raise GalleryError(
            f"expected ids that are whole numbers of 0 or more and below 2^63, got {value!r:.80} ({kind})"
        )
    return int(value)
