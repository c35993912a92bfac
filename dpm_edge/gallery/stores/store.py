"""What every store of gallery rows can do.

Q queries · N rows · D feature dimensions · k places
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.search.query import Query, embedded
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.frames import FrameQueries

FORMAT = 1
"""Version of the schema: a store of a newer one is refused."""
BATCH = 1000
"""Rows that one scan step or one call to a server carries."""

SITE = "site_statistics"
"""Key of a store's description under which statistics of a site's cameras lie; they count beside those of its rows."""

INDEXED_TEXTS = ("person", "camera")
INDEXED_NUMBERS = ("time", "visibility")
"""Payload fields that filters use, and which are indexed."""


class Store(ABC):
    """Rows on some medium. Not safe for two threads at once, unless the store says so: the gallery holds a lock."""

    meta: dict[str, Any]
    """fingerprint, dimension, masks (bool), format, and what the gallery keeps beside; JSON."""
    place: str = ""
    """The GPU that the rows lie on, "cuda:0"; "" elsewhere."""
    one_writer = True
    """Nobody else adds rows meanwhile."""
    keeps_statistics = False
    """Whether camera statistics have a place beside the rows."""
    read_only: str | None = None
    """Why rows can only be read, for people; None: they can be changed."""

    @abstractmethod
    def add(self, rows: Rows) -> None:
        """All rows, or none when it raises. Their ids are not there yet."""

    @abstractmethod
    def search(self, query: Query) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Ids (Q, k) and similarities (Q, k), best first, equal ones by id; −1 and −inf where nothing is left."""

    def embed(self, queries: FrameQueries, query: Query) -> tuple[Embeddings, Query]:
        """Let the engine that `queries` come from embed them; a store on its GPU lets it search, too."""
        return embedded(queries, query)

    @abstractmethod
    def get(self, ids: NDArray[np.int64], *, vectors: bool) -> Rows:
        """Those of the ids that are there, in any order."""

    def taken(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the ids that rows have."""
        return self.get(ids, vectors=False).ids

    @abstractmethod
    def scan(self, where: Where, *, vectors: bool) -> Iterator[Rows]:
        """Every row that fits, by rising id, some at a time. Do not change the store meanwhile."""

    @abstractmethod
    def delete(self, ids: NDArray[np.int64]) -> None:
        """Remove rows; ids that are not there do not matter."""

    @abstractmethod
    def count(self, where: Where) -> int:
        """Rows that fit."""

    @abstractmethod
    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replace `meta`, durably."""

    @abstractmethod
    def flush(self) -> None:
        """Whatever was acknowledged is on the disk's platter when this returns."""

    def as_kept(self, features_ND: NDArray) -> NDArray:
        """What `get` gives back of features (N, D) that `add` is given."""
        return features_ND.astype(np.float16).astype(np.float32)

    def load_statistics(self) -> CameraStatistics | None:
        """What `save_statistics` kept, where it is of exactly the rows of now; None: read the rows."""
        return None

    def save_statistics(self, statistics: CameraStatistics) -> None:
        """Keep statistics of the flushed rows beside them, where the medium has a place for that."""
        return

    def remove_statistics(self) -> None:
        """What was kept is gone, durably, when this returns."""
        return

    @abstractmethod
    def compact(self) -> None:
        """Deleted rows leave the medium, as far as this process decides it."""

    @abstractmethod
    def close(self) -> None:
        """Flush and let go."""

    def snapshot(self, folder: Path) -> None:
        """A copy of now that opens as a gallery of its own.

        Raises:
            GalleryError: the medium's own tools do that.
        """
        raise GalleryError(
            f"expected a gallery in a folder to take a snapshot of, got a {type(self).__name__}. Use the server's "
            f"backup, or `export` to a parquet file"
        )


class ServerClient:
    """A server's client whose errors, of whatever kind, are GalleryErrors that name the server."""

    def __init__(self, client: Any, server: str) -> None:
        """Around the library's client; server: its kind and address, for people."""
        self._client, self._server = client, server

    def __getattr__(self, name: str) -> Any:
        """The client's own method, its errors translated."""
        method = getattr(self._client, name)
        if not callable(method):
            return method

        def call(*arguments: Any, **options: Any) -> Any:
            try:
                return method(*arguments, **options)
            except Exception as error:  # the transports raise many kinds
                first = (str(error).splitlines() or [type(error).__name__])[0]
                raise GalleryError(
                    f"expected {self._server} to {name.replace('_', ' ')}, got {first}. Check that it runs and may be "
                    f"reached, then try again"
                ) from error

        return call


def add_all_or_none(rows: Rows, put: Callable[[Rows], None], take_back: Callable[[NDArray[np.int64]], None]) -> None:
    """Give a server BATCH rows at a time; when a step fails, those before it are taken back.

    Raises:
        GalleryError: the server refused; the message says whether it kept some.
    """
    try:
        for start in range(0, len(rows), BATCH):
            put(rows.take(np.arange(start, min(start + BATCH, len(rows)))))
    except Exception as error:  # the transports raise many kinds
        try:
            take_back(rows.ids)
        except Exception as second:
            raise GalleryError(f"some of {len(rows)} rows may have been added ({error}; then {second})") from error
        raise GalleryError(f"expected the server to take {len(rows)} rows, got {error}; none was added") from error


def check_meta(meta: dict[str, Any], place: str) -> dict[str, Any]:
    """What a store's own description says, when it is a gallery's.

    Raises:
        GalleryError: it is something else, or of a newer version.
    """
    if meta.get("kind") != "dpm-edge gallery":
        raise GalleryError(f"expected a gallery of dpm-edge, got {place}. Create one: dpm-edge gallery create")
    if not isinstance(meta.get("format", 0), int) or meta.get("format", 0) > FORMAT:
        raise GalleryError(
            f"expected a gallery of format {FORMAT} or older, got {place} of format {meta['format']}. Upgrade dpm-edge"
        )
    missing = [key for key in ("fingerprint", "dimension", "masks") if key not in meta]
    if missing:
        raise GalleryError(f"expected {', '.join(missing)} in the description of {place}, got none. Restore a snapshot")
    return meta


def check_model(meta: dict[str, Any], fingerprint: str, dimension: int) -> None:
    """Refuse embeddings of another model than the gallery's, whose features mean something else.

    Raises:
        GalleryError: they are another model's.
    """
    if fingerprint != meta["fingerprint"]:
        raise GalleryError(
            f"expected embeddings of this gallery's model {meta['fingerprint'][:12]}, got those of model "
            f"{fingerprint[:12]}. Embed with the engine that the gallery was filled with, or move the gallery to the "
            f"new model: dpm-edge gallery migrate"
        )
    if dimension != meta["dimension"]:
        raise GalleryError(f"expected embeddings of {meta['dimension']} dimensions, got {dimension}")


def new_meta(fingerprint: str, dimension: int, masks: bool) -> dict[str, Any]:
    """The description of a new gallery."""
    return {
        "kind": "dpm-edge gallery",
        "format": FORMAT,
        "fingerprint": fingerprint,
        "dimension": dimension,
        "masks": masks,
    }


def payloads_of(rows: Rows) -> list[dict[str, Any]]:
    """Labels as JSON. What is unknown is left out; the owner's payload is one text, so that it is never parsed."""
    assert rows.visibility is not None, "rows on their way to a store have a number each"
    made: list[dict[str, Any]] = [
        {"person": person, "camera": camera, "visibility": visibility}
        for person, camera, visibility in zip(rows.people, rows.cameras, rows.visibility.tolist())
    ]
    for name, texts in (("track", rows.tracks), ("source", rows.sources)):
        for i, text in enumerate(texts):
            if text:
                made[i][name] = text
    for i in np.flatnonzero(~np.isnan(rows.timestamps)).tolist():
        made[i]["time"] = float(rows.timestamps[i])
    for i in np.flatnonzero(~np.isnan(rows.boxes).any(axis=1)).tolist():
        made[i]["box"] = rows.boxes[i].tolist()
    for i, payload in enumerate(rows.payloads):
        if payload:
            made[i]["payload"] = json.dumps(payload, ensure_ascii=False)
    return made


def rows_of(points: list[Any], dimension: int, *, vectors: bool, masks: bool) -> Rows:
    """Points (id, payload, vector) as rows."""
    labels = [point.payload or {} for point in points]
    return Rows(
        ids=np.array([point.id for point in points], np.int64),
        features=vectors_of(points, "feature", dimension) if vectors else None,
        masks=vectors_of(points, "mask", dimension) if vectors and masks else None,
        people=[one.get("person", "") for one in labels],
        tracks=[one.get("track", "") for one in labels],
        cameras=[one.get("camera", "") for one in labels],
        timestamps=np.array([one.get("time", np.nan) for one in labels], np.float64),
        visibility=np.array([one.get("visibility", np.nan) for one in labels], np.float32),
        boxes=np.array([one.get("box", [np.nan] * 4) for one in labels], np.float32).reshape(-1, 4),
        sources=[one.get("source", "") for one in labels],
        payloads=[json.loads(one["payload"]) if "payload" in one else {} for one in labels],
    )


def vectors_of(points: list[Any], name: str, dimension: int) -> NDArray[np.float32]:
    """(N, D) float32 out of points' named vectors."""
    return np.array([point.vector[name] for point in points], np.float32).reshape(-1, dimension)


def point_filter(where: Where, models: Any) -> Any:
    """A filter in the classes of `models` (qdrant_edge or qdrant_client.models); None where everything fits."""
    if where.everything:
        return None
    ranged = getattr(models, "RangeFloat", None) or models.Range
    must = []
    if where.cameras is not None:
        must.append(models.FieldCondition(key="camera", match=models.MatchAny(any=list(where.cameras))))
    if where.people is not None:
        must.append(models.FieldCondition(key="person", match=models.MatchAny(any=list(where.people))))
    if where.since is not None or where.until is not None:
        must.append(models.FieldCondition(key="time", range=ranged(gte=where.since, lt=where.until)))
    if where.min_visibility is not None:
        least = float(np.float32(where.min_visibility))
        must.append(models.FieldCondition(key="visibility", range=ranged(gte=least)))
    hidden = []
    if where.not_camera is not None:
        hidden.append(models.FieldCondition(key="camera", match=models.MatchValue(value=where.not_camera)))
    if where.outside:
        hidden.append(models.FieldCondition(key="camera", match=models.MatchAny(any=list(where.outside))))
    return models.Filter(must=must or None, must_not=hidden or None)
