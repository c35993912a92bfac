"""Rows in a folder on this machine's disk, by the embedded engine Qdrant Edge.

One process holds a folder at a time; others read copies of it. An acknowledged row survives a killed process; a flushed
one, power loss.
"""

from __future__ import annotations

import errno
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import DpmError, GalleryError
from dpm_edge.files import whole_folder
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.stores import folder as files
from dpm_edge.gallery.stores.candidate_store import Candidates, CandidateStore, candidates_of
from dpm_edge.gallery.stores.folder import MARGIN, PENDING, SMALL_MARGIN, WRITER
from dpm_edge.gallery.stores.row_cameras import RowCameras
from dpm_edge.gallery.stores.shard import library, load_shard, new_shard, next_shard, room_for, sign
from dpm_edge.gallery.stores.store import BATCH, SITE, payloads_of, point_filter, rows_of

Answer = TypeVar("Answer")


class EdgeStore(CandidateStore):
    """A shard of Qdrant Edge, searched without an index: every row's inner product, then the exact metric for K."""

    keeps_statistics = True

    def __init__(self, folder: Path, meta: dict[str, Any], shard: Any, read_only: str | None = None) -> None:
        """See `create` and `open`."""
        self.folder, self.meta, self._shard, self._edge = folder, meta, shard, library()
        self.read_only = read_only
        self._lock = None if read_only else files.FolderLock(folder)
        self._unflushed = 0  # bytes that the next flush may write
        self._copied_statistics: CameraStatistics | None = None  # of a copy that is read
        self._row_cameras = RowCameras(self._read_cameras)

    @classmethod
    def create(cls, folder: Path, meta: dict[str, Any]) -> EdgeStore:
        """A new, empty store.

        Raises:
            GalleryError: the folder holds something already, is a file, may not be written, or its disk is full.
            MissingLibrary: Qdrant Edge is not installed.
        """
        library()
        meta = {**meta, "shard": "shard-1"}
        try:
            if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
                what = "a file" if folder.is_file() else "one that holds something already"
                raise GalleryError(f"expected a new folder at {folder}, got {what}. Choose another, or open this one")
            folder.mkdir(parents=True, exist_ok=True)
            files.require_room(folder, MARGIN, "a new gallery")
            store = cls(folder, meta, new_shard(folder / meta["shard"], meta))
        except OSError as error:
            raise GalleryError(
                f"expected a folder that this user may write at {folder}, got {error.strerror or error}. Choose "
                f"another, or change its rights"
            ) from error
        store.write_meta(meta)
        sign(folder)
        store.flush()
        return store

    @classmethod
    def open(cls, folder: Path, *, read_only: bool = False) -> EdgeStore:
        """What `create` made.

        Read-only, and where the folder may only be read or its disk is full, a copy of this moment is opened.

        Raises:
            GalleryInUse: another process holds it.
            GalleryError: it is no gallery, or its files are damaged.
            MissingLibrary: Qdrant Edge is not installed.
        """
        library()
        meta = files.read_description(folder)
        reason = "it was opened with read_only=True" if read_only else None
        if not reason and not files.may_write(folder, meta["shard"]):
            reason = f"this user may only read {folder}. Ask its owner for the right to write"
        if not reason and not files.has_room_to_open(folder, meta["shard"]):
            reason = f"the disk of {folder} is full. Free some space and open it again"
        if reason:
            with files.temporary_copy(folder) as copy:  # loaded files stay readable after they are removed
                meta = files.read_description(copy)
                store = cls(folder, meta, load_shard(copy, folder, meta["shard"]), reason)
                store._copied_statistics = files.read_cameras(copy, meta)
                return store
        files.check_sizes(folder, meta["shard"])
        store = cls(folder, meta, load_shard(folder, folder, meta["shard"]))
        sign(folder)
        try:
            store._erase_old_shards()
        except GalleryError as error:  # what is left is in no answer; `compact` tries again, and fails aloud
            warnings.warn(str(error), stacklevel=2)
        return store

    def add(self, rows: Rows) -> None:
        """In steps of BATCH; when a step fails, those before it are taken back."""
        assert rows.features is not None, "the gallery adds whole rows"
        labels, ids = payloads_of(rows), rows.ids.tolist()
        with self._changing():
            for start in range(0, len(rows), BATCH):
                part = slice(start, start + BATCH)
                try:
                    room, later = room_for(labels[part], self.meta)
                    files.require_room(self.folder, MARGIN + room, "adding rows")
                    made = [
                        self._edge.Point(id=one, vector=vector, payload=label)
                        for one, vector, label in zip(ids[part], self._vectors(rows, part), labels[part])
                    ]
                    self._update(self._edge.UpdateOperation.upsert_points(made))
                    self._unflushed += later
                except GalleryError as error:
                    self._take_back(ids[: start + BATCH], error)
                    raise

    def _take_back(self, ids: list[int], error: GalleryError) -> None:
        """Remove what a failed `add` may have added."""
        try:
            if len(self.get(np.array(ids, np.int64), vectors=False)):
                self._update(self._edge.UpdateOperation.delete_points(ids))
        except GalleryError as second:
            raise GalleryError(f"some of {len(ids)} rows may have been added: {error}; then {second}") from error

    def candidates(
        self, vectors_QD: NDArray[np.float32], count: int, where: Where, *, masks: bool, cameras: bool = False
    ) -> list[Candidates]:
        """One planned batch of exact inner products."""
        edge, d, fits = self._edge, self.meta["dimension"], point_filter(where, self._edge)
        vectors = ["feature", "mask"] if masks else ["feature"]
        requests = [
            edge.QueryRequest(
                limit=count,
                query=edge.Query.Nearest(vector.tolist(), using="feature"),
                filter=fits,
                with_vector=vectors,
                with_payload=False,
                params=edge.SearchParams(exact=True),
            )
            for vector in vectors_QD
        ]
        found = self._call("search", self._shard.query_batch, edge.QueryBatchRequest(requests))
        given = [candidates_of(some, d, masks=masks, cameras=False) for some in found]
        if not cameras:
            return given
        self._row_cameras.learn(point.id for some in found for point in some)
        return [one._replace(cameras=self._row_cameras.of(one.ids.tolist())) for one in given]

    def _read_cameras(self, ids: list[int]) -> Iterator[tuple[int, str]]:
        for point in self._call("read", self._shard.retrieve, ids, ["camera"], False):
            yield point.id, point.payload.get("camera", "")

    def get(self, ids: NDArray[np.int64], *, vectors: bool) -> Rows:
        """By id."""
        found = self._call("read", self._shard.retrieve, [int(i) for i in ids], True, vectors)
        return rows_of(found, self.meta["dimension"], vectors=vectors, masks=self.meta["masks"])

    def taken(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the ids that rows have, without reading the rows: every `add` asks."""
        found = self._call("read", self._shard.retrieve, ids.tolist(), False, False)
        return np.array([point.id for point in found], np.int64)

    def scan(self, where: Where, *, vectors: bool) -> Iterator[Rows]:
        """By rising id."""
        fits, offset = point_filter(where, self._edge), None
        while True:
            found, offset = self._call(
                "read",
                self._shard.scroll,
                self._edge.ScrollRequest(
                    offset=offset, limit=BATCH, filter=fits, with_payload=True, with_vector=vectors
                ),
            )
            if found:
                yield rows_of(found, self.meta["dimension"], vectors=vectors, masks=self.meta["masks"])
            if offset is None:
                return

    def delete(self, ids: NDArray[np.int64]) -> None:
        """By id, in steps."""
        with self._changing():
            files.require_room(self.folder, SMALL_MARGIN + 64 * len(ids), "deleting rows")
            for start in range(0, len(ids), 10 * BATCH):
                some = [int(i) for i in ids[start : start + 10 * BATCH]]
                self._row_cameras.drop(some)
                self._update(self._edge.UpdateOperation.delete_points(some))

    def count(self, where: Where) -> int:
        """Exactly."""
        request = self._edge.CountRequest(exact=True, filter=point_filter(where, self._edge))
        return self._call("count", self._shard.count, request)

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replace gallery.json, whole."""
        with self._changing():
            files.write_description(self.folder, meta)
        self.meta = meta

    def load_statistics(self) -> CameraStatistics | None:
        """Out of cameras.json, where it was written for as many rows of this model."""
        kept = self._copied_statistics if self.read_only else files.read_cameras(self.folder, self.meta)
        return kept if kept is not None and sum(kept.counts.values()) == self.count(Where()) else None

    def save_statistics(self, statistics: CameraStatistics) -> None:
        """As cameras.json, whole."""
        files.write_cameras(self.folder, statistics)

    def remove_statistics(self) -> None:
        """Remove cameras.json."""
        files.remove_cameras(self.folder)

    def flush(self) -> None:
        """The library's flush: its files are synced.

        Raises:
            DpmError: the disk is full. What was added stays in the log, and the next flush takes it.
        """
        if self.read_only:
            return
        with self._changing():
            files.require_room(self.folder, SMALL_MARGIN + self._unflushed, "flushing")
            try:
                self._call("flush", self._shard.flush)
                files.record_sizes(self.folder, self.meta["shard"])
            except OSError as error:
                raise DpmError(
                    f"expected to flush {self.folder}, got {error.strerror}. Free some space and flush again"
                ) from error
            self._unflushed = 0

    def compact(self) -> None:
        """Write the rows that are left into a new shard and erase the old one.

        The engine's own compaction leaves deleted rows in its write-ahead log. A migration that waits to go on holds
        copies of rows: what it has done so far is erased, too.

        Raises:
            GalleryError: the disk is full, and the old shard stays; or bytes could not be erased. Call it again then.
        """
        with self._changing():
            name = next_shard(self.folder)
            fresh = self._written_anew(self.folder / name)
            self.write_meta({**self.meta, "shard": name})
            self._shard.close()
            self._shard = fresh
            try:
                self._erase_old_shards()
            finally:
                files.erase(self.folder / PENDING)
            self.flush()

    def _written_anew(self, place: Path) -> Any:
        """A new shard with the rows of this one."""
        offset = None
        try:
            files.require_room(self.folder, MARGIN, "compacting")
            fresh = new_shard(place, self.meta)
        except (OSError, GalleryError) as error:
            raise self._not_compacted(place, error) from error
        try:
            while True:
                request = self._edge.ScrollRequest(offset=offset, limit=BATCH, with_payload=True, with_vector=True)
                found, offset = self._shard.scroll(request)
                room, _ = room_for([one.payload or {} for one in found], self.meta)
                files.require_room(self.folder, MARGIN + room, "compacting")
                made = [self._edge.Point(id=one.id, vector=one.vector, payload=one.payload) for one in found]
                fresh.update(self._edge.UpdateOperation.upsert_points(made))
                if offset is None:
                    break
            fresh.flush()
        except Exception as error:  # the library raises nothing narrower
            fresh.close()
            raise self._not_compacted(place, error) from error
        return fresh

    def _not_compacted(self, place: Path, error: Exception) -> GalleryError:
        """The error of a compaction that failed, after its new shard is erased."""
        files.erase(place)
        return GalleryError(
            f"{self.folder} could not be compacted: {str(error).splitlines()[0]}. Deleted rows are in no answer any "
            f"more, their bytes still on the disk. Free some space and forget again"
        )

    def adopt(self, other: Path) -> None:
        """Take the rows and the model of a closed gallery inside this folder, in one step; the old rows are erased.

        Until gallery.json is replaced this is the old gallery. What was found out about the old model is dropped.

        Raises:
            GalleryError: old rows could not be erased; this is the new gallery then, and `compact` erases them.
        """
        theirs = files.read_description(other)
        with self._changing():
            name = next_shard(self.folder)
            os.replace(other / theirs["shard"], self.folder / name)
            fresh = load_shard(self.folder, self.folder, name)
            kept = {key: value for key, value in self.meta.items() if key in ("kind", "format", "retention")}
            about_model = ("fingerprint", "dimension", "masks", "visibility", SITE)
            new = {key: theirs[key] for key in about_model if key in theirs}
            self.remove_statistics()
            self.write_meta({**kept, **new, "shard": name})
            self._shard.close()
            self._shard = fresh
            self._row_cameras.drop()
            try:
                self._erase_old_shards()
            finally:
                files.erase(other)
            self.flush()

    def close(self) -> None:
        """Flush, and release the folder.

        Raises:
            DpmError: the disk is full. The folder is released all the same; what was added is in the log.
        """
        try:
            self.flush()
        finally:
            self._shard.close()
            if self._lock is not None:
                self._lock.close()
                self._lock, self.read_only = None, "it is closed"
                (self.folder / WRITER).unlink(missing_ok=True)

    def snapshot(self, folder: Path) -> None:
        """Flush, then copy the files; the gallery's lock keeps writers waiting meanwhile.

        Raises:
            GalleryError: the folder exists, or the disk is full.
        """
        if folder.exists():
            raise GalleryError(f"expected a new folder for the snapshot, got {folder}, which exists. Choose another")
        self.flush()
        try:
            with whole_folder(folder) as beside:
                files.copy_folder(self.folder, beside)
        except OSError as error:
            raise GalleryError(
                f"expected to copy {self.folder} to {folder}, got {error}; no snapshot was made. Free some space, or "
                f"check the rights, and try again"
            ) from error

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Keep readers of other processes from copying half of a change."""
        if self._lock is None:
            raise GalleryError(f"expected a gallery open for changes, got a read-only one: {self.read_only}")
        with self._lock:
            yield

    def _vectors(self, rows: Rows, part: slice) -> Iterator[dict[str, Any]]:
        """Vectors by name, as memory: of lists the library reads numbers at half that pace, of arrays at a third."""
        columns = {"feature": rows.features, "mask": rows.masks} if self.meta["masks"] else {"feature": rows.features}
        read = [np.ascontiguousarray(values, np.float32)[part] for values in columns.values()]
        return (dict(zip(columns, [memoryview(values) for values in row])) for row in zip(*read))

    def _update(self, operation: Any) -> None:
        try:
            self._shard.update(operation)
        except Exception as error:  # the library raises nothing narrower
            full = any(word in str(error) for word in ("No space", os.strerror(errno.EFBIG), "disk space"))
            remedy = "Free some space and add again" if full else "Restore a snapshot if this persists"
            raise GalleryError(
                f"expected {self.folder} to take a change, got {str(error).splitlines()[0]}; rows acknowledged before "
                f"are kept. {remedy}"
            ) from error

    def _call(self, doing: str, call: Callable[..., Answer], *arguments: Any) -> Answer:
        """Call the library; its errors, and its panics, which are no Exception, become ours."""
        try:
            return call(*arguments)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise GalleryError(
                f"expected {self.folder} to {doing}, got {first}. If the disk is full, free some space; restore a "
                f"snapshot if this persists"
            ) from error

    def _erase_old_shards(self) -> None:
        """Erase the shards that a compaction, ended or killed, has left."""
        for place in self.folder.glob("shard-*"):
            if place.name != self.meta["shard"]:
                files.erase(place)
