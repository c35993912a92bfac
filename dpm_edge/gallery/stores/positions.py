"""Where an id stands in a column of ids, by binary search: nothing is rebuilt when rows are added.

N rows · W wanted ids
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Positions:
    """Positions of ids in a column that grows at its end. Ids mostly rise, and then the column itself is searched.

    A column that does not rise is followed by a sorted copy, into which new ids are merged at the next look-up.
    """

    def __init__(self) -> None:
        """For a column of which nothing is known yet; make another one after rows were removed."""
        self._count = 0
        self._sorted: NDArray[np.int64] | None = None
        self._order: NDArray[np.int64] = np.zeros(0, np.int64)

    def find(self, column_N: NDArray[np.int64], ids_W: NDArray[np.int64]) -> NDArray[np.int64]:
        """Positions in the column of those ids that are in it, in the order of `ids_W`."""
        self._follow(column_N)
        rising = column_N if self._sorted is None else self._sorted
        ids = np.asarray(ids_W, np.int64)
        if not len(rising):
            return np.zeros(0, np.int64)
        at = np.searchsorted(rising, ids)
        at = at[rising[np.minimum(at, len(rising) - 1)] == ids]
        return at if self._sorted is None else self._order[at]

    def _follow(self, column: NDArray[np.int64]) -> None:
        """Take in what was added since the last look-up."""
        start, self._count = self._count, len(column)
        if self._sorted is None:
            added = column[max(start - 1, 0) :]
            if (added[1:] > added[:-1]).all():
                return
            self._order = np.argsort(column, kind="stable")
            self._sorted = column[self._order]
        elif start < len(column):
            new = start + np.argsort(column[start:], kind="stable")
            at = np.searchsorted(self._sorted, column[new])
            self._sorted, self._order = np.insert(self._sorted, at, column[new]), np.insert(self._order, at, new)
