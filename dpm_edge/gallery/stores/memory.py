"""Rows in this process's memory, searched exactly.

N rows · D feature dimensions
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.search import exact, on_gpu
from dpm_edge.gallery.search.query import Query, embedded
from dpm_edge.gallery.stores.positions import Positions
from dpm_edge.gallery.stores.store import BATCH, Store
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.frames import FrameQueries

RECURRING = ("people", "tracks", "cameras")
TEXTS = (*RECURRING, "sources", "payloads")

PIECE = 256
"""Rows that are moved at a time, so that what that needs beside them stays small."""
HUGE = 32 << 20
"""Bytes from which a column asks for huge pages: a scan then waits less for address translation."""


class MemoryStore(Store):
    """Columns that grow where they are; texts that recur are kept once."""

    def __init__(self, meta: dict[str, Any], dtype: str, device: str = "cpu") -> None:
        """An empty store that keeps features and masks as `dtype`: float32, float16 or int8.

        device: "cuda" searches a copy of them on a GPU, which follows at the next search after a change.

        Raises:
            GalleryError: there is no such device.
            MissingLibrary: neither compiled kernels nor torch and Triton are here for it.
        """
        self.meta = meta
        self.dtype = np.dtype(dtype)
        d = meta["dimension"]
        self._columns = {
            "ids": Column((), np.int64),
            "features": Column((d,), self.dtype),
            "masks": Column((d if meta["masks"] else 0,), self.dtype),
            "squares": Column((), np.float32),
            "timestamps": Column((), np.float64),
            "visibility": Column((), np.float32),
            "boxes": Column((4,), np.float32),
        }
        self._texts = {name: TextColumn() for name in RECURRING}
        self._lists: dict[str, list[Any]] = {"sources": [], "payloads": []}
        self._positions = Positions()
        self._centred: CentredCopy | None = None
        self._on_gpu = None if device == "cpu" else on_gpu.rows_on_gpu(device)
        self.place = "" if self._on_gpu is None else self._on_gpu.place

    def column(self, name: str) -> NDArray:
        """A view of what is stored, such as features, masks, ids, timestamps; valid until the next change."""
        return self._columns[name].rows

    def texts(self, name: str) -> list[Any]:
        """People, tracks, cameras, sources or payloads of all rows; None where there is no payload."""
        texts = self._texts_at(name, np.arange(len(self._columns["ids"])))
        return [one or "" for one in texts] if name == "sources" else texts

    def add(self, rows: Rows) -> None:
        """Copied to the end, some at a time."""
        assert rows.features is not None, "the gallery adds whole rows"
        for column in self._columns.values():
            column.reserve(len(column) + len(rows))
        for start in range(0, len(rows), exact.PIECE):
            part = slice(start, start + exact.PIECE)
            features = self._stored(rows.features[part], unit=False)
            self._columns["features"].append(features)
            self._columns["squares"].append(exact.squared_norms(features))
            masks = rows.masks[part] if self.meta["masks"] and rows.masks is not None else np.empty((len(features), 0))
            self._columns["masks"].append(self._stored(masks, unit=True))
        for name in ("ids", "timestamps", "visibility", "boxes"):
            self._columns[name].append(getattr(rows, name))
        for name, texts in self._texts.items():
            texts.append(getattr(rows, name))
        for name, kept in self._lists.items():  # most rows have no payload: None
            kept += [one or None for one in getattr(rows, name)]

    def search(self, query: Query) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Exact over every row."""
        ids = self.column("ids")
        own = None
        if query.own_cameras is not None:
            own = np.array([self._texts["cameras"].code(one) if one else -1 for one in query.own_cameras], np.int32)
        vectors = self._vectors() if query.centring is None else self._centred_vectors(query.centring)
        search = exact.top_k
        if self._on_gpu is not None and query.centring is None:
            self._on_gpu.follow(vectors.values, vectors.masks)
            search = partial(on_gpu.top_k, copy=self._on_gpu, nearest=query.nearest)
        rows, s = search(
            query.features,
            vectors,
            k=query.k,
            metric=query.metric,
            query_masks=query.masks,
            hidden=None if query.where.everything else ~self._fits(query.where),
            group=None if own is None else self._texts["cameras"].codes,
            own=own,
            ids=ids,
        )
        return np.where(rows >= 0, ids[rows] if len(ids) else -1, -1), s

    def embed(self, queries: FrameQueries, query: Query) -> tuple[Embeddings, Query]:
        """Let an engine on the GPU of the rows embed its frame, and search behind its network."""
        own = {one or None for one in query.own_cameras or [""]}
        behind = None
        if self._on_gpu is not None and len(own) == 1 and len(queries):
            where = replace(query.where, not_camera=own.pop())
            keep = None if where.everything else self._fits(where)
            behind = on_gpu.search_behind(self._on_gpu, self._vectors(), query.k, query.metric, keep)
        return embedded(queries, query, behind)

    def get(self, ids: NDArray[np.int64], *, vectors: bool) -> Rows:
        """By position."""
        return self._rows(self._positions.find(self.column("ids"), ids), vectors)

    def scan(self, where: Where, *, vectors: bool) -> Iterator[Rows]:
        """By rising id."""
        at = np.flatnonzero(self._fits(where))
        at = at[np.argsort(self.column("ids")[at], kind="stable")]
        for start in range(0, len(at), BATCH):
            yield self._rows(at[start : start + BATCH], vectors)

    def delete(self, ids: NDArray[np.int64]) -> None:
        """The rows behind move up, so that nothing of a deleted row stays in a column."""
        keep = np.flatnonzero(~np.isin(self.column("ids"), ids))
        if len(keep) == len(self._columns["ids"]):
            return
        for column in self._columns.values():
            column.keep(keep)
        for texts in self._texts.values():
            texts.keep(keep)
        self._lists = {name: [kept[i] for i in keep] for name, kept in self._lists.items()}
        self._positions, self._centred = Positions(), None
        if self._on_gpu is not None:
            self._on_gpu.clear()

    def count(self, where: Where) -> int:
        """Rows that fit."""
        return len(self._columns["ids"]) if where.everything else int(self._fits(where).sum())

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Kept until `save`."""
        self.meta = meta

    def flush(self) -> None:
        """Nothing to do."""

    def compact(self) -> None:
        """Nothing to do: `delete` did."""

    def close(self) -> None:
        """Let go of the GPU's copy; the rows stay readable."""
        if self._on_gpu is not None:
            self._on_gpu.close()

    def _vectors(self) -> exact.Vectors:
        masks = self.column("masks") if self.meta["masks"] else None
        return exact.Vectors(self.column("features"), masks, self.column("squares"))

    def as_kept(self, features_ND: NDArray) -> NDArray:
        """Rounded as this store's dtype rounds."""
        return self._read(self._stored(features_ND, unit=False), unit=False)

    def _centred_vectors(self, statistics: CameraStatistics) -> exact.Vectors:
        """Every row in the centred space; only rows that were added since the last search with them are centred."""
        if self._centred is None or self._centred.statistics is not statistics:
            self._centred = None  # frees the old copy before the new one is made
            self._centred = CentredCopy(statistics)
        copy, cameras = self._centred, self._texts["cameras"]
        for column in (copy.values, copy.squares):
            column.reserve(len(self._columns["ids"]))
        for start in range(len(copy.values), len(self._columns["ids"]), exact.GALLERY_TILE):
            part = np.arange(start, min(start + exact.GALLERY_TILE, len(self._columns["ids"])))
            copy.append(self._read(self.column("features")[part], unit=False), cameras.of(part))
        masks = self.column("masks") if self.meta["masks"] else None
        return exact.Vectors(copy.values.rows, masks, copy.squares.rows)

    def _stored(self, values: NDArray, *, unit: bool) -> NDArray:
        """Values as this store keeps them; int8 codes per row, or in 127ths for values in 0..1."""
        if self.dtype != np.int8:
            return values.astype(self.dtype)
        return np.rint(values * 127).astype(np.int8) if unit else exact.quantise(values)[0]

    def _read(self, values: NDArray, *, unit: bool) -> NDArray:
        """Stored values as floats; codes come back normalised, since their scale does not matter."""
        if values.dtype != np.int8:
            return values
        whole = values.astype(np.float32)
        return whole / 127 if unit else whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)

    def _fits(self, where: Where) -> NDArray[np.bool_]:
        camera, person = self._texts["cameras"], self._texts["people"]
        coded = Where(
            cameras=None if where.cameras is None else tuple(camera.code(c) for c in where.cameras),  # type: ignore[misc]
            not_camera=None if where.not_camera is None else camera.code(where.not_camera),  # type: ignore[arg-type]
            since=where.since,
            until=where.until,
            min_visibility=where.min_visibility,
            outside=None if where.outside is None else tuple(camera.code(c) for c in where.outside),  # type: ignore[misc]
            people=None if where.people is None else tuple(person.code(p) for p in where.people),  # type: ignore[misc]
        )
        return coded.holds(
            cameras=camera.codes,
            timestamps=self.column("timestamps"),
            visibility=self.column("visibility"),
            people=person.codes,
        )

    def _texts_at(self, name: str, at: NDArray[np.int64]) -> list[Any]:
        return self._texts[name].of(at) if name in self._texts else [self._lists[name][i] for i in at]

    def _rows(self, at: NDArray[np.int64], vectors: bool) -> Rows:
        picked: dict[str, Any] = {name: self._texts_at(name, at) for name in TEXTS}
        picked["sources"] = [one or "" for one in picked["sources"]]
        picked["payloads"] = [one or {} for one in picked["payloads"]]
        for field in fields(Rows):
            if field.name in self._columns and field.name not in ("features", "masks"):
                picked[field.name] = self.column(field.name)[at]
        picked["features"] = self._read(self.column("features")[at], unit=False) if vectors else None
        masks = vectors and self.meta["masks"]
        picked["masks"] = self._read(self.column("masks")[at], unit=True) if masks else None
        return Rows(**picked)


