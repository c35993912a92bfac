"""A store with what surrounds it: a lock, the flushing thread, the audit, and everything that takes rows away."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.audit import Audit
from dpm_edge.gallery.flusher import Flusher
from dpm_edge.gallery.ids import whole_numbers
from dpm_edge.gallery.labels import label, names_to_find
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.stores.store import Store
from dpm_edge.gallery.times import duration, moment

Self = TypeVar("Self", bound="Held")


class Held:
    """What `Gallery` is beside adding and searching."""

    def __init__(self, store: Store) -> None:
        """Around an open store."""
        self._store = store
        self._lock = threading.RLock()
        self._audit = Audit(None)
        self._flusher: Flusher | None = None

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return self.count()

    @property
    def fingerprint(self) -> str:
        """The model whose embeddings these are."""
        return self._store.meta["fingerprint"]

    @property
    def dimension(self) -> int:
        """D, the length of a feature and of a mask."""
        return self._store.meta["dimension"]

    @property
    def store(self) -> Store:
        """The medium. Hold no thread of your own in it."""
        return self._store

    def count(self, *, person: Any = None, camera: Any = None, since: Any = None, until: Any = None) -> int:
        """Count the rows that fit all that is given: one or several people and cameras, times as `add` takes them.

        Raises:
            GalleryError: a person or camera stands for unknown, or a time is none.
        """
        where = Where(
            people=names_to_find(person, "person"),
            cameras=names_to_find(camera, "camera"),
            since=moment(since, "since"),
            until=moment(until, "until"),
        )
        with self._lock:
            return self._store.count(where)

    def ids(self) -> NDArray[np.int64]:
        """Every row's id, rising."""
        with self._lock:
            return self._fitting(Where())

    def note(self, what: str, ids: NDArray[np.int64]) -> None:
        """A line in the audit of rows that left in another way than by `delete`, `forget` and `expire`."""
        if len(ids):
            self._audit.write(what, ids)

    def delete(self, ids: Iterable[int]) -> int:
        """Remove rows by id; how many there were. Their bytes leave the medium with the next `forget` or `compact`.

        Raises:
            GalleryError: an id is no whole number; nothing was removed.
        """
        wanted = np.unique(whole_numbers(ids))
        with self._lock:
            there = self._store.get(wanted, vectors=False).ids
            return self._remove(there, "delete")

    def forget(self, person: Any) -> int:
        """Remove every row of a person, or of several, and their bytes from the medium; how many rows there were.

        In memory and in a folder the bytes are gone when this returns. A server's own vacuum takes them later.

        Raises:
            GalleryError: the person stands for unknown, or bytes could not be removed; call it again then.
        """
        people = names_to_find(person, "person")
        if people is None:
            raise GalleryError("expected a person to forget, got None. Rows of nobody known are removed by `delete`")
        with self._lock:
            removed = self._remove(self._fitting(Where(people=people)), "forget")
            self._store.compact()
            return removed

    def expire(self, older_than: Any = None, *, camera: Any = None, now: Any = None) -> int:
        """Remove rows whose time is more than `older_than` before now; how many there were.

        Rows of unknown time stay. Without `older_than` each camera's own retention acts (`retain`).

        Args:
            older_than: seconds, a timedelta, or text such as "30d" or "12h".
            camera: only rows of this camera, or of these.
            now: another moment than this one.

        Raises:
            GalleryError: the duration, the camera or the moment is none; nothing was removed.
        """
        at = moment(now, "now")
        at = time.time() if at is None else at
        cameras = names_to_find(camera, "camera")
        with self._lock:
            if older_than is not None:
                until = at - duration(older_than, "older_than")
                return self._remove(self._fitting(Where(cameras=cameras, until=until)), "expire")
            kept = self._store.meta.get("retention", {})
            due = [
                Where(cameras=(name,), until=at - duration(length, f"the retention of {name}"))
                for name, length in kept.items()
                if cameras is None or name in cameras
            ]
            return sum(self._remove(self._fitting(where), "expire") for where in due)

    def retain(self, camera: Any, length: Any) -> None:
        """Set how long rows of a camera are kept, for `expire()`: as `older_than` there; None: for ever.

        Raises:
            GalleryError: the duration is none, or the camera stands for unknown; nothing was written.
        """
        name = label(camera, "camera")
        if not name:
            raise GalleryError(f"expected a camera whose rows are kept so long, got {camera!r}")
        seconds = None if length is None else duration(length, "retain")
        with self._lock:
            kept = {**self._store.meta.get("retention", {}), name: seconds}
            kept = {name: value for name, value in kept.items() if value is not None}
            self._store.write_meta({**self._store.meta, "retention": kept})

    def describe(self, **facts: Any) -> dict[str, Any]:
        """What the store says of itself, after adding `facts` (JSON) to it."""
        with self._lock:
            if facts:
                self._store.write_meta({**self._store.meta, **facts})
            return dict(self._store.meta)

    def flush(self) -> None:
        """Every added row survives power loss when this returns."""
        with self._lock:
            self._store.flush()

    def close(self) -> None:
        """Flush and let go of the place."""
        if self._flusher is not None:
            self._flusher.stop()
        with self._lock:
            self._store.close()

    def _flush_now(self) -> None:
        with self._lock:
            self._store.flush()

    def _changed(self) -> None:
        if self._flusher is not None:
            self._flusher.wanted()

    def _remove(self, ids: NDArray[np.int64], why: str) -> int:
        if len(ids):
            self._store.delete(ids)
            self._audit.write(why, ids)
            self._changed()
        return len(ids)

    def _fitting(self, where: Where) -> NDArray[np.int64]:
        parts = [rows.ids for rows in self._store.scan(where, vectors=False)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _check_fingerprint(self, fingerprint: str, dimension: int) -> None:
        """Refuse embeddings of another model, whose features mean something else."""
        if fingerprint != self.fingerprint:
            raise GalleryError(
                f"expected embeddings of model {self.fingerprint[:12]}, which this gallery holds, got model "
                f"{fingerprint[:12]}. Embed both with one engine"
            )
        if dimension != self.dimension:
            raise GalleryError(f"expected embeddings of {self.dimension} dimensions, got {dimension}")
