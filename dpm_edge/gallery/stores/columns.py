"""Columns of a table in memory that grow and shrink where they are: never two copies of a column at once.

N rows
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

PIECE = 256
"""Rows that are moved at a time, so that what that needs beside them stays small."""
HUGE = 32 << 20
"""Bytes from which a column asks for huge pages: a scan then waits less for address translation."""


class Column:
    """N rows of one shape and dtype, one after another in pages of their own.

    The system hands out pages at their first touch and takes them back when the column shrinks. On Linux growing moves
    no byte (mremap); elsewhere, or while someone holds a view, it copies.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        """Empty, for rows of `shape` and `dtype`."""
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._row = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        self._count = self._capacity = 0
        self._map: mmap.mmap | None = None
        self._held = np.empty((0, *shape), self._dtype)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> NDArray:
        """(N, *shape): a view, valid until the next change."""
        return self._held[: self._count]

    def reserve(self, count: int) -> None:
        """Make room for `count` rows in all.

        Raises:
            MemoryError: there is not so much; the column is as it was.
        """
        if count > self._capacity:
            self._resize(max(count, self._capacity + self._capacity // 4, PIECE))

    def append(self, values: NDArray) -> None:
        """Copy rows to the end, as this column's dtype."""
        self.reserve(self._count + len(values))
        self._held[self._count : self._count + len(values)] = values
        self._count += len(values)

    def keep(self, at: NDArray[np.int64]) -> None:
        """Only the rows at these rising positions stay; they move up, and the pages behind them go back."""
        for start in range(0, len(at), PIECE):
            piece = at[start : start + PIECE]
            self._held[start : start + len(piece)] = self._held[piece]
        self._held[len(at) : self._count] = 0  # where the last page is kept, or a view is held
        self._count = len(at)
        self._resize(max(self._count, PIECE))

    def _resize(self, capacity: int) -> None:
        size = max(capacity * self._row, 1)
        self._held = np.empty((0, *self._shape), self._dtype)  # lets go of the map
        try:
            if self._map is None:
                raise BufferError
            self._map.resize(size)
        except (BufferError, SystemError, ValueError):  # nothing yet, a view held outside, or a system without mremap
            self._map = self._moved(size)
        except OSError as error:
            self._see(self._capacity)
            raise MemoryError(f"no memory for {size} bytes of a gallery's column") from error
        if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._see(capacity)

    def _see(self, capacity: int) -> None:
        assert self._map is not None, "made before it is looked at"
        self._capacity = capacity
        self._held = np.frombuffer(self._map, self._dtype, capacity * self._row // self._dtype.itemsize).reshape(
            (capacity, *self._shape)
        )

    def _moved(self, size: int) -> mmap.mmap:
        """A new map with the rows of the old one."""
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        try:
            fresh = mmap.mmap(-1, size, **private)
        except OSError as error:
            if self._map is not None:
                self._see(self._capacity)
            raise MemoryError(f"no memory for {size} bytes of a gallery's column") from error
        if self._map is not None:
            used = self._count * self._row
            np.frombuffer(fresh, np.uint8)[:used] = np.frombuffer(self._map, np.uint8)[:used]
        return fresh


class Names:
    """A text of each row, kept as a number: people, cameras and tracks recur."""

    def __init__(self) -> None:
        """Empty."""
        self._column = Column((), np.int32)
        self._names: list[str] = []
        self._codes: dict[str, int] = {}

    @property
    def codes(self) -> NDArray[np.int32]:
        """(N,): a view, valid until the next change."""
        return self._column.rows

    def code(self, name: str) -> int:
        """The number of a name; −1 where no row bears it."""
        return self._codes.get(name, -1)

    def of(self, at: NDArray[np.int64]) -> list[str]:
        """The texts of these rows."""
        return [self._names[code] for code in self.codes[at].tolist()]

    def append(self, names: Sequence[str]) -> None:
        """The texts of new rows."""
        for name in names:
            if name not in self._codes:
                self._codes[name] = len(self._names)
                self._names.append(name)
        self._column.append(np.array([self._codes[name] for name in names], np.int32))

    def keep(self, at: NDArray[np.int64]) -> None:
        """Only these rows stay, and only the names that they bear."""
        self._column.keep(at)
        borne, self.codes[:] = np.unique(self.codes, return_inverse=True)
        self._names = [self._names[code] for code in borne.tolist()]
        self._codes = {name: code for code, name in enumerate(self._names)}
