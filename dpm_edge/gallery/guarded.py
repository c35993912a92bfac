"""A store behind one lock: changes are refused where they cannot be, flushed soon, and removals are in the audit.

N rows
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.audit import Audit
from dpm_edge.gallery.camera_statistics import KeptStatistics
from dpm_edge.gallery.flusher import Flusher
from dpm_edge.gallery.ids import Ids
from dpm_edge.gallery.lock import GalleryLock
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import BATCH, Store, check_model


class GuardedStore:
    """The store of one gallery. Hold `lock` around anything that reads `store`, `changing()` around what changes it."""

    def __init__(self, store: Store, place: str | Path = "memory", flush_every: float = 1.0) -> None:
        """Around an open store; a folder at `place` gets an audit, and a thread that flushes."""
        self.store, self.place = store, str(place)
        self.lock = GalleryLock()
        self.statistics = KeptStatistics(store)
        self._ids = Ids(store)
        folder = self.place != "memory" and "://" not in self.place and not store.read_only
        self._audit = Audit(Path(place) / "audit.jsonl" if folder else None)
        self._flusher = Flusher(self.flush, flush_every) if folder else None

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Hold the lock for a change.

        Raises:
            GalleryError: the gallery is closed or read-only.
        """
        with self.lock:
            if self.store.read_only:
                raise GalleryError(f"expected a gallery open for changes, got a read-only one: {self.store.read_only}")
            yield

    @property
    def has_visibility(self) -> bool:
        """Whether the rows have a visibility: False once rows of a model without masks were added."""
        return bool(self.store.meta.get("visibility", True))

    def add(self, columns: dict[str, Any], ids: Iterable[int] | None) -> NDArray[np.int64]:
        """Add rows of these columns, all or none; their ids, new ones where none are given."""
        with self.changing():
            n, seen = len(columns["features"]), columns["visibility"] is not None
            columns = columns if seen else {**columns, "visibility": np.ones(n, np.float32)}
            rows = Rows(ids=self._ids.new(n) if ids is None else self._ids.given(ids), **columns)
            if n:
                self._note_visibility(seen)
                with self.statistics.adding(rows):
                    self.store.add(rows)
                self._changed()
            return rows.ids

    def add_copies(self, parts: Iterable[Rows], has_visibility: bool) -> int:
        """Add rows of another gallery under new ids, all or none; how many. has_visibility: of that gallery.

        Raises:
            GalleryError: they have no masks, and this store keeps masks.
        """
        added: list[NDArray[np.int64]] = []
        try:
            for rows in parts:
                with self.changing():
                    if rows.masks is None and self.store.meta["masks"]:
                        raise GalleryError("expected rows with masks, as this gallery keeps them, got rows without")
                    masks = rows.masks if self.store.meta["masks"] else None
                    changed = {**vars(rows), "ids": self._ids.new(len(rows)), "masks": masks}
                    copies = Rows(**changed)
                    self._note_visibility(has_visibility)
                    with self.statistics.adding(copies):
                        self.store.add(copies)
                    added.append(copies.ids)
                    self._changed()
        except BaseException:
            for ids in added:
                with self.lock, self.statistics.removing(ids):
                    self.store.delete(ids)
            raise
        return sum(len(ids) for ids in added)

    def parts(self) -> Iterator[Rows]:
        """Every row of now, some at a time, letting others in between."""
        ids = self.fitting(Where())
        for start in range(0, len(ids), BATCH):
            with self.lock:
                rows = self.store.get(ids[start : start + BATCH], vectors=True)
            yield rows.take(np.argsort(rows.ids))

    def count(self, where: Where) -> int:
        """How many rows fit."""
        with self.lock:
            return self.store.count(where)

    def read(self, ids: NDArray[np.int64] | None, *, vectors: bool) -> Rows:
        """Rows by id, in any order; every row, by rising id, without. Visibility is None where the model has none."""
        with self.lock:
            parts = list(self.store.scan(Where(), vectors=vectors)) if ids is None else []
            some = np.zeros(0, np.int64) if ids is None else ids
            found = Rows.join(parts) if parts else self.store.get(some, vectors=vectors)
            return found if self.has_visibility else replace(found, visibility=None)

    def describe(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What the store says of itself, after adding `facts` to it."""
        with self.changing() if facts else self.lock:
            if facts:
                self.store.write_meta({**self.store.meta, **facts})
            return dict(self.store.meta)

    def camera_statistics(self) -> CameraStatistics:
        """A copy of those of now."""
        with self.lock:
            return copy.deepcopy(self.statistics.of_all_writers())

    def all_statistics(self) -> CameraStatistics:
        """A copy of those of now with the site's."""
        with self.lock:
            return self.statistics.with_site()

    def require_model(self, fingerprint: str, dimension: int) -> None:
        """Close the store where it is of another model.

        Raises:
            GalleryError: it is.
        """
        try:
            check_model(self.store.meta, fingerprint, dimension)
        except GalleryError:
            self.close()
            raise

    def fitting(self, where: Where) -> NDArray[np.int64]:
        """Ids of the rows that fit, rising."""
        with self.lock:
            parts = [rows.ids for rows in self.store.scan(where, vectors=False)]
            return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def remove(self, find: Callable[[], NDArray[np.int64]], why: str, *, compact: bool = False) -> int:
        """Remove the rows whose ids `find` returns; how many. compact: their bytes leave the medium now."""
        with self.changing():
            try:
                ids = find()
                if compact:  # no sum holds anything of rows that are forgotten
                    self.statistics.drop()
                if len(ids):
                    with self.statistics.removing(ids):
                        self.store.delete(ids)
                    self.note(why, ids)
                    self._changed()
                return len(ids)
            finally:  # also where the audit could not be written
                if compact:
                    self.store.compact()

    def note(self, why: str, ids: NDArray[np.int64]) -> None:
        """Write a line about removed rows into the audit."""
        if len(ids):
            self._audit.write(why, ids)

    def flush(self) -> None:
        """Every added row survives power loss when this returns."""
        with self.lock:
            self.store.flush()

    def close(self) -> None:
        """Flush and let go of the place and the GPU; what lies in this process's memory alone stays open."""
        if self.lock.closed or (isinstance(self.store, MemoryStore) and not self.store.place):
            return
        if self._flusher is not None:
            self._flusher.stop()
        with self.lock:
            try:
                self.statistics.keep()
            finally:
                self.lock.closed = True
                self.store.close()

    def _note_visibility(self, seen: bool) -> None:
        """Keep that the model has no visibility: it is so for every row, as they are all of one model."""
        if not seen and self.has_visibility:
            self.store.write_meta({**self.store.meta, "visibility": False})

    def _changed(self) -> None:
        if self._flusher is not None:
            self._flusher.wanted()
