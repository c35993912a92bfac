"""Whom one has seen: rows of one model's embeddings in a store, searched under each query's own mask.

N rows · D feature dimensions · Q queries · k places
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.audit import Audit
from dpm_edge.gallery.files import parquet
from dpm_edge.gallery.files import safetensors as saved
from dpm_edge.gallery.flusher import Flusher
from dpm_edge.gallery.ids import Ids, whole_numbers
from dpm_edge.gallery.labels import box_array, column, label_column, payload_list
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.search import exact
from dpm_edge.gallery.search.searching import Searching
from dpm_edge.gallery.stores.address import create_store, open_store
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import Store, new_meta
from dpm_edge.gallery.times import timestamps as unix_seconds
from dpm_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from dpm_edge.runtime.engine import Engine

DTYPES = ("float32", "float16", "int8")


class Gallery(Searching):
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
            raise GalleryError(f"dtype {dtype!r} is unknown; one of {', '.join(DTYPES)} is wanted")
        super().__init__(store or MemoryStore(new_meta(fingerprint, dimension, True), dtype, device))
        self._ids = Ids(self._store)

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
    def open(cls, place: str | Path, *, flush_every: float = 1.0) -> Gallery:
        """An existing gallery at a place as `create` takes it, or a file that `save` wrote, read into memory.

        Raises:
            GalleryError: it is not there, is held by another process, is damaged, or does not answer.
            MissingLibrary: the store's library is not installed.
        """
        if "://" not in str(place) and Path(place).is_file():
            return cls.load(place)
        return cls._over(open_store(place), place, flush_every)

    @classmethod
    def _over(cls, store: Store, place: str | Path, flush_every: float) -> Gallery:
        gallery = cls(store.meta["fingerprint"], store.meta["dimension"], store=store)
        if "://" not in str(place):
            gallery._audit = Audit(Path(place) / "audit.jsonl")
            gallery._flusher = Flusher(gallery._flush_now, flush_every)
        return gallery

    def add(
        self,
        embeddings: Embeddings,
        *,
        people: Iterable[Any],
        cameras: Iterable[Any] | None = None,
        timestamps: Iterable[Any] | None = None,
        tracks: Iterable[Any] | None = None,
        boxes: ArrayLike | None = None,
        payloads: Iterable[dict[str, Any] | None] | None = None,
        ids: Iterable[int] | None = None,
    ) -> NDArray[np.int64]:
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
        self._check_model(embeddings)
        n = len(embeddings)
        if n and (embeddings.masks.min() < 0 or embeddings.masks.max() > 1):
            raise GalleryError(f"expected masks in 0..1, got {embeddings.masks.min()}..{embeddings.masks.max()}")
        named: dict[str, Any] = {
            "people": label_column(column(people, n, "people"), n, "people"),
            "tracks": label_column(tracks, n, "tracks"),
            "cameras": label_column(cameras, n, "cameras"),
            "timestamps": unix_seconds(timestamps, n),
            "boxes": box_array(boxes, n),
            "payloads": payload_list(payloads, n),
        }
        with self._lock:
            new_ids = self._ids.new(n) if ids is None else self._ids.given(ids)
            rows = Rows(
                ids=new_ids,
                features=exact.unit(embeddings.features),
                masks=embeddings.masks if self._store.meta["masks"] else None,
                visibility=embeddings.visibility,
                sources=list(embeddings.sources) or [""] * n,
                **named,
            )
            if n:
                self._store.add(rows)
                self._changed()
        return new_ids

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

    def merge(self, other: Gallery) -> int:
        """Add every row of another gallery of the same model, under new ids; how many.

        Raises:
            GalleryError: it is another model's, or keeps no masks where this one does.
        """
        self._check_fingerprint(other.fingerprint, other.dimension)
        return self._take_in(other.store.scan(Where(), vectors=True))

    def export(self, path: str | Path) -> int:
        """Write every row to one parquet file, whole; how many.

        Raises:
            MissingLibrary: pyarrow (the extra `parquet`) is not installed.
            DpmError: the disk is full.
        """
        with self._lock:
            return parquet.write(Path(path), self._store.scan(Where(), vectors=True), self._store.meta)

    def import_(self, path: str | Path) -> int:
        """Add every row of a file that `export` wrote, under new ids; how many.

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

    def _take_in(self, parts: Any) -> int:
        added = 0
        with self._lock:
            for rows in parts:
                if rows.masks is None and self._store.meta["masks"]:
                    raise GalleryError("those rows have no masks, and this gallery keeps masks")
                masks = rows.masks if self._store.meta["masks"] else None
                changed = {**vars(rows), "ids": self._ids.new(len(rows)), "masks": masks}
                self._store.add(Rows(**changed))
                added += len(rows)
            self._changed()
        return added

    def _check_model(self, embeddings: Embeddings) -> None:
        self._check_fingerprint(embeddings.fingerprint, embeddings.dimension)
