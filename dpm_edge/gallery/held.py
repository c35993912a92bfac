"""A store with what surrounds it: a lock, the flushing thread, the audit, and everything that takes rows away."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.audit import Audit
from dpm_edge.gallery.flusher import Flusher
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.stores.store import Store

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

    def count(
        self, *, person: Any = None, camera: Any = None, since: float | None = None, until: float | None = None
    ) -> int:
        """Rows that fit all that is given."""
        people = None if person is None else (str(person),)
        with self._lock:
            return self._store.count(Where(people=people, cameras=named_cameras(camera), since=since, until=until))

    def ids(self) -> NDArray[np.int64]:
        """Every row's id, rising."""
        with self._lock:
            return self._fitting(Where())

    def note(self, what: str, ids: NDArray[np.int64]) -> None:
        """A line in the audit of rows that left in another way than by `delete`, `forget` and `expire`."""
        if len(ids):
            self._audit.write(what, ids)

    def delete(self, ids: Sequence[int] | NDArray) -> int:
        """Remove rows by id; how many there were. Their bytes leave the medium with the next `forget` or `compact`."""
        with self._lock:
            there = self._store.get(np.unique(np.asarray(ids, np.int64)), vectors=False).ids
            return self._remove(there, "delete")

    def forget(self, person: Any) -> int:
        """Remove every row of a person and their bytes from the medium; how many rows there were.

        In memory and in a folder the bytes are gone when this returns. A server's own vacuum takes them later.
        """
        with self._lock:
            removed = self._remove(self._fitting(Where(people=(str(person),))), "forget")
            self._store.compact()
            return removed

    def expire(self, older_than: float | None = None, *, camera: Any = None, now: float | None = None) -> int:
        """Remove rows whose time is more than `older_than` seconds before now; how many there were.

        Rows of unknown time stay. Without `older_than` each camera's own retention acts (`retain`).
        """
        now = time.time() if now is None else now
        with self._lock:
            if older_than is not None:
                return self._remove(
                    self._fitting(Where(cameras=named_cameras(camera), until=now - older_than)), "expire"
                )
            kept = self._store.meta.get("retention", {})
            due = [Where(cameras=(name,), until=now - seconds) for name, seconds in kept.items()]
            return sum(self._remove(self._fitting(where), "expire") for where in due)

    def retain(self, camera: Any, seconds: float | None) -> None:
        """How long rows of a camera are kept, for `expire()`; None: for ever."""
        with self._lock:
            kept = {**self._store.meta.get("retention", {}), str(camera): seconds}
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
                f"these embeddings are of model {fingerprint[:12]}; this gallery holds model {self.fingerprint[:12]}. "
                f"Embed both with one engine"
            )
        if dimension != self.dimension:
            raise GalleryError(f"embeddings have {dimension} dimensions; {self.dimension} is wanted")


def named_cameras(camera: Any) -> tuple[str, ...] | None:
    if camera is None:
        return None
    return tuple(str(c) for c in camera) if isinstance(camera, list | tuple) else (str(camera),)
