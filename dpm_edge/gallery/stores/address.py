"""Where a gallery is, as one text: a folder, milvus://host:port/collection or qdrant://host:port/collection."""

from __future__ import annotations

import re
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
    kind, url, collection, options = _server(str(place))
    settings = {name: _count(str(place), name, options[name]) for name in ("shards", "replicas") if name in options}
    if kind == "milvus":
        from dpm_edge.gallery.stores import milvus

        return milvus.MilvusStore.create(milvus.connect(url, options.get("token")), collection, meta, **settings)
    from dpm_edge.gallery.stores import qdrant

    return qdrant.QdrantStore.create(qdrant.connect(url, options.get("token")), collection, meta, **settings)


def open_store(place: str | Path, *, read_only: bool = False) -> Store:
    """An existing store; read_only: changes are refused, and of a folder a copy of this moment is opened.

    Raises:
        GalleryInUse: another process holds the folder.
        GalleryError: it is not there, is damaged, or does not answer.
        MissingLibrary: its client is not installed.
    """
    if "://" not in str(place):
        from dpm_edge.gallery.stores.qdrant_edge import EdgeStore

        return EdgeStore.open(Path(place), read_only=read_only)
    kind, url, collection, options = _server(str(place))
    store: Store
    if kind == "milvus":
        from dpm_edge.gallery.stores import milvus

        store = milvus.MilvusStore.open(milvus.connect(url, options.get("token")), collection)
    else:
        from dpm_edge.gallery.stores import qdrant

        store = qdrant.QdrantStore.open(qdrant.connect(url, options.get("token")), collection)
    store.read_only = "it was opened with read_only=True" if read_only else None
    return store


def is_there(place: str | Path) -> bool:
    """Whether something is at a place already.

    Raises:
        GalleryError: the place is not understood or does not answer.
        MissingLibrary: its client is not installed.
    """
    if "://" not in str(place):
        folder = Path(place)
        return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    kind, url, collection, options = _server(str(place))
    if kind == "milvus":
        from dpm_edge.gallery.stores import milvus

        return bool(milvus.connect(url, options.get("token")).has_collection(collection))
    from dpm_edge.gallery.stores import qdrant

    return bool(qdrant.connect(url, options.get("token")).collection_exists(collection))


def _server(place: str) -> tuple[str, str, str, dict[str, str]]:
    """Kind, address, collection and settings of a server's place."""
    try:
        parts = urlsplit(place)
        port, host = parts.port, parts.hostname
    except ValueError as error:
        raise _not_understood(place, f": {error}") from error
    options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
    unknown = set(options) - {"shards", "replicas", "token", "tls"}
    collection = parts.path.strip("/")
    if parts.scheme not in PORTS or not host or not collection or "/" in collection or unknown:
        raise _not_understood(place, f", where {', '.join(sorted(unknown))} is unknown" if unknown else "")
    scheme = "https" if options.get("tls") == "1" else "http"
    host = f"[{host}]" if ":" in host else host
    return parts.scheme, f"{scheme}://{host}:{port or PORTS[parts.scheme]}", collection, options


def _count(place: str, name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 10_000:
        raise _not_understood(place, f", where {name} is {text!r}, not a whole number of 1 or more")
    return int(text)


def _not_understood(place: str, why: str) -> GalleryError:
    shown = re.sub(r"token=[^&]*", "token=…", place)
    return GalleryError(
        f"expected a folder, milvus://HOST:PORT/COLLECTION or qdrant://HOST:PORT/COLLECTION, with ?shards=, "
        f"?replicas=, ?token= or ?tls=1, got {shown!r}{why}"
    )
