"""Camera statistics of a store's rows, kept in step with every change, and the version of them that searches use.

N rows · D feature dimensions
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import DpmError
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.stores.store import BATCH, SITE, Store

GROWTH = 0.1
"""Searches take newer statistics once a camera has so many more rows, as a share of its rows and κ: its mean may then
have moved by a tenth of the way. A copy of the rows in memory is centred anew each time."""
FOLD = 256
"""Added rows that wait to be counted together: counting them one by one would cost a tenth of `add`."""


class KeptStatistics:
    """Statistics of a store's rows, read from the rows at their first use. Hold the gallery's lock around each call.

    A folder keeps them in a file while no process has it open for changes: the file is removed, durably, before the
    first change and written again when the gallery is closed. After a killed process they are read from the rows.
    """

    def __init__(self, store: Store) -> None:
        """Read nothing yet."""
        self._store = store
        self._known: CameraStatistics | None = None
        self._used: CameraStatistics | None = None
        self._used_counts: dict[str, int] = {}
        self._site: CameraStatistics | None = None
        self._site_json: dict | None = None
        self._waiting: list[tuple[NDArray, Sequence[str]]] = []
        self._waiting_rows = 0
        self._changed = self._saved = False

    def now(self) -> CameraStatistics:
        """Return those of the rows of this moment; they change with the rows."""
        if self._known is None and not self._changed:
            self._known = self._store.load_statistics()
            self._saved = self._known is not None
        if self._known is None:
            self._known = self._read()
        self._fold()
        return self._known

    def of_all_writers(self) -> CameraStatistics:
        """Return those of now, with the rows that other writers of a server have added but for the last GROWTH."""
        now = self.now()
        return now if self._store.one_writer else self._beside_other_writers(now)

    def for_search(self) -> CameraStatistics:
        """Return the version that searches use: a new object whenever it is another version.

        It is taken anew when rows were removed, or a camera's rows have grown by more than GROWTH of its rows and κ.
        """
        now = self.of_all_writers()
        site, used = self._of_site(), self._used_counts
        if self._used is None or any(
            count - used.get(camera, 0) > GROWTH * (used.get(camera, 0) + now.shrink)
            for camera, count in now.counts.items()
        ):
            self._used, self._used_counts = now.joined(site), dict(now.counts)
        return self._used

    def with_site(self) -> CameraStatistics:
        """Return a copy: those of the rows of this moment and the site's together."""
        return self.now().joined(self._of_site())

    def counts(self) -> dict[str, int]:
        """Return how many features each camera has shown: rows of this moment, and those of the site's statistics."""
        site = self._of_site()
        return dict(Counter(self.now().counts) + Counter({} if site is None else site.counts))

    def _of_site(self) -> CameraStatistics | None:
        """Return the site's statistics that the store's description holds, if they are of its model."""
        kept = self._store.meta.get(SITE)
        if kept is not self._site_json:
            self._site_json, self._used = kept, None
            made = None if kept is None else CameraStatistics.of_json(kept, "the gallery's description")
            self._site = made if made is not None and made.fingerprint == self._store.meta["fingerprint"] else None
        return self._site

    @contextmanager
    def adding(self, rows: Rows) -> Iterator[None]:
        """Count the rows that the block adds."""
        self._before_change()
        with self._dropped_on_error():
            yield
        if self._known is not None and rows.features is not None:
            self._waiting.append((rows.features, rows.cameras))
            self._waiting_rows += len(rows)
            if self._waiting_rows >= FOLD:
                self._fold()

    @contextmanager
    def removing(self, ids: NDArray[np.int64]) -> Iterator[None]:
        """Take the rows off that the block removes."""
        self._before_change()
        gone: list[Rows] = []
        if self._known is not None and 2 * len(ids) <= sum(self.now().counts.values()):
            for start in range(0, len(ids), BATCH):
                gone.append(self._store.get(ids[start : start + BATCH], vectors=True))
        else:  # few rows are left: reading those is less
            self.drop()
        with self._dropped_on_error():
            yield
        self._used = None
        for rows in gone:
            assert self._known is not None and rows.features is not None, "whole rows were read"
            self._known.add(rows.features, rows.cameras, sign=-1)

    def drop(self) -> None:
        """Keep nothing of any row; the statistics are read from the rows at their next use."""
        self._before_change()
        self._clear()

    def keep(self) -> None:
        """Write them beside the rows, where they are known and the store keeps them; without room, they are not."""
        known, store = self._known, self._store
        if known is None or self._saved or store.read_only or not store.keeps_statistics:
            return
        if known.fingerprint != store.meta["fingerprint"]:  # a migration has replaced the rows
            return
        with suppress(DpmError, OSError):
            store.flush()
            store.save_statistics(self.now())

    def _before_change(self) -> None:
        if not self._changed:
            if self._known is None:
                self._known = self._store.load_statistics()
            self._store.remove_statistics()
            self._changed, self._saved = True, False

    @contextmanager
    def _dropped_on_error(self) -> Iterator[None]:
        """Forget what is known where a change failed: some of it may have been done."""
        try:
            yield
        except BaseException:
            self._clear()
            raise

    def _clear(self) -> None:
        self._known = self._used = None
        self._waiting, self._waiting_rows = [], 0

    def _fold(self) -> None:
        if self._waiting and self._known is not None:
            features = np.concatenate([self._store.as_kept(some) for some, _ in self._waiting])
            self._known.add(features, [camera for _, cameras in self._waiting for camera in cameras])
        self._waiting, self._waiting_rows = [], 0

    def _read(self) -> CameraStatistics:
        """Read every row."""
        self._waiting, self._waiting_rows = [], 0
        made = CameraStatistics(fingerprint=self._store.meta["fingerprint"], dimension=self._store.meta["dimension"])
        for rows in self._store.scan(Where(), vectors=True):
            assert rows.features is not None, "whole rows were read"
            made.add(rows.features, rows.cameras)
        return made

    def _beside_other_writers(self, now: CameraStatistics) -> CameraStatistics:
        """Read the rows again where others have added more than GROWTH of them, or removed some."""
        known, there = sum(now.counts.values()), self._store.count(Where())
        if known <= there <= (1 + GROWTH) * known:
            return now
        self._used, self._known = None, self._read()
        return self._known
