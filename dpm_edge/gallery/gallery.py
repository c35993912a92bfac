"""Whom one has seen: rows of one model's embeddings in a store, searched under each query's own mask.

N rows · D feature dimensions · Q queries · k places
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.audit import Audit
from dpm_edge.gallery.calibration import Calibration, choose, with_probability
from dpm_edge.gallery.files import parquet
from dpm_edge.gallery.files import safetensors as saved
from dpm_edge.gallery.flusher import Flusher
from dpm_edge.gallery.ids import Ids, whole_numbers
from dpm_edge.gallery.labels import names_to_find, new_rows
from dpm_edge.gallery.lock import GalleryLock
from dpm_edge.gallery.matches import Matches
from dpm_edge.gallery.retention import due, with_retention
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.search import rerank
from dpm_edge.gallery.search.query import make_query
from dpm_edge.gallery.stores.address import create_store, open_store
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import BATCH, Store, new_meta
from dpm_edge.gallery.times import duration, moment
from dpm_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from dpm_edge.runtime.engine import Engine

DTYPES = ("float32", "float16", "int8")


class Gallery:
    """Rows of one model's embeddings, each with a person, a camera, a time, a source and more.

    One thread at a time is let in; searches in memory run on every core. Use it in a `with`, or `close` it.
    """

    def __init__(
        self,
        fingerprint: str,
        dimension: int,
        dtype: str = "float32",
        *,
        device: str = "cpu",
        store: Store | None = None,
    ) -> None:
        """An empty gallery in memory for embeddings of model `fingerprint`, kept as float32, float16 or int8.

        device: "cuda" searches a copy of the rows on a GPU, with the same answers.
        store: another medium, as `create` and `open` give; its own description goes before the other arguments.

        Raises:
            GalleryError: the dtype is another, or there is no such device.
            MissingLibrary: torch or Triton is wanted for the device and not installed.
        """
        if dtype not in DTYPES:
            raise GalleryError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}")
        self._store = store or MemoryStore(new_meta(fingerprint, dimension, True), dtype, device)
        self._ids = Ids(self._store)
        self._lock = GalleryLock()
        self._audit = Audit(None)
        self._flusher: Flusher | None = None

    @classmethod
    def for_engine(cls, engine: Engine, dtype: str = "float32", *, device: str = "cpu") -> Gallery:
        """An empty gallery in memory for what this engine embeds."""
        return cls(engine.fingerprint, engine.dimension, dtype, device=device)

    @classmethod
    def create(
        cls, place: str | Path, fingerprint: str, dimension: int, *, masks: bool = True, flush_every: float = 1.0
    ) -> Gallery:
        """A new gallery in a folder, or at milvus://HOST:PORT/NAME or qdrant://HOST:PORT/NAME.

        Args:
            place: the folder or address.
            fingerprint: names the model, as `Engine.fingerprint`.
            dimension: D.
            masks: keep each row's mask too: twice the bytes, and the mutual metric.
            flush_every: seconds after which an added row also survives power loss.

        Raises:
            GalleryError: the place is taken, is not understood, or does not answer.
            MissingLibrary: the store's library is not installed.
        """
        return cls._over(create_store(place, new_meta(fingerprint, dimension, masks)), place, flush_every)

    @classmethod
    def open(cls, place: str | Path, *, flush_every: float = 1.0, read_only: bool = False) -> Gallery:
        """An existing gallery at a place as `create` takes it, or a file that `save` wrote, read into memory.

        A folder that this user may only read, or whose disk is full, is opened for searching: changes are refused.

        Args:
            place: the folder, address or file.
            flush_every: seconds after which an added row also survives power loss.
            read_only: refuse every change. Of a folder the rows of this moment are copied to a temporary place and
                searched there, so that another process may hold the folder and go on adding.

        Raises:
            GalleryInUse: another process holds the folder.
            GalleryError: it is not there, is damaged, or does not answer.
            MissingLibrary: the store's library is not installed.
        """
        if "://" not in str(place) and Path(place).is_file():
            gallery = cls.load(place)
            gallery._store.read_only = "it was opened with read_only=True" if read_only else None
            return gallery
        return cls._over(open_store(place, read_only=read_only), place, flush_every)

    def __enter__(self) -> Gallery:
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
        """Rows that fit all that is given: one or several people and cameras, times as `search` takes them.

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

    def add(
        self, embeddings: Embeddings, *, people: Iterable[Any], cameras: Iterable[Any] | None = None,
        timestamps: Iterable[Any] | None = None, tracks: Iterable[Any] | None = None,
        boxes: ArrayLike | None = None, payloads: Iterable[dict[str, Any] | None] | None = None,
        ids: Iterable[int] | None = None,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Append rows; all of them or, when something is wrong, none.

        Args:
            embeddings: n rows of this gallery's model; their sources and visibility are kept too.
            people: n names or numbers, kept as text; "", None and NaN are nobody known.
            cameras: n names or numbers, kept as text; "", None and NaN are no known camera.
            timestamps: n Unix seconds, aware datetimes, datetime64 (UTC) or ISO 8601 texts with a zone, in any order;
                None and NaN are unknown.
            tracks: n ids of appearances, kept as text.
            boxes: (n, 4) x0, y0, x1, y1 in pixels; NaN is unknown.
            payloads: n dicts of JSON values.
            ids: n whole numbers, 0 or more, new to the gallery; given by the gallery without.

        Returns:
            (n,) int64: the rows' ids.

        Raises:
            GalleryError: the embeddings are another model's, a label is missing, too long or not finite, a mask leaves
                0..1, or an id is there already.
        """
        self._check_fingerprint(embeddings.fingerprint, embeddings.dimension)
        columns = new_rows(
            embeddings, masks=self._store.meta["masks"], people=people, cameras=cameras, timestamps=timestamps,
            tracks=tracks, boxes=boxes, payloads=payloads,
        )  # fmt: skip
        with self._changing():
            rows = Rows(ids=self._ids.new(len(embeddings)) if ids is None else self._ids.given(ids), **columns)
            if len(rows):
                self._store.add(rows)
                self._changed()
        return rows.ids

    def search(
        self, queries: Embeddings, k: int = 10, *, metric: str = "masked", camera: Any = None,
        since: Any = None, until: Any = None, min_visibility: float | None = None,
        exclude_same_camera: bool = False, query_cameras: Iterable[Any] | None = None, candidates: int | None = None,
        calibration: Calibration | None = None, prior: float = 0.5, expand: int = 0, neighbours: int = 0,
        by: str = "row", cap: int = 8,
    ) -> Matches:  # fmt: skip
        """The k nearest rows of each query: exactly in memory, exactly among the candidates elsewhere.

        Args:
            queries: Q rows of this gallery's model.
            k: places; more than there are rows leaves places empty.
            metric: "plain", "masked" (the query's mask acts) or "mutual" (both masks act).
            camera: find only rows of this camera, or of these when it is a collection.
            since: find only rows from then on: Unix seconds, an aware datetime, datetime64 (UTC) or ISO 8601 text.
            until: find only rows before.
            min_visibility: find only rows at least this visible.
            exclude_same_camera: never find a row of the query's own camera; wants `query_cameras`.
            query_cameras: Q names or numbers; a query of an unknown camera ("", None, NaN) leaves out nothing.
            candidates: rows that stores other than memory re-rank, and that `neighbours` and `by` choose from.
            calibration: adds a probability and a decision to each place; the kept one (`use_calibration`) without.
            prior: share of such pairs that is one person before anything is seen, in 0..1, for the probability.
            expand: move each query toward its first so many rows, and search again (query expansion).
            neighbours: order the candidates by how far neighbourhoods of this size agree (k-reciprocal re-ranking).
            by: "row", or "person": k people, ordered by one prototype each, made of the rows that fit; a place then
                holds the person's nearest row.
            cap: pictures of one person and camera in a prototype at most.

        Raises:
            GalleryError: the queries are another model's, k is below 1, the metric is unknown or wants masks that are
                not kept, cameras are missing, or the calibration is of another model or metric.
        """
        self._check_fingerprint(queries.fingerprint, queries.dimension)
        query = make_query(
            queries, self._store.meta, k=k, metric=metric, camera=camera, since=since, until=until,
            min_visibility=min_visibility, exclude_same_camera=exclude_same_camera, query_cameras=query_cameras,
            candidates=candidates, expand=expand, neighbours=neighbours, by=by, cap=cap,
        )  # fmt: skip
        known = choose(calibration, self._store.meta, metric)
        with self._lock:
            (ids, score), similarity = rerank.search(self._store, query)
            labels = self._store.get(np.unique(ids[ids >= 0]), vectors=False)
        return with_probability(Matches.of(ids, similarity, labels, score), known, queries.visibility, prior)

    def use_calibration(self, calibration: Calibration | None) -> None:
        """Keep a calibration with the gallery: every later search under its metric carries probabilities. None: none.

        Raises:
            GalleryError: it is of another model.
        """
        if calibration is not None and calibration.fingerprint != self.fingerprint:
            raise GalleryError(
                f"expected a calibration of model {self.fingerprint[:12]}, got one of model "
                f"{calibration.fingerprint[:12]}. Calibrate that model: dpm-edge calibrate"
            )
        self.describe(calibration=None if calibration is None else asdict(calibration))

    def rows(self, ids: Iterable[int] | None = None, *, vectors: bool = True) -> Rows:
        """Rows by id, in any order; every row, by rising id, without.

        Raises:
            GalleryError: an id is no whole number.
        """
        wanted = None if ids is None else whole_numbers(ids)
        with self._lock:
            if wanted is not None:
                return self._store.get(wanted, vectors=vectors)
            parts = list(self._store.scan(Where(), vectors=vectors))
            return Rows.join(parts) if parts else self._store.get(np.zeros(0, np.int64), vectors=vectors)

    def delete(self, ids: Iterable[int]) -> int:
        """Remove rows by id; how many there were. Their bytes leave the medium with the next `forget` or `compact`.

        Raises:
            GalleryError: an id is no whole number, or the gallery is read-only; nothing was removed.
        """
        wanted = np.unique(whole_numbers(ids))
        with self._changing():
            return self._remove(self._store.get(wanted, vectors=False).ids, "delete")

    def forget(self, person: Any) -> int:
        """Remove every row of a person, or of several, and their bytes from the medium; how many rows there were.

        In memory and in a folder the bytes are gone when this returns. A server's own vacuum takes them later.

        Raises:
            GalleryError: the person stands for unknown, or bytes may be left: mend what it names, then call it again.
        """
        people = names_to_find(person, "person")
        if people is None:
            raise GalleryError("expected a person to forget, got None. Remove rows of nobody known with `delete`")
        with self._changing():
            try:
                return self._remove(self._fitting(Where(people=people)), "forget")
            finally:  # also where the audit could not be written
                self._store.compact()

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
        at, cameras = moment(now, "now"), names_to_find(camera, "camera")
        at = time.time() if at is None else at
        with self._changing():
            if older_than is None:
                filters = due(self._store.meta, at, cameras)
            else:
                filters = [Where(cameras=cameras, until=at - duration(older_than, "older_than"))]
            return sum(self._remove(self._fitting(where), "expire") for where in filters)

    def retain(self, camera: Any, length: Any) -> None:
        """Set how long rows of a camera are kept, for `expire()`: as its `older_than`; None: for ever.

        Raises:
            GalleryError: the length is no duration, or the camera stands for unknown; nothing was written.
        """
        with self._changing():
            self._store.write_meta(with_retention(self._store.meta, camera, length))

    def note(self, what: str, ids: NDArray[np.int64]) -> None:
        """A line in the audit of rows that left in another way than by `delete`, `forget` and `expire`."""
        if len(ids):
            self._audit.write(what, ids)

    def merge(self, other: Gallery) -> int:
        """Add every row of another gallery of the same model, under new ids; how many. All of them, or none.

        Raises:
            GalleryError: it is this gallery itself, is another model's, or keeps no masks where this one does.
        """
        if other is self or other._store is self._store:
            raise GalleryError("expected another gallery to merge, got this one, whose rows are here already")
        self._check_fingerprint(other.fingerprint, other.dimension)
        return self._take_in(other._parts())

    def export(self, path: str | Path) -> int:
        """Write every row to one parquet file, whole; how many.

        Raises:
            MissingLibrary: pyarrow (the extra `parquet`) is not installed.
            DpmError: the disk is full.
        """
        with self._lock:
            return parquet.write(Path(path), self._store.scan(Where(), vectors=True), self._store.meta)

    def import_(self, path: str | Path) -> int:
        """Add every row of a file that `export` wrote, under new ids; how many. All of them, or none.

        Raises:
            GalleryError: it is another model's, or is damaged.
            MissingLibrary: pyarrow (the extra `parquet`) is not installed.
        """
        meta, parts = parquet.read(Path(path))
        self._check_fingerprint(meta["fingerprint"], meta["dimension"])
        return self._take_in(parts)

    def snapshot(self, folder: str | Path) -> None:
        """A copy of now in a new folder, that opens as a gallery; others may add meanwhile, and wait.

        Raises:
            GalleryError: the store is a server or memory, the folder exists, or the disk is full.
        """
        with self._lock:
            self._store.snapshot(Path(folder))

    def save(self, path: str | Path) -> None:
        """A gallery in memory as one file, whole or not at all.

        Raises:
            GalleryError: the gallery is not in memory.
            DpmError: the disk is full or the folder cannot be written; an old file is left as it was.
        """
        with self._lock:
            saved.save(self._store, Path(path))

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> Gallery:
        """What `save` wrote, into memory; device: as for a new one.

        Raises:
            GalleryError: the file is missing, damaged or cut short, or holds something else; there is no such device.
            MissingLibrary: torch or Triton is wanted for the device and not installed.
        """
        store = saved.load(Path(path), device)
        return cls(store.meta["fingerprint"], store.meta["dimension"], store=store)

    def describe(self, **facts: Any) -> dict[str, Any]:
        """What the store says of itself, after adding `facts` (JSON) to it."""
        with self._changing() if facts else self._lock:
            if facts:
                self._store.write_meta({**self._store.meta, **facts})
            return dict(self._store.meta)

    def flush(self) -> None:
        """Every added row survives power loss when this returns."""
        with self._lock:
            self._store.flush()

    def close(self) -> None:
        """Flush and let go of the place; once closed, closing does nothing, and everything else but a gallery in memory
        is refused.

        Raises:
            DpmError: the last flush failed, as on a full disk. The place is released all the same, and rows that were
                added survive in the store's log.
        """
        if self._lock.closed or isinstance(self._store, MemoryStore):
            return
        if self._flusher is not None:
            self._flusher.stop()
        with self._lock:
            self._lock.closed = True
            self._store.close()

    @classmethod
    def _over(cls, store: Store, place: str | Path, flush_every: float) -> Gallery:
        gallery = cls(store.meta["fingerprint"], store.meta["dimension"], store=store)
        if "://" not in str(place) and not store.read_only:
            gallery._audit = Audit(Path(place) / "audit.jsonl")
            gallery._flusher = Flusher(gallery._flush_now, flush_every)
        return gallery

    def _take_in(self, parts: Iterable[Rows]) -> int:
        """Add rows under new ids; when a part fails, those before it are removed again."""
        added: list[NDArray[np.int64]] = []
        try:
            for rows in parts:
                with self._changing():
                    if rows.masks is None and self._store.meta["masks"]:
                        raise GalleryError("expected rows with masks, as this gallery keeps them, got rows without")
                    masks = rows.masks if self._store.meta["masks"] else None
                    changed = {**vars(rows), "ids": self._ids.new(len(rows)), "masks": masks}
                    self._store.add(Rows(**changed))
                    added.append(changed["ids"])
                    self._changed()
        except BaseException:
            for ids in added:
                with self._lock:
                    self._store.delete(ids)
            raise
        return sum(len(ids) for ids in added)

    def _parts(self) -> Iterator[Rows]:
        """Every row of now, some at a time, letting others in between."""
        ids = self.ids()
        for start in range(0, len(ids), BATCH):
            rows = self.rows(ids[start : start + BATCH])
            yield rows.take(np.argsort(rows.ids))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the lock for a change.

        Raises:
            GalleryError: the gallery is closed or read-only.
        """
        with self._lock:
            if self._store.read_only:
                raise GalleryError(f"expected a gallery open for changes, got a read-only one: {self._store.read_only}")
            yield

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
                f"expected embeddings of this gallery's model {self.fingerprint[:12]}, got those of model "
                f"{fingerprint[:12]}. Embed with the engine that the gallery was filled with, or move the gallery to "
                f"the new model: dpm-edge gallery migrate"
            )
        if dimension != self.dimension:
            raise GalleryError(f"expected embeddings of {self.dimension} dimensions, got {dimension}")
