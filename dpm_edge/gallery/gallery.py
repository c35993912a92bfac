"""Whom one has seen: rows of one model's embeddings in a store, searched under each query's own mask.

N rows · D feature dimensions · Q queries · k places
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.calibration import Calibration, choose, with_probability
from dpm_edge.gallery.facts import GalleryFacts
from dpm_edge.gallery.files import parquet, safetensors
from dpm_edge.gallery.guarded import GuardedStore
from dpm_edge.gallery.ids import whole_numbers
from dpm_edge.gallery.labels import make_filter, new_rows
from dpm_edge.gallery.matches import Matches
from dpm_edge.gallery.pictures import Pictures, as_embeddings, as_queries
from dpm_edge.gallery.retention import due, with_retention
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.search import rerank
from dpm_edge.gallery.search.query import make_query
from dpm_edge.gallery.search.space import wanted_space
from dpm_edge.gallery.stores.address import create_store, is_there, open_store
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import SITE, Store, check_model, new_meta
from dpm_edge.metrics import chosen_metric
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.frames import FrameQueries

if TYPE_CHECKING:
    from dpm_edge.runtime.engine import Engine


class Gallery(GalleryFacts):
    """Rows of one model's embeddings, each with a person, a camera, a time, a source and more.

    One thread at a time is let in; searches in memory run on every core. Use it in a `with`, or `close` it.
    """

    def __init__(
        self, fingerprint: str, dimension: int, dtype: str = "float32", *, device: str = "cpu",
        store: Store | None = None,
    ) -> None:  # fmt: skip
        """An empty gallery in memory for embeddings of model `fingerprint`, kept as float32, float16 or int8.

        device: "cuda" searches a copy of the rows on a GPU, with the same answers (see `Engine.search`).
        store: another medium, as `create` and `open` give; its own description goes before the other arguments.

        Raises:
            GalleryError: the dtype is another, or there is no such device.
            MissingLibrary: neither compiled kernels nor torch and Triton are here for the device.
        """
        if dtype not in ("float32", "float16", "int8"):
            raise GalleryError(f"expected dtype float32, float16 or int8, got {dtype!r}")
        self._guarded = GuardedStore(store or MemoryStore(new_meta(fingerprint, dimension, True), dtype, device))
        self._engine: Engine | None = None

    @classmethod
    def for_engine(
        cls, engine: Engine, place: str | Path | None = None, *, dtype: str = "float32", device: str = "cpu",
        masks: bool = True,
    ) -> Gallery:  # fmt: skip
        """Open a gallery for what this engine embeds, in memory or at a place; make it where there is none.

        It takes pictures wherever it takes embeddings, and the engine embeds them. The engine stays yours to close.
        What the engine knows of a site's cameras is kept with the gallery, where that keeps none (`use_statistics`).

        Args:
            place: as `create` and `open` take it; in memory without.
            dtype, device: of a gallery in memory, as for a new one.
            masks: keep each row's mask, in a new gallery at a place; a model without masks keeps none.

        Raises:
            GalleryError: what is there is another model's, and as `create` and `open` raise it.
        """
        if place is None:
            gallery = cls(engine.fingerprint, engine.dimension, dtype, device=device)
        elif is_there(place):
            gallery = cls.open(place)
        else:
            gallery = cls.create(place, engine.fingerprint, engine.dimension, masks=masks and engine.spec.masks)
        gallery._guarded.require_model(engine.fingerprint, engine.dimension)
        gallery._engine = engine
        known = engine.camera_statistics
        if known is not None and SITE not in gallery.store.meta and not gallery.store.read_only:
            gallery.use_statistics(known)
        return gallery

    @classmethod
    def create(
        cls, place: str | Path, fingerprint: str, dimension: int, *, masks: bool = True, flush_every: float = 1.0
    ) -> Gallery:
        """A new gallery in a folder, or at milvus://HOST:PORT/NAME or qdrant://HOST:PORT/NAME.

        Args:
            place: the folder or address.
            fingerprint, dimension: the model, as `Engine.fingerprint`, and D.
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
            flush_every: as `create` takes it.
            read_only: refuse every change. Of a folder the rows of this moment are copied to a temporary place and
                searched there, so that another process may hold the folder and go on adding.

        Raises:
            GalleryInUse: another process holds the folder.
            GalleryError: it is not there, is damaged, or does not answer.
            MissingLibrary: the store's library is not installed.
        """
        if "://" not in str(place) and Path(place).is_file():
            gallery = cls.load(place)
            gallery.store.read_only = "it was opened with read_only=True" if read_only else None
            return gallery
        return cls._over(open_store(place, read_only=read_only), place, flush_every)

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.count()

    def __repr__(self) -> str:
        try:  # a server is not called, and a closed gallery is shown too
            rows = "rows" if "://" in self._guarded.place else f"{len(self)} rows"
        except GalleryError:
            rows = "closed"
        return f"Gallery({self._guarded.place}, {rows}, model {self.fingerprint[:12]}, {self.dimension} dimensions)"

    def count(self, *, person: Any = None, camera: Any = None, since: Any = None, until: Any = None) -> int:
        """Rows that fit all that is given: one or several people and cameras, times as `search` takes them.

        Raises:
            GalleryError: a person or camera stands for unknown, or a time is none.
        """
        return self._guarded.count(make_filter(person=person, camera=camera, since=since, until=until))

    def ids(self, **which: Any) -> NDArray[np.int64]:
        """Ids, rising, of every row or of those that fit all that is given, as `count` takes it."""
        return self._guarded.fitting(make_filter(**which))

    def add(
        self, embeddings: Embeddings | Pictures, *, people: Iterable[Any], cameras: Iterable[Any] | None = None,
        timestamps: Iterable[Any] | None = None, tracks: Iterable[Any] | None = None,
        boxes: ArrayLike | None = None, payloads: Iterable[dict[str, Any] | None] | None = None,
        ids: Iterable[int] | None = None,
    ) -> NDArray[np.int64]:  # fmt: skip
        """Append rows, all of them or, when something is wrong, none; their ids, (n,) int64.

        Args:
            embeddings: n rows of this gallery's model; their sources and visibility are kept too. Or n pictures, as
                arrays or files, where the gallery was opened by `for_engine`.
            people, cameras: n names or numbers, kept as text; "", None and NaN are unknown.
            timestamps: n Unix seconds, aware datetimes, datetime64 (UTC) or ISO 8601 texts with a zone, in any order;
                None and NaN are unknown.
            tracks: n ids of appearances, kept as text.
            boxes: (n, 4) x0, y0, x1, y1 in pixels; NaN is unknown.
            payloads: n dicts of JSON values.
            ids: n whole numbers, 0 or more, new to the gallery; given by the gallery without.

        Raises:
            GalleryError: the embeddings are another model's, a label is missing, too long or not finite, a mask leaves
                0..1, or an id is there already.
        """
        rows = as_embeddings(embeddings, self._engine, self.store.meta)
        columns = new_rows(
            rows, masks=self.store.meta["masks"], people=people, cameras=cameras, timestamps=timestamps, tracks=tracks,
            boxes=boxes, payloads=payloads,
        )  # fmt: skip
        return self._guarded.add(columns, ids)

    def search(
        self, queries: Embeddings | Pictures | FrameQueries, k: int = 10, *, metric: str | None = None,
        camera: Any = None, since: Any = None, until: Any = None, min_visibility: float | None = None,
        exclude_same_camera: bool = False, query_cameras: Iterable[Any] | None = None, candidates: int | None = None,
        calibration: Calibration | None = None, prior: float = 0.5, expand: int = 0, neighbours: int = 0,
        by: str = "row", cap: int = 8, centre: bool | None = None,
    ) -> Matches:  # fmt: skip
        """The k nearest rows of each query: exactly in memory, exactly among the candidates elsewhere.

        Args:
            queries: Q rows of this gallery's model, Q pictures as `add` takes them, or those of `Engine.search`.
            k: places; more than there are rows leaves places empty.
            metric: "plain", "masked" (the query's mask acts; the default) or "mutual" (both act); no masks: "plain".
            camera: find only rows of this camera, or of these when it is a collection.
            since, until: find only rows from then on; before. Unix seconds, aware datetimes, datetime64, ISO 8601.
            min_visibility: find only rows at least this visible; refused for a model without a visibility.
            exclude_same_camera: never find a row of the query's own camera; wants `query_cameras`.
            query_cameras: Q names or numbers; a query of an unknown camera ("", None, NaN) leaves out nothing.
            centre: True takes off rows and queries what their camera's rows have in common (docs/gallery.md); every
                metric and option then acts on what is left. Wants `query_cameras`; an unknown one gets the mean of all
                rows. False does not. None: as the calibration is; without one, True where `query_cameras` are given and
                50 rows or more have two or more known cameras, but not where the rows lie on a GPU.
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
                not kept, cameras are missing, or the calibration is of another model, metric or space.
        """
        given = as_queries(queries, self._engine, self.store.meta)
        meta = self.store.meta
        used = metric or chosen_metric(None, given.has_masks)
        centre = wanted_space(centre, calibration, meta, used, cameras=query_cameras is not None)
        query = make_query(
            given, meta, k=k, metric=metric, camera=camera, since=since, until=until,
            min_visibility=min_visibility, exclude_same_camera=exclude_same_camera, query_cameras=query_cameras,
            candidates=candidates, expand=expand, neighbours=neighbours, by=by, cap=cap, centre=centre,
        )  # fmt: skip
        known = None if centre is None else choose(calibration, meta, query.metric, centre)
        embedded, matches = rerank.answer(self._guarded, given, query)
        return with_probability(matches, known, embedded.visibility, prior)

    def rows(self, ids: Iterable[int] | None = None, *, vectors: bool = True) -> Rows:
        """Rows by id, in any order; every row, by rising id, without.

        Raises:
            GalleryError: an id is no whole number.
        """
        return self._guarded.read(None if ids is None else whole_numbers(ids), vectors=vectors)

    def delete(self, ids: Iterable[int]) -> int:
        """Remove rows by id; how many there were. Their bytes leave the medium with the next `forget` or `compact`.

        Raises:
            GalleryError: an id is no whole number, or the gallery is read-only; nothing was removed.
        """
        wanted = np.unique(whole_numbers(ids))
        return self._guarded.remove(lambda: self.store.get(wanted, vectors=False).ids, "delete")

    def forget(self, person: Any) -> int:
        """Remove every row of a person, or of several, and their bytes from the medium; how many rows there were.

        In memory and in a folder the bytes are gone when this returns. A server's own vacuum takes them later.

        Raises:
            GalleryError: the person stands for unknown, or bytes may be left: mend what it names, then call it again.
        """
        if person is None:
            raise GalleryError("expected a person to forget, got None. Remove rows of nobody known with `delete`")
        return self._guarded.remove(partial(self._guarded.fitting, make_filter(person=person)), "forget", compact=True)

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
        with self._guarded.changing():
            filters = due(self.store.meta, older_than, camera, now)
            return sum(self._guarded.remove(partial(self._guarded.fitting, where), "expire") for where in filters)

    def compact(self) -> None:
        """Take what was deleted off the medium, where it is a folder: the rows that are left are written anew.

        Raises:
            GalleryError: the gallery is read-only, or the disk is full; nothing has changed then.
        """
        with self._guarded.changing():
            self.store.compact()

    def retain(self, camera: Any, length: Any) -> None:
        """Set how long rows of a camera are kept, for `expire()`: as its `older_than`; None: for ever.

        Raises:
            GalleryError: the length is no duration, or the camera stands for unknown; nothing was written.
        """
        with self._guarded.changing():
            self._guarded.describe(with_retention(self.store.meta, camera, length))

    def note(self, what: str, ids: NDArray[np.int64]) -> None:
        """Write a line into the audit about rows removed in another way than by `delete`, `forget` and `expire`."""
        self._guarded.note(what, ids)

    def merge(self, other: Gallery) -> int:
        """Add every row of another gallery of the same model, under new ids; how many. All of them, or none.

        Raises:
            GalleryError: it is this gallery itself, is another model's, or keeps no masks where this one does.
        """
        if other is self or other.store is self.store:
            raise GalleryError("expected another gallery to merge, got this one, whose rows are here already")
        check_model(self.store.meta, other.fingerprint, other.dimension)
        return self._guarded.add_copies(other._guarded.parts(), other._guarded.has_visibility)

    def export(self, path: str | Path) -> int:
        """Write every row to one parquet file, whole; how many.

        Raises:
            MissingLibrary: pyarrow (the extra `parquet`) is not installed.
            DpmError: the disk is full.
        """
        with self._guarded.lock:
            return parquet.write(Path(path), self.store.scan(Where(), vectors=True), self.store.meta)

    def import_(self, path: str | Path) -> int:
        """Add every row of a file that `export` wrote, under new ids; how many. All of them, or none.

        Raises:
            GalleryError: it is another model's, or is damaged.
            MissingLibrary: pyarrow (the extra `parquet`) is not installed.
        """
        meta, parts = parquet.read(Path(path))
        check_model(self.store.meta, meta["fingerprint"], meta["dimension"])
        return self._guarded.add_copies(parts, meta.get("visibility", True))

    def snapshot(self, folder: str | Path) -> None:
        """A copy of now in a new folder, that opens as a gallery; others may add meanwhile, and wait.

        Raises:
            GalleryError: the store is a server or memory, the folder exists, or the disk is full.
        """
        with self._guarded.lock:
            self.store.snapshot(Path(folder))

    def save(self, path: str | Path) -> None:
        """A gallery in memory as one file, whole or not at all.

        Raises:
            GalleryError: the gallery is not in memory.
            DpmError: the disk is full or the folder cannot be written; an old file is left as it was.
        """
        with self._guarded.lock:
            safetensors.save(self.store, Path(path))

    @classmethod
    def load(cls, path: str | Path, *, device: str = "cpu") -> Gallery:
        """What `save` wrote, into memory; device: as for a new one.

        Raises:
            GalleryError: the file is missing, damaged or cut short, or holds something else; there is no such device.
            MissingLibrary: neither compiled kernels nor torch and Triton are here for the device.
        """
        store = safetensors.load(Path(path), device)
        return cls(store.meta["fingerprint"], store.meta["dimension"], store=store)

    def flush(self) -> None:
        """Every added row survives power loss when this returns."""
        self._guarded.flush()

    def close(self) -> None:
        """Flush and let go of the place, and of a GPU, and refuse every use; in memory it does nothing.

        Raises:
            DpmError: the last flush failed. The place is released, and added rows survive in the store's log.
        """
        self._guarded.close()

    @classmethod
    def _over(cls, store: Store, place: str | Path, flush_every: float) -> Gallery:
        gallery = cls(store.meta["fingerprint"], store.meta["dimension"], store=store)
        gallery._guarded = GuardedStore(store, place, flush_every)
        return gallery
