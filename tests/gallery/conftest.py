"""Galleries over every store. Milvus: a real standalone server in an environment of its own, or DPM_MILVUS_URL."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from dpm_edge import Gallery
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.stores import milvus, qdrant, qdrant_edge
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import new_meta

Spare = dict[tuple[int, bool], list[milvus.MilvusStore]]


@pytest.fixture(scope="session")
def spare_collections() -> Iterator[Spare]:
    """Collections that no test uses now, by dimension and masks: making and loading one takes the server 3 seconds."""
    spare: Spare = {}
    yield spare
    if "DPM_MILVUS_URL" not in os.environ:
        return  # the server goes with them
    for store in [one for several in spare.values() for one in several]:
        store._client.drop_collection(store._collection)


class Make:
    """Makes empty galleries over one kind of store."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        """The kind is the request's parameter."""
        self.kind, self._request, self._folder = request.param, request, folder
        self._open: list[Gallery] = []

    def __call__(self, dimension: int = 12, masks: bool = True, fingerprint: str = "f") -> Gallery:
        """One more; it is given back when the test ends."""
        name, meta = f"g{uuid.uuid4().hex}", new_meta(fingerprint, dimension, masks)
        if self.kind == "memory":
            gallery = Gallery("f", dimension, store=MemoryStore(meta, "float16"))
        elif self.kind == "edge":
            gallery = Gallery.create(self._folder / name, fingerprint, dimension, masks=masks)
        elif self.kind == "qdrant":
            url = os.environ.get("DPM_QDRANT_URL")
            client = qdrant.connect(url, None) if url else QdrantClient(":memory:")
            gallery = Gallery("f", dimension, store=qdrant.QdrantStore.create(client, name, meta))
        else:
            gallery = Gallery("f", dimension, store=self._milvus(name, meta))
        self._open.append(gallery)
        return gallery

    def give_back(self, gallery: Gallery) -> None:
        """A test is done with it."""
        self._open.remove(gallery)
        if isinstance(gallery.store, milvus.MilvusStore):
            self._spare(gallery.store.meta).append(gallery.store)
        elif not (isinstance(gallery.store, qdrant_edge.EdgeStore) and closed(gallery)):
            gallery.close()

    def give_all_back(self) -> None:
        """The test is over."""
        for gallery in list(self._open):
            self.give_back(gallery)

    def _spare(self, meta: dict) -> list[milvus.MilvusStore]:
        spare: Spare = self._request.getfixturevalue("spare_collections")
        return spare.setdefault((meta["dimension"], meta["masks"]), [])

    def _milvus(self, name: str, meta: dict) -> milvus.MilvusStore:
        url, spare = self._request.getfixturevalue("milvus_url"), self._spare(meta)
        if not spare:
            return milvus.MilvusStore.create(milvus.connect(url, None), name, meta)
        store = spare.pop()
        store.write_meta(meta)
        for rows in list(store.scan(Where(), vectors=False)):
            store.delete(rows.ids)
        return store


MILVUS = pytest.param("milvus", marks=pytest.mark.slow)
"""Its server takes a while to install, start and answer; all its tests share one, in one worker (tests/conftest.py)."""


@pytest.fixture(params=["memory", "edge", "qdrant", MILVUS])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes empty galleries over each kind of store in turn."""
    maker = Make(request, tmp_path)
    yield maker
    maker.give_all_back()


def closed(gallery: Gallery) -> bool:
    """Whether a folder's gallery was closed by its test."""
    return not (gallery.store.folder / qdrant_edge.WRITER).exists()