class Column:
    """N rows of one shape and dtype, one after another in pages of their own.

    The system hands out pages at their first touch and takes them back when the column shrinks. On Linux growing moves
    no byte (mremap); elsewhere, or while someone holds a view, it copies.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype | type) -> None:
        """Empty, for rows of `shape` and `dtype`."""
        self._shape, self._dtype = shape, np.dtype(dtype)
        self._row = int(np.prod(shape, dtype=np.int64)) * self._dtype.itemsize
        self._count = self._capacity = 0
        self._map: mmap.mmap | None = None
        self._view = np.empty((0, *shape), self._dtype)

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> NDArray:
        """(N, *shape): a view, valid until the next change."""
        return self._view[: self._count]

    def reserve(self, count: int) -> None:
        """Make room for `count` rows in all.

        Raises:
            MemoryError: there is not so much; the column is as it was.
        """
        if count > self._capacity:
            self._resize(max(count, self._capacity + self._capacity // 4, PIECE))

    def append(self, values: NDArray) -> None:
        """Copy rows to the end, as this column's dtype."""
        self.reserve(self._count + len(values))
        self._view[self._count : self._count + len(values)] = values
        self._count += len(values)

    def keep(self, at: NDArray[np.int64]) -> None:
        """Only the rows at these rising positions stay; they move up, and the pages behind them go back."""
        for start in range(0, len(at), PIECE):
            piece = at[start : start + PIECE]
            self._view[start : start + len(piece)] = self._view[piece]
        self._view[len(at) : self._count] = 0  # where the last page is kept, or a view is held
        self._count = len(at)
        self._resize(max(self._count, PIECE))

    def _resize(self, capacity: int) -> None:
        size = max(capacity * self._row, 1)
        self._view = np.empty((0, *self._shape), self._dtype)  # lets go of the map
        try:
            if self._map is None:
                raise BufferError
            self._map.resize(size)
        except (BufferError, SystemError, ValueError):  # nothing yet, a view held outside, or a system without mremap
            self._map = self._copied_map(size)
        except OSError as error:
            self._map_rows(self._capacity)
            raise MemoryError(f"no memory for {size} bytes of a gallery's column") from error
        if size >= HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            with suppress(OSError):  # a kernel without them
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self._map_rows(capacity)

    def _map_rows(self, capacity: int) -> None:
        assert self._map is not None, "made before it is looked at"
        self._capacity = capacity
        self._view = np.frombuffer(self._map, self._dtype, capacity * self._row // self._dtype.itemsize).reshape(
            (capacity, *self._shape)
        )

    def _copied_map(self, size: int) -> mmap.mmap:
        """A new map with the rows of the old one."""
        private = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}
        try:
            fresh = mmap.mmap(-1, size, **private)
        except OSError as error:
            if self._map is not None:
                self._map_rows(self._capacity)
            raise MemoryError(f"no memory for {size} bytes of a gallery's column") from error
        if self._map is not None:
            used = self._count * self._row
            np.frombuffer(fresh, np.uint8)[:used] = np.frombuffer(self._map, np.uint8)[:used]
        return fresh


