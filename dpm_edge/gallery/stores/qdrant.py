"""Rows in a Qdrant server or cluster: one collection a gallery.

The same two-stage search as the embedded store, through qdrant-client. Several processes may write at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError, MissingLibrary
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.stores.candidate_store import Candidates, CandidateStore, candidates_of
from dpm_edge.gallery.stores.store import (
    BATCH,
    INDEXED_NUMBERS,
    INDEXED_TEXTS,
    ServerClient,
    add_all_or_none,
    check_meta,
    payloads_of,
    point_filter,
    rows_of,
)


def connect(url: str, token: str | None) -> Any:
    """A client for a server at `url`; a path instead of a url opens the library's own local mode, for trying out.

    Raises:
        MissingLibrary: qdrant-client is not installed.
        GalleryError: nothing answers.
    """
    try:
        import qdrant_client
    except ImportError as error:
        raise MissingLibrary("qdrant-client", "a gallery at qdrant://", "pip install 'dpm-edge[qdrant]'") from error
    try:
        client = qdrant_client.QdrantClient(url=url, api_key=token, timeout=30, check_compatibility=False)
        client.get_collections()
    except Exception as error:  # the transports raise many kinds
        raise GalleryError(f"expected a Qdrant server at {url}, got {error}. Start it, or check the address") from error
    return ServerClient(client, f"the Qdrant server at {url}")


class QdrantStore(CandidateStore):
    """A collection of a Qdrant server."""

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
    ) -> QdrantStore:
        """A new collection, over so many shards, each kept so many times; the server decides where None.

        Raises:
            GalleryError: a collection of that name is there.
        """
        models = _models()
        if client.collection_exists(collection):
            raise GalleryError(
                f"expected a new collection, got {collection!r}, which is there already. Open it, or take another name"
            )
        vector = models.VectorParams(
            size=meta["dimension"], distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16
        )
        client.create_collection(
            collection,
            vectors_config={"feature": vector, "mask": vector} if meta["masks"] else {"feature": vector},
            shard_number=shards,
            replication_factor=replicas,
            metadata=meta,
        )
        for field in INDEXED_TEXTS:
            client.create_payload_index(collection, field, models.PayloadSchemaType.KEYWORD)
        for field in INDEXED_NUMBERS:
            client.create_payload_index(collection, field, models.PayloadSchemaType.FLOAT)
        return cls(client, collection, meta)

    @classmethod
    def open(cls, client: Any, collection: str) -> QdrantStore:
        """An existing collection.

        Raises:
            GalleryError: it is not there, or is no gallery.
        """
        if not client.collection_exists(collection):
            raise GalleryError(
                f"expected a collection {collection!r}, got none of that name. Create it: dpm-edge gallery create"
            )
        meta = client.get_collection(collection).config.metadata or {}
        return cls(client, collection, check_meta(dict(meta), f"collection {collection!r}"))

    def add(self, rows: Rows) -> None:
        """In steps of BATCH; when a step fails, those before it are taken back."""
        add_all_or_none(rows, self._upsert, self.delete)

    def _upsert(self, rows: Rows) -> None:
        assert rows.features is not None, "the gallery adds whole rows"
        models, labels = _models(), payloads_of(rows)
        features, masks = _halves(rows.features), None if rows.masks is None else _halves(rows.masks)
        made = []
        for i in range(len(rows)):
            vector = {"feature": features[i].tolist()}
            if masks is not None and self.meta["masks"]:
                vector["mask"] = masks[i].tolist()
            made.append(models.PointStruct(id=int(rows.ids[i]), vector=vector, payload=labels[i]))
        self._client.upsert(self._collection, made, wait=True)

    def candidates(
        self, vectors_QD: NDArray[np.float32], count: int, where: Where, *, masks: bool, cameras: bool = False
    ) -> list[Candidates]:
        """One call for all vectors."""
        models, d = _models(), self.meta["dimension"]
        fits = point_filter(where, models)
        answers = self._client.query_batch_points(
            self._collection,
            [
                models.QueryRequest(
                    query=vector.tolist(),
                    using="feature",
                    filter=fits,
                    limit=count,
                    with_vector=["feature", "mask"] if masks else ["feature"],
                    with_payload=["camera"] if cameras else False,
                )
                for vector in vectors_QD
            ],
        )
        return [candidates_of(answer.points, d, masks=masks, cameras=cameras) for answer in answers]

    def get(self, ids: NDArray[np.int64], *, vectors: bool) -> Rows:
        """By id."""
        found = self._client.retrieve(self._collection, [int(i) for i in ids], with_payload=True, with_vectors=vectors)
        return rows_of(found, self.meta["dimension"], vectors=vectors, masks=self.meta["masks"])

    def scan(self, where: Where, *, vectors: bool) -> Iterator[Rows]:
        """By rising id."""
        fits, offset = point_filter(where, _models()), None
        while True:
            found, offset = self._client.scroll(
                self._collection, fits, limit=BATCH, offset=offset, with_payload=True, with_vectors=vectors
            )
            if found:
                yield rows_of(found, self.meta["dimension"], vectors=vectors, masks=self.meta["masks"])
            if offset is None:
                return

    def delete(self, ids: NDArray[np.int64]) -> None:
        """By id."""
        for start in range(0, len(ids), BATCH):
            some = [int(i) for i in ids[start : start + BATCH]]
            self._client.delete(self._collection, _models().PointIdsList(points=some), wait=True)

    def count(self, where: Where) -> int:
        """Exactly."""
        return self._client.count(self._collection, point_filter(where, _models()), exact=True).count

    def write_meta(self, meta: dict[str, Any]) -> None:
        """The collection's own metadata."""
        self._client.update_collection(self._collection, metadata=meta)
        self.meta = meta

    def flush(self) -> None:
        """The server's write-ahead log has every acknowledged row."""

    def compact(self) -> None:
        """The server vacuums by its own settings."""

    def close(self) -> None:
        """Hang up."""
        self._client.close()


def _halves(values: NDArray) -> NDArray[np.float32]:
    """What a half holds of each value: a local mode that keeps float32 answers like a server that keeps float16."""
    return values.astype(np.float16).astype(np.float32)


def _models() -> ModuleType:
    from qdrant_client import models

    return models
