"""A gallery in memory as one safetensors file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge import tensorfile
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.rows import Rows
from dpm_edge.gallery.stores.memory import TEXTS, MemoryStore
from dpm_edge.gallery.stores.store import Store, check_meta

ARRAYS = ("ids", "features", "masks", "timestamps", "visibility", "boxes")


def save(store: Store, path: Path) -> None:
    """Write a memory store, whole or not at all.

    Raises:
        GalleryError: the store is another.
        DpmError: the disk is full or the folder cannot be written; an old file is left as it was.
    """
    if not isinstance(store, MemoryStore):
        raise GalleryError(
            "expected a gallery in memory to save as one file, got another. Take a snapshot, or export to parquet"
        )
    arrays = {name: store.column(name) for name in ARRAYS}
    labels: dict[str, Sequence[Any]] = {name: store.texts(name) for name in TEXTS}
    tensorfile.save(path, "gallery", arrays, labels, {"gallery": json.dumps(store.meta)})


def load(path: Path, device: str = "cpu") -> MemoryStore:
    """What `save` wrote, searched on a device.

    Raises:
        GalleryError: the file is missing, damaged or cut short, or holds something else.
    """
    arrays, labels, facts = tensorfile.load(path, "gallery", GalleryError)
    try:
        meta = check_meta(json.loads(facts["gallery"]), str(path))
        features = arrays["features"]
        store = MemoryStore(meta, str(features.dtype), device)
        columns: dict[str, Any] = {name: arrays[name] for name in ARRAYS}
        if features.ndim != 2 or features.shape[1] != meta["dimension"]:
            raise GalleryError(f"{path}: features have shape {features.shape}. Build the gallery again")
        if not all(np.isfinite(columns[name]).all() for name in ("features", "masks", "visibility")):
            raise GalleryError(f"{path} holds NaN or infinity. Build the gallery again")
        if features.dtype == np.int8:  # codes: stored again as they are
            columns["features"], columns["masks"] = (
                features.astype(np.float32),
                columns["masks"].astype(np.float32) / 127,
            )
        columns |= {name: labels[name] for name in TEXTS}
        columns["payloads"] = [one or {} for one in labels["payloads"]]
        store.add(Rows(**columns))
    except (KeyError, ValueError, TypeError) as error:
        raise GalleryError(f"{path} lacks something that a gallery has ({error}). Build the gallery again") from error
    return store
