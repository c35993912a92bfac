"""Rows in this process's memory, searched exactly.

N rows · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.search import exact, on_gpu
from dpm_edge.gallery.search.query import Query
from dpm_edge.gallery.stores.columns import Column, Names
from dpm_edge.gallery.stores.positions import Positions
from dpm_edge.gallery.stores.store import BATCH, Store

NAMES = ("people", "tracks", "cameras")
TEXTS = (*NAMES, "sources", "payloads")


class MemoryStore(Store):
    """Columns that grow where they are; texts that recur are kept once."""

    def __init__(self, meta: dict[str, Any], dtype: str, device: str = "cpu") -> None:
        """An empty store that keeps features and masks as `dtype`: float32, float16 or int8.

        device: "cuda" searches a copy of them on a GPU, which follows at the next search after a change.

        Raises:
            GalleryError: there is no such device.
            MissingLibrary: torch or Triton is wanted for it and not installed.
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
        self._names = {name: Names() for name in NAMES}
        self._lists: dict[str, list[Any]] = {"sources": [], "payloads": []}
        self._positions = Positions()
        self._there = None if device == "cpu" else on_gpu.resident(device)

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
        for name, names in self._names.items():
            names.append(getattr(rows, name))
        for name, kept in self._lists.items():  # most rows have no payload: None
            kept += [one or None for one in getattr(rows, name)]

    def search(self, query: Query) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Exact over every row."""
        ids = self.column("ids")
        own = None
        if query.own_cameras is not None:
            own = np.array([self._names["cameras"].code(one) if one else -1 for one in query.own_cameras], np.int32)
        vectors = exact.Vectors(
            self.column("features"), self.column("masks") if self.meta["masks"] else None, self.column("squares")
        )
        search = exact.top_k
        if self._there is not None:
            self._there.follow(vectors.values, vectors.masks)
            search = partial(on_gpu.top_k, there=self._there)
        rows, s = search(
            query.features,
            vectors,
            k=query.k,
            metric=query.metric,
            query_masks=query.masks,
            hidden=None if query.where.everything else ~self._fits(query.where),
            group=None if own is None else self._names["cameras"].codes,
            own=own,
            names=ids,
        )
        return np.where(rows >= 0, ids[rows] if len(ids) else -1, -1), s

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
        for names in self._names.values():
            names.keep(keep)
        self._lists = {name: [kept[i] for i in keep] for name, kept in self._lists.items()}
        self._positions = Positions()
        if self._there is not None:
            self._there.clear()

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
        """Nothing to do."""

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
        camera, person = self._names["cameras"], self._names["people"]
        coded = Where(
            cameras=None if where.cameras is None else tuple(camera.code(c) for c in where.cameras),  # type: ignore[misc]
            not_camera=None if where.not_camera is None else camera.code(where.not_camera),  # type: ignore[arg-type]
            since=where.since,
            until=where.until,
            min_visibility=where.min_visibility,
            people=None if where.people is None else tuple(person.code(p) for p in where.people),  # type: ignore[misc]
        )
        return coded.holds(
            cameras=camera.codes,
            timestamps=self.column("timestamps"),
            visibility=self.column("visibility"),
            people=person.codes,
        )

    def _texts_at(self, name: str, at: NDArray[np.int64]) -> list[Any]:
        return self._names[name].of(at) if name in self._names else [self._lists[name][i] for i in at]

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