class CentredCopy:
    """Rows in the centred space of some statistics, in float32 whatever the store's dtype, and their squared norms."""

    def __init__(self, statistics: CameraStatistics) -> None:
        """Empty."""
        self.statistics = statistics
        self.values, self.squares = Column((statistics.dimension,), np.float32), Column((), np.float32)

    def append(self, features: NDArray, cameras: Sequence[str]) -> None:
        """Centre the next rows of the store, raw as they are."""
        centred = self.statistics.centre(features, cameras)
        self.values.append(centred)
        self.squares.append(exact.squared_norms(centred))


class TextColumn:
    """A text of each row, kept as a number: people, cameras and tracks recur."""

    def __init__(self) -> None:
        """Empty."""
        self._column = Column((), np.int32)
        self._texts: list[str] = []
        self._codes: dict[str, int] = {}

    @property
    def codes(self) -> NDArray[np.int32]:
        """(N,): a view, valid until the next change."""
        return self._column.rows

    def code(self, name: str) -> int:
        """The number of a text; −1 where no row has it."""
        return self._codes.get(name, -1)

    def of(self, at: NDArray[np.int64]) -> list[str]:
        """The texts of these rows."""
        return [self._texts[code] for code in self.codes[at].tolist()]

    def append(self, names: Sequence[str]) -> None:
        """The texts of new rows."""
        for name in names:
            if name not in self._codes:
                self._codes[name] = len(self._texts)
                self._texts.append(name)
        self._column.append(np.array([self._codes[name] for name in names], np.int32))

    def keep(self, at: NDArray[np.int64]) -> None:
        """Only these rows stay, and only the texts that they have."""
        self._column.keep(at)
        used, self.codes[:] = np.unique(self.codes, return_inverse=True)
        self._texts = [self._texts[code] for code in used.tolist()]
        self._codes = {name: code for code, name in enumerate(self._texts)}
