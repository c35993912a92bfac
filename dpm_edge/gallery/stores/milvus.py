"""Rows in a Milvus server or cluster: one collection a gallery.

Servers from 2.3 on: features are float vectors that hold halves' values, masks are text (halves in base64), since 2.3
takes one vector field a collection. Several processes may write at once.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError, MissingLibrary
from dpm_edge.gallery.rows import NAME_BYTES, PAYLOAD_BYTES, SOURCE_BYTES, Rows, Where
from dpm_edge.gallery.stores.candidate_store import Candidates, CandidateStore, candidates_of
from dpm_edge.gallery.stores.store import (
    BATCH,
    ServerClient,
    add_all_or_none,
    check_meta,
    payloads_of,
    rows_of,
)

UNKNOWN = -1e300
"""A time or box edge that nobody knows: Milvus has no empty fields in 2.3."""
META = "dpm_edge"
"""The collection's property that holds the gallery's description."""
EMPTY = {"track": "", "source": "", "time": UNKNOWN, "box": "", "payload": ""}
"""What stands for a label that a point of Qdrant would not have."""
LABELS = ["id", "person", "track", "camera", "time", "visibility", "box", "source", "payload"]


def connect(url: str, token: str | None) -> Any:
    """A client for a server at `url` (http://host:19530).

    Raises:
        MissingLibrary: pymilvus is not installed.
        GalleryError: nothing answers.
    """
    try:
        import pymilvus
    except ImportError as error:
        raise MissingLibrary("pymilvus", "a gallery at milvus://", "pip install 'dpm-edge[milvus]'") from error
    try:
        client = pymilvus.MilvusClient(uri=url, token=token or "", timeout=30)
    except Exception as error:  # of the transport, the name service and the library itself
        raise GalleryError(f"expected a Milvus server at {url}, got {error}. Start it, or check the address") from error
    return ServerClient(client, f"the Milvus server at {url}")


class MilvusStore(CandidateStore):
    """A collection of a Milvus server, searched with its index FLAT: every row's inner product."""

    most_candidates = 16384

    one_writer = False

    def __init__(self, client: Any, collection: str, meta: dict[str, Any]) -> None:
        """See `create` and `open`."""
        self._client, self._collection, self.meta = client, collection, meta

    @classmethod
    def create(
        cls,
        client: Any,
        collection: str,
        meta: dict[str, Any],
        *,
        shards: int | None = None,
        replicas: int | None = None,
    ) -> MilvusStore:
        """A new collection, written by so many shards, loaded by so many query nodes.

        Raises:
            GalleryError: a collection of that name is there.
        """
        from pymilvus import DataType

        if client.has_collection(collection):
            raise GalleryError(
                f"expected a new collection, got {collection!r}, which is there already. Open it, or take another name"
            )
        schema = client.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        schema.add_field("feature", DataType.FLOAT_VECTOR, dim=meta["dimension"])
        texts = {"person": NAME_BYTES, "track": NAME_BYTES, "camera": NAME_BYTES, "source": SOURCE_BYTES}
        texts |= {"payload": PAYLOAD_BYTES, "box": 128}
        if meta["masks"]:
            texts["mask"] = 4 * math.ceil(2 * meta["dimension"] / 3)
        for name, length in texts.items():
            schema.add_field(name, DataType.VARCHAR, max_length=length)
        schema.add_field("time", DataType.DOUBLE)
        schema.add_field("visibility", DataType.FLOAT)
        index = client.prepare_index_params()
        index.add_index("feature", index_type="FLAT", metric_type="IP")
        client.create_collection(collection, schema=schema, consistency_level="Strong", num_shards=shards or 1)
        client.alter_collection_properties(collection, {META: json.dumps(meta)})
        client.create_index(collection, index)
        client.load_collection(collection, replica_number=replicas or 1)
        return cls(client, collection, meta)

    @classmethod
    def open(cls, client: Any, collection: str) -> MilvusStore:
        """An existing collection.

        Raises:
            GalleryError: it is not there, or is no gallery.
        """
        if not client.has_collection(collection):
            raise GalleryError(
                f"expected a collection {collection!r}, got none of that name. Create it: dpm-edge gallery create"
            )
        properties = client.describe_collection(collection).get("properties") or {}
        meta = json.loads(properties.get(META, "{}"))
        client.load_collection(collection)
        return cls(client, collection, check_meta(meta, f"collection {collection!r}"))

    def add(self, rows: Rows) -> None:
        """In steps of BATCH; when a step fails, those before it are taken back."""
        add_all_or_none(rows, self._insert, self.delete)

    def _insert(self, rows: Rows) -> None:
        assert rows.features is not None, "the gallery adds whole rows"
        features = rows.features.astype(np.float16).astype(np.float32)
        made = []
        for i, labels in enumerate(payloads_of(rows)):
            if "box" in labels:
                labels["box"] = json.dumps(labels["box"])
            one = {**EMPTY, **labels, "id": int(rows.ids[i]), "feature": features[i].tolist()}
            if self.meta["masks"]:
                assert rows.masks is not None, "the gallery adds masks where they are kept"
                one["mask"] = base64.b64encode(rows.masks[i].astype("<f2").tobytes()).decode()
            made.append(one)
        self._client.insert(self._collection, made)

    def candidates(
        self, vectors_QD: NDArray[np.float32], count: int, where: Where, *, masks: bool, cameras: bool = False
    ) -> list[Candidates]:
        """One call for all vectors, of at most 16,384 candidates each."""
        answers = self._client.search(
            self._collection,
            [vector.tolist() for vector in vectors_QD],
            anns_field="feature",
            limit=min(count, self.most_candidates),
            filter=_expression(where),
            output_fields=["feature", *(["mask"] if masks else []), *(["camera"] if cameras else [])],
            consistency_level="Strong",
        )
        d = self.meta["dimension"]
        found = [[_point(hit["entity"] | {"id": hit["id"]}) for hit in some] for some in answers]
        return [candidates_of(some, d, masks=masks, cameras=cameras) for some in found]

    def get(self, ids: NDArray[np.int64], *, vectors: bool) -> Rows:
        """By id."""
        if not len(ids):
            return self._rows([], vectors)
        found = self._client.get(self._collection, [int(i) for i in ids], output_fields=self._fields(vectors))
        return self._rows(list(found), vectors)

    def scan(self, where: Where, *, vectors: bool) -> Iterator[Rows]:
        """By rising id."""
        pages = ServerClient(
            self._client.query_iterator(
                self._collection, filter=_expression(where), batch_size=BATCH, output_fields=self._fields(vectors)
            ),
            "the Milvus server",
        )
        try:
            while found := pages.next():
                yield self._rows(found, vectors)
        finally:
            pages.close()

    def delete(self, ids: NDArray[np.int64]) -> None:
        """By id."""
        for start in range(0, len(ids), BATCH):
            self._client.delete(self._collection, ids=[int(i) for i in ids[start : start + BATCH]])

    def count(self, where: Where) -> int:
        """Exactly."""
        found = self._client.query(
            self._collection, filter=_expression(where), output_fields=["count(*)"], consistency_level="Strong"
        )
        return int(found[0]["count(*)"])

    def write_meta(self, meta: dict[str, Any]) -> None:
        """The collection's property."""
        self._client.alter_collection_properties(self._collection, {META: json.dumps(meta)})
        self.meta = meta

    def flush(self) -> None:
        """Seal what is growing into segments on the server's object store."""
        self._client.flush(self._collection)

    def compact(self) -> None:
        """Ask for it; the server's garbage collection takes the files later (dataCoord.gc settings)."""
        self._client.flush(self._collection)
        self._client.compact(self._collection)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def _fields(self, vectors: bool) -> list[str]:
        return LABELS + (["feature"] + ["mask"] * bool(self.meta["masks"]) if vectors else [])

    def _rows(self, found: list[dict[str, Any]], vectors: bool) -> Rows:
        made = [_point(one) for one in found]
        return rows_of(made, self.meta["dimension"], vectors=vectors, masks=self.meta["masks"])


def _point(one: dict[str, Any]) -> SimpleNamespace:
    """A row of Milvus in the shape of a point of Qdrant: id, payload without what is unknown, vectors."""
    labels = {key: value for key, value in one.items() if key in LABELS and value != EMPTY.get(key)}
    if "box" in labels:
        labels["box"] = json.loads(labels["box"])
    vector = {"feature": one.get("feature")}
    if "mask" in one:
        vector["mask"] = np.frombuffer(base64.b64decode(one["mask"]), "<f2")
    return SimpleNamespace(id=one["id"], payload=labels, vector=vector)


def _expression(where: Where) -> str:
    """A filter in Milvus' language. JSON's quoting of text is its quoting too."""
    parts = []
    if where.cameras is not None:
        parts.append(f"camera in {json.dumps(list(where.cameras), ensure_ascii=False)}")
    if where.not_camera is not None:
        parts.append(f"camera != {json.dumps(where.not_camera, ensure_ascii=False)}")
    if where.outside:
        parts.append(f"camera not in {json.dumps(list(where.outside), ensure_ascii=False)}")
    if where.people is not None:
        parts.append(f"person in {json.dumps(list(where.people), ensure_ascii=False)}")
    if where.since is not None:
        parts.append(f"time >= {float(where.since)!r}")
    if where.until is not None:
        parts.append(f"time < {float(where.until)!r}")
    if where.since is not None or where.until is not None:
        parts.append(f"time > {UNKNOWN / 2!r}")
    if where.min_visibility is not None:
        parts.append(f"visibility >= {float(np.float32(where.min_visibility))!r}")
    return " and ".join(parts)
