"""Rows in a folder on this machine's disk, by the embedded engine Qdrant Edge.

    FOLDER/
        gallery.json    what the gallery is, and the name of its shard
        shard-1/        Qdrant Edge's own files
        migrating/      rows of the next model, while a migration is under way
        writer          the process that holds the folder
        sizes.json      how long the shard's files were at the last flush
        audit.jsonl     a line for each deletion

One process holds a folder at a time. An acknowledged row survives a killed process; a flushed one, power loss.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DpmError, GalleryError, MissingLibrary
from dpm_edge.files import whole_folder, write_whole
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.stores import file_sizes, points
from dpm_edge.gallery.stores.store import BATCH, CandidateStore, check_meta

NAME, WRITER, PENDING = "gallery.json", "writer", "migrating"


def _library() -> ModuleType:
    try:
        import qdrant_edge
    except ImportError as error:
        raise MissingLibrary("qdrant-edge-py", "a gallery in a folder", "pip install 'dpm-edge[qdrant]'") from error
    return qdrant_edge


class EdgeStore(CandidateStore):
    """A shard of Qdrant Edge, searched without an index: every row's inner product, then the exact metric for K."""

    def __init__(self, folder: Path, meta: dict[str, Any], shard: Any) -> None:
        """See `create` and `open`."""
        self.folder, self.meta, self._shard, self._edge = folder, meta, shard, _library()

    @classmethod
    def create(cls, folder: Path, meta: dict[str, Any]) -> EdgeStore:
        """A new, empty store.

        Raises:
            GalleryError: the folder holds something already.
            MissingLibrary: Qdrant Edge is not installed.
        """
        if folder.exists() and any(folder.iterdir()):
            raise GalleryError(f"{folder} holds something already; a new folder is wanted, or open this one")
        meta = {**meta, "shard": "shard-1"}
        store = cls(folder, meta, _new_shard(folder / meta["shard"], meta))
        store.write_meta(meta)
        store._sign()
        store.flush()
        return store

    @classmethod
    def open(cls, folder: Path) -> EdgeStore:
        """What `create` made.

        Raises:
            GalleryError: it is no gallery, another process holds it, or its files are damaged.
            MissingLibrary: Qdrant Edge is not installed.
        """
        try:
            meta = json.loads((folder / NAME).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GalleryError(
                f"{folder} is no gallery: its {NAME} cannot be read ({error}). Create one: dpm-edge gallery create"
            ) from error
        meta = check_meta(meta, str(folder))
        place = folder / str(meta.get("shard", "shard-1"))
        if not place.is_dir():
            raise GalleryError(f"{folder} is damaged: no folder {place.name}. Restore a snapshot: copy its folder here")
        file_sizes.check(folder, place.name)
        try:
            shard = _library().EdgeShard.load(str(place))
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises nothing narrower, and its panics are no Exception
            if "WouldBlock" in str(error):
                raise GalleryError(
                    f"{folder} is open in {_signed(folder)}; one process at a time is wanted. Close it there, or use "
                    f"a server (qdrant://, milvus://)"
                ) from error
            raise GalleryError(
                f"{folder} is damaged ({str(error).splitlines()[0]}). Restore a snapshot: copy its folder here"
            ) from error
        store = cls(folder, meta, shard)
        store._sign()
        store._sweep()
        return store

    def add(self, rows: Rows) -> None:
        """In steps of BATCH; when a step fails, those before it are taken back."""
        assert rows.features is not None, "the gallery adds whole rows"
        labels, names = points.payloads(rows), rows.ids.tolist()
        try:
            for start in range(0, len(rows), BATCH):
                part = slice(start, start + BATCH)
                made = [
                    self._edge.Point(id=name, vector=vector, payload=label)
                    for name, vector, label in zip(names[part], self._vectors(rows, part), labels[part])
                ]
                self._update(self._edge.UpdateOperation.upsert_points(made))
        except GalleryError:
            self._shard.update(self._edge.UpdateOperation.delete_points([int(i) for i in rows.ids]))
            raise

    def candidates(
        self, vectors_QD: NDArray[np.float32], count: int, where: Where, *, masks: bool
    ) -> Sequence[tuple[NDArray[np.int64], NDArray, NDArray | None]]:
        """One planned batch of exact inner products."""
        edge, d = self._edge, self.meta["dimension"]
        names = ["feature", "mask"] if masks else ["feature"]
        fits = points.filter_of(where, edge)
        found = self._shard.query_batch(
            edge.QueryBatchRequest(
                [
                    edge.QueryRequest(
                        limit=count,
                        query=edge.Query.Nearest(vector.tolist(), using="feature"),
                        filter=fits,
                        with_vector=names,
                        with_payload=False,
                        params=edge.SearchParams(exact=True),
                    )
                    for vector in vectors_QD
                ]
            )
        )
        return [
            (
                np.array([point.id for point in some], np.int64),
                points.vectors_of(some, "feature", d),
                points.vectors_of(some, "mask", d) if masks else None,
            )
            for some in found
        ]

    def get(self, ids: NDArray[np.int64], *, vectors: bool) -> Rows:
        """By id."""
        found = self._shard.retrieve([int(i) for i in ids], True, vectors)
        return points.rows_of(found, self.meta["dimension"], vectors=vectors, masks=self.meta["masks"])

    def scan(self, where: Where, *, vectors: bool) -> Iterator[Rows]:
        """By rising id."""
        fits, offset = points.filter_of(where, self._edge), None
        while True:
            found, offset = self._shard.scroll(
                self._edge.ScrollRequest(
                    offset=offset, limit=BATCH, filter=fits, with_payload=True, with_vector=vectors
                )
            )
            if found:
                yield points.rows_of(found, self.meta["dimension"], vectors=vectors, masks=self.meta["masks"])
            if offset is None:
                return

    def delete(self, ids: NDArray[np.int64]) -> None:
        """By id, in steps."""
        for start in range(0, len(ids), 10 * BATCH):
            some = [int(i) for i in ids[start : start + 10 * BATCH]]
            self._update(self._edge.UpdateOperation.delete_points(some))

    def count(self, where: Where) -> int:
        """Exactly."""
        return self._shard.count(self._edge.CountRequest(exact=True, filter=points.filter_of(where, self._edge)))

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replace gallery.json, whole."""
        try:
            write_whole(self.folder / NAME, (json.dumps(meta, indent=2) + "\n").encode())
        except OSError as error:
            raise DpmError(f"{self.folder / NAME} could not be written ({error.strerror}); it is as it was") from error
        self.meta = meta

    def flush(self) -> None:
        """The library's flush: its files are synced.

        Raises:
            DpmError: the disk is full.
        """
        self._shard.flush()
        try:
            file_sizes.record(self.folder, self.meta["shard"])
        except OSError as error:
            raise DpmError(f"{self.folder} could not be flushed whole ({error.strerror}). Free some space") from error

    def compact(self) -> None:
        """Write the rows that are left into a new shard and remove the old one.

        The engine's own compaction leaves deleted rows in its write-ahead log. A migration that waits to go on holds
        copies of rows: what it has done so far is removed, too.

        Raises:
            GalleryError: the disk is full; the old shard stays.
        """
        name = self._next_shard()
        place, offset = self.folder / name, None
        fresh = _new_shard(place, self.meta)
        try:
            while True:
                request = self._edge.ScrollRequest(offset=offset, limit=BATCH, with_payload=True, with_vector=True)
                found, offset = self._shard.scroll(request)
                made = [self._edge.Point(id=one.id, vector=one.vector, payload=one.payload) for one in found]
                fresh.update(self._edge.UpdateOperation.upsert_points(made))
                if offset is None:
                    break
            fresh.flush()
        except Exception as error:  # the library raises nothing narrower
            fresh.close()
            shutil.rmtree(place, ignore_errors=True)
            raise GalleryError(
                f"{self.folder} could not be compacted ({str(error).splitlines()[0]}); deleted rows are in no "
                f"answer any more, their bytes still on the disk. Free some space and forget again"
            ) from error
        self.write_meta({**self.meta, "shard": name})
        self._shard.close()
        self._shard = fresh
        self.flush()
        self._sweep()
        shutil.rmtree(self.folder / PENDING, ignore_errors=True)

    def adopt(self, other: Path) -> None:
        """Take the rows and the model of a closed gallery inside this folder, in one step; the old rows are removed.

        Until gallery.json is replaced this is the old gallery. What was found out about the old model is dropped.
        """
        theirs = json.loads((other / NAME).read_text(encoding="utf-8"))
        name = self._next_shard()
        os.replace(other / theirs["shard"], self.folder / name)
        fresh = _library().EdgeShard.load(str(self.folder / name))
        kept = {key: value for key, value in self.meta.items() if key in ("kind", "format", "masks", "retention")}
        new = {key: theirs[key] for key in ("fingerprint", "dimension")}
        self.write_meta({**kept, **new, "shard": name})
        self._shard.close()
        self._shard = fresh
        self.flush()
        self._sweep()
        shutil.rmtree(other)

    def close(self) -> None:
        """Flush, and release the folder."""
        try:
            self.flush()
        finally:
            self._shard.close()
        (self.folder / WRITER).unlink(missing_ok=True)

    def snapshot(self, folder: Path) -> None:
        """Flush, then copy the files; the gallery's lock keeps writers waiting meanwhile.

        Raises:
            GalleryError: the folder exists, or the disk is full.
        """
        if folder.exists():
            raise GalleryError(f"{folder} exists; a snapshot wants a new folder")
        self.flush()
        try:
            with whole_folder(folder) as beside:
                shutil.copytree(self.folder / self.meta["shard"], beside / self.meta["shard"])
                for name in (NAME, file_sizes.NAME):
                    shutil.copy2(self.folder / name, beside / name)
        except OSError as error:
            raise GalleryError(
                f"no snapshot was made of {self.folder}: {error}. Free some space and try again"
            ) from error

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
                f"{self.folder} refused a change ({str(error).splitlines()[0]}); rows acknowledged before are kept. "
                f"{remedy}"
            ) from error

    def _next_shard(self) -> str:
        return f"shard-{int(self.meta['shard'].removeprefix('shard-')) + 1}"

    def _sweep(self) -> None:
        """Remove shards that a compaction, ended or killed, has left."""
        for place in self.folder.glob("shard-*"):
            if place.name != self.meta["shard"]:
                shutil.rmtree(place, ignore_errors=True)

    def _sign(self) -> None:
        """Leave this process's name for whoever finds the folder held."""
        (self.folder / WRITER).write_text(f"process {os.getpid()}\n")


def _new_shard(place: Path, meta: dict[str, Any]) -> Any:
    """An empty shard for a gallery."""
    edge = _library()
    place.mkdir(parents=True)
    vector = edge.EdgeVectorParams(
        size=meta["dimension"], distance=edge.Distance.Dot, datatype=edge.VectorStorageDatatype.Float16
    )
    never = edge.EdgeOptimizersConfig(indexing_threshold=2**40)  # an HNSW graph costs minutes and hardly helps
    vectors = {"feature": vector, "mask": vector} if meta["masks"] else {"feature": vector}
    shard = edge.EdgeShard.create(str(place), edge.EdgeConfig(vectors=vectors, optimizers=never))
    for names, kind in (
        (points.KEYWORDS, edge.PayloadSchemaType.Keyword),
        (points.FLOATS, edge.PayloadSchemaType.Float),
    ):
        for field in names:
            shard.update(edge.UpdateOperation.create_field_index(field, kind))
    shard.flush()
    return shard


def _signed(folder: Path) -> str:
    try:
        return (folder / WRITER).read_text().strip() or "another process"
    except OSError:
        return "another process"
