"""Where a gallery is, as one text: a folder, milvus://host:port/collection or qdrant://host:port/collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.stores.store import Store

PORTS = {"milvus": 19530, "qdrant": 6333}


def create_store(place: str | Path, meta: dict[str, Any]) -> Store:
    """A new, empty store. A server's address may say ?shards=, ?replicas=, ?token= and ?tls=1.

    Raises:
        GalleryError: the place is taken, is not understood, or does not answer.
        MissingLibrary: its client is not installed.
    """
    if "://" not in str(place):
        from dpm_edge.gallery.stores.qdrant_edge import EdgeStore

        return EdgeStore.create(Path(place), meta)
    kind, url, collection, asked = _server(str(place))
    settings = {name: int(asked[name]) for name in ("shards", "replicas") if name in asked}
    if kind == "milvus":
        from dpm_edge.gallery.stores import milvus

        return milvus.MilvusStore.create(milvus.connect(url, asked.get("token")), collection, meta, **settings)
    from dpm_edge.gallery.stores import qdrant

    return qdrant.QdrantStore.create(qdrant.connect(url, asked.get("token")), collection, meta, **settings)


def open_store(place: str | Path) -> Store:
    """An existing store.

    Raises:
        GalleryError: it is not there, is held by another process, is damaged, or does not answer.
        MissingLibrary: its client is not installed.
    """
    if "://" not in str(place):
        from dpm_edge.gallery.stores.qdrant_edge import EdgeStore

        return EdgeStore.open(Path(place))
    kind, url, collection, asked = _server(str(place))
    if kind == "milvus":
        from dpm_edge.gallery.stores import milvus

        return milvus.MilvusStore.open(milvus.connect(url, asked.get("token")), collection)
    from dpm_edge.gallery.stores import qdrant

    return qdrant.QdrantStore.open(qdrant.connect(url, asked.get("token")), collection)


def is_there(place: str | Path) -> bool:
    """Whether something is at a place already.

    Raises:
        GalleryError: the place is not understood or does not answer.
        MissingLibrary: its client is not installed.
    """
    if "://" not in str(place):
        folder = Path(place)
        return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    kind, url, collection, asked = _server(str(place))
    if kind == "milvus":
        from dpm_edge.gallery.stores import milvus

        return bool(milvus.connect(url, asked.get("token")).has_collection(collection))
    from dpm_edge.gallery.stores import qdrant

    return bool(qdrant.connect(url, asked.get("token")).collection_exists(collection))


def _server(place: str) -> tuple[str, str, str, dict[str, str]]:
    """Kind, address, collection and settings of a server's place."""
    parts = urlsplit(place)
    asked = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    unknown = set(asked) - {"shards", "replicas", "token", "tls"}
    collection = parts.path.strip("/")
    if parts.scheme not in PORTS or not parts.hostname or not collection or "/" in collection or unknown:
        raise GalleryError(
            f"{place!r} is not understood; a folder, milvus://HOST:PORT/COLLECTION or qdrant://HOST:PORT/COLLECTION "
            f"is wanted, with ?shards=, ?replicas=, ?token= or ?tls=1"
        )
    scheme = "https" if asked.get("tls") == "1" else "http"
    return parts.scheme, f"{scheme}://{parts.hostname}:{parts.port or PORTS[parts.scheme]}", collection, asked
