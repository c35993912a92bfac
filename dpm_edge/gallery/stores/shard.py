"""A shard of Qdrant Edge: the library, a new shard, an old one opened, and the room that rows take in it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dpm_edge.errors import GalleryError, GalleryInUse, MissingLibrary
from dpm_edge.gallery.stores.folder import WRITER
from dpm_edge.gallery.stores.store import INDEXED_NUMBERS, INDEXED_TEXTS


def library() -> ModuleType:
    """Import Qdrant Edge.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        import qdrant_edge
    except ImportError as error:
        raise MissingLibrary("qdrant-edge-py", "a gallery in a folder", "pip install 'dpm-edge[qdrant]'") from error
    return qdrant_edge


def new_shard(place: Path, meta: dict[str, Any]) -> Any:
    """An empty shard for a gallery."""
    edge = library()
    place.mkdir(parents=True)
    vector = edge.EdgeVectorParams(
        size=meta["dimension"], distance=edge.Distance.Dot, datatype=edge.VectorStorageDatatype.Float16
    )
    never = edge.EdgeOptimizersConfig(indexing_threshold=2**40)  # an HNSW graph costs minutes and hardly helps
    vectors = {"feature": vector, "mask": vector} if meta["masks"] else {"feature": vector}
    try:
        shard = edge.EdgeShard.create(str(place), edge.EdgeConfig(vectors=vectors, optimizers=never))
        for names, kind in (
            (INDEXED_TEXTS, edge.PayloadSchemaType.Keyword),
            (INDEXED_NUMBERS, edge.PayloadSchemaType.Float),
        ):
            for field in names:
                shard.update(edge.UpdateOperation.create_field_index(field, kind))
        shard.flush()
    except Exception as error:  # the library raises nothing narrower
        raise GalleryError(
            f"expected to create a gallery's shard in {place}, got {str(error).splitlines()[0]}. Check the room on the "
            f"disk and the rights"
        ) from error
    return shard


def load_shard(folder: Path, named: Path, shard: str) -> Any:
    """The shard of a gallery's folder; errors speak of the folder `named`.

    Raises:
        GalleryInUse: another process holds it.
        GalleryError: its files are damaged.
    """
    try:
        return library().EdgeShard.load(str(folder / shard))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # the library raises nothing narrower, and its panics are no Exception
        if "WouldBlock" in str(error):
            raise GalleryInUse(
                f"expected {named} to be free, got it open in {_signed(named)}. Close it there, read it as it is now "
                f"with Gallery.open(…, read_only=True), or use a server (qdrant://, milvus://)"
            ) from error
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise GalleryError(
            f"expected a gallery that Qdrant Edge can open in {named}, got a damaged one ({first}). Restore a "
            f"snapshot: copy its folder here"
        ) from error


def room_for(payloads: Sequence[dict[str, Any]], meta: dict[str, Any]) -> tuple[int, int]:
    """Bytes that points take at most, and those among them that are written at the next flush.

    Vectors are halves in the shard and floats in the log, texts are in both; names of people, cameras and tracks are
    short, and their place in the indexes is counted with them.
    """
    texts = sum(len(one[key]) for key in ("source", "payload") for one in payloads if key in one)
    labels = len(payloads) * 2048 + 4 * texts
    return len(payloads) * 6 * meta["dimension"] * (2 if meta["masks"] else 1) + 2 * labels, labels


def next_shard(folder: Path) -> str:
    """A name that no shard of a gallery's folder bears, not even one that could not be erased."""
    taken = [place.name.removeprefix("shard-") for place in folder.glob("shard-*")]
    return f"shard-{max([int(number) for number in taken if number.isdigit()], default=0) + 1}"


def sign(folder: Path) -> None:
    """Leave this process's number for whoever finds the folder held."""
    (folder / WRITER).write_text(f"process {os.getpid()}\n")


def _signed(folder: Path) -> str:
    try:
        return (folder / WRITER).read_text().strip() or "another process"
    except OSError:
        return "another process"
