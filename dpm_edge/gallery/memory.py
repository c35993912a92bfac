"""Rows in this process's memory, searched exactly.

N rows · D feature dimensions
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import fields
from sys import intern
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery import exact
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.store import BATCH, Asked, Store

TEXTS = ("people", "tracks", "cameras", "sources", "payloads")


class MemoryStore(Store):
    """Columns that grow by doubling: memory that no row has touched yet costs nothing."""

    def __init__(self, meta: dict[str, Any], dtype: str) -> None:
        """An empty store that keeps features and masks as `dtype`: float32, float16 or int8."""
        self.meta = meta
        self.dtype = np.dtype(dtype)
        self._n = 0
        d = meta["dimension"]
        self._columns: dict[str, NDArray] = {
            "ids": np.empty(0, np.int64),
            "features": np.empty((0, d), self.dtype),
            "masks": np.empty((0, d if meta["masks"] else 0), self.dtype),
            "squares": np.empty(0, np.float32),
            "timestamps": np.empty(0, np.float64),
            "visibility": np.empty(0, np.float32),
            "boxes": np.empty((0, 4), np.float32),
            "camera": np.empty(0, np.int32),
            "person": np.empty(0, np.int32),
        }
        self._texts: dict[str, list[Any]] = {name: [] for name in TEXTS}
        self._codes: dict[str, dict[str, int]] = {"camera": {}, "person": {}}
        self._places: dict[int, int] | None = None

    def column(self, name: str) -> NDArray:
        """A view of what is stored, such as features, masks, ids, timestamps; valid until the next change."""
        return self._columns[name][: self._n]

    def texts(self, name: str) -> list[Any]:
        """People, tracks, cameras, sources or payloads (None where there is none) of all rows."""
        return self._texts[name]

    def add(self, rows: Rows) -> None:
        """Copied to the end."""
        assert rows.features is not None, "the gallery adds whole rows"
        features = self._stored(rows.features, unit=False)
        new = {
            "ids": rows.ids,
            "features": features,
            "masks": self._stored(rows.masks, unit=True) if self.meta["masks"] else np.empty((len(rows), 0)),
            "squares": exact.squared_norms(features),
            "timestamps": rows.timestamps,
            "visibility": rows.visibility,
            "boxes": rows.boxes,
            "camera": self._code("camera", rows.cameras),
            "person": self._code("person", rows.people),
        }
        stop = self._n + len(rows)
        for name, column in self._columns.items():
            if stop > len(column):
                grown = _room((max(stop, 2 * len(column), 256), *column.shape[1:]), column.dtype)
                grown[: self._n] = column[: self._n]
                self._columns[name] = grown
            self._columns[name][self._n : stop] = new[name]
        for name in TEXTS:  # people and cameras recur: one text each; most rows have no payload: None
            self._texts[name] += [
                intern(text) if isinstance(text, str) else text or None for text in getattr(rows, name)
            ]
        self._n, self._places = stop, None

    def search(self, asked: Asked) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Exact over every row."""
        ids = self.column("ids")
        own = None
        if asked.own_cameras is not None:
            own = np.array([self._codes["camera"].get(camera, -1) for camera in asked.own_cameras], np.int32)
        vectors = exact.Vectors(
            self.column("features"), self.column("masks") if self.meta["masks"] else None, self.column("squares")
        )
        rows, s = exact.top_k(
            asked.features,
            vectors,
            asked.k,
            metric=asked.metric,
            query_masks=asked.masks,
            hidden=None if asked.where.everything else ~self._fits(asked.where),
            group=None if own is None else self.column("camera"),
            own=own,
            names=ids,
        )
        return np.where(rows >= 0, ids[rows] if len(ids) else -1, -1), s

    def get(self, ids: NDArray[np.int64], *, vectors: bool) -> Rows:
        """By position."""
        if self._places is None:
            self._places = {int(name): at for at, name in enumerate(self.column("ids"))}
        at = [self._places[int(name)] for name in ids if int(name) in self._places]
        return self._rows(np.array(at, np.int64), vectors)

    def scan(self, where: Where, *, vectors: bool) -> Iterator[Rows]:
        """By rising id."""
        at = np.flatnonzero(self._fits(where))
        at = at[np.argsort(self.column("ids")[at], kind="stable")]
        for start in range(0, len(at), BATCH):
            yield self._rows(at[start : start + BATCH], vectors)

    def delete(self, ids: NDArray[np.int64]) -> None:
        """The rows behind move up, so that nothing of a deleted row stays in a column."""
        keep = np.flatnonzero(~np.isin(self.column("ids"), ids))
        if len(keep) == self._n:
            return
        for name, column in self._columns.items():
            shrunk = _room((len(keep), *column.shape[1:]), column.dtype)
            np.take(column[: self._n], keep, axis=0, out=shrunk)
            self._columns[name] = shrunk
        self._texts = {name: [texts[i] for i in keep] for name, texts in self._texts.items()}
        self._n, self._places = len(keep), None
        self._codes = {"camera": {}, "person": {}}  # a name that no row bears is not kept either
        self._columns["camera"][:] = self._code("camera", self._texts["cameras"])
        self._columns["person"][:] = self._code("person", self._texts["people"])

    def count(self, where: Where) -> int:
        """Rows that fit."""
        return self._n if where.everything else int(self._fits(where).sum())

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Kept until `save`."""
        self.meta = meta

    def flush(self) -> None:
        """Nothing to do."""

    def compact(self) -> None:
        """Nothing to do: `delete` did."""

    def close(self) -> None:
        """Nothing to do."""

    def _stored(self, values: NDArray | None, *, unit: bool) -> NDArray:
        """Values as this store keeps them; int8 codes per row, or in 127ths for values in 0..1."""
        assert values is not None, "the gallery gives masks where they are kept"
        if self.dtype != np.int8:
            return values.astype(self.dtype)
        return np.rint(values * 127).astype(np.int8) if unit else exact.quantise(values)[0]

    def _read(self, values: NDArray, *, unit: bool) -> NDArray:
        """Stored values as floats; codes come back normalised, since their scale does not matter."""
        if values.dtype != np.int8:
            return values
        whole = values.astype(np.float32)
        return whole / 127 if unit else whole / np.maximum(np.linalg.norm(whole, axis=1, keepdims=True), 1e-12)

    def _code(self, what: str, names: list[str]) -> NDArray[np.int32]:
        codes = self._codes[what]
        return np.array([codes.setdefault(name, len(codes)) for name in names], np.int32)

    def _fits(self, where: Where) -> NDArray[np.bool_]:
        camera, person = self._codes["camera"], self._codes["person"]
        coded = Where(
            cameras=None if where.cameras is None else tuple(camera.get(c, -1) for c in where.cameras),  # type: ignore[misc]
            not_camera=None if where.not_camera is None else camera.get(where.not_camera, -1),  # type: ignore[arg-type]
            since=where.since,
            until=where.until,
            min_visibility=where.min_visibility,
            people=None if where.people is None else tuple(person.get(p, -1) for p in where.people),  # type: ignore[misc]
        )
        return coded.holds(
            cameras=self.column("camera"),
            timestamps=self.column("timestamps"),
            visibility=self.column("visibility"),
            people=self.column("person"),
        )

    def _rows(self, at: NDArray[np.int64], vectors: bool) -> Rows:
        picked: dict[str, Any] = {name: [texts[i] for i in at] for name, texts in self._texts.items()}
        picked["payloads"] = [one or {} for one in picked["payloads"]]
        for field in fields(Rows):
            if field.name in self._columns and field.name not in ("features", "masks"):
                picked[field.name] = self.column(field.name)[at]
        picked["features"] = self._read(self.column("features")[at], unit=False) if vectors else None
        masks = vectors and self.meta["masks"]
        picked["masks"] = self._read(self.column("masks")[at], unit=True) if masks else None
        return Rows(**picked)


def _room(shape: tuple[int, ...], dtype: np.dtype) -> NDArray:
    """An array of any content, in pages of its own: untouched ones cost nothing, freed ones go back to the system."""
    size = int(np.prod(shape)) * dtype.itemsize
    if size < 1 << 20:
        return np.empty(shape, dtype)
    return np.frombuffer(mmap.mmap(-1, size), dtype).reshape(shape)
