"""Gallery rows as a parquet file: one column each, features and masks as lists of halves' values in float32.

N rows · D feature dimensions
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dpm_edge.errors import DpmError, GalleryError, MissingLibrary
from dpm_edge.files import DISK_FULL, whole_file
from dpm_edge.gallery.rows import Rows
from dpm_edge.gallery.stores.store import BATCH, check_meta

LABELS = ("people", "tracks", "cameras", "sources")


def _libraries() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingLibrary("pyarrow", "a parquet file", "pip install 'dpm-edge[parquet]'") from error
    return pyarrow, pyarrow.parquet


def write(path: Path, parts: Iterator[Rows], meta: dict[str, Any]) -> int:
    """Write rows as they come, whole or not at all; how many.

    Raises:
        MissingLibrary: pyarrow is not installed.
        DpmError: the disk is full or the folder cannot be written.
    """
    pa, pq = _libraries()
    d = meta["dimension"]
    schema = pa.schema(
        [("id", pa.int64()), ("feature", pa.list_(pa.float32(), d)), ("mask", pa.list_(pa.float32(), d))]
        + [(name, pa.string()) for name in LABELS]
        + [("timestamp", pa.float64()), ("visibility", pa.float32())]
        + [("box", pa.list_(pa.float32(), 4)), ("payload", pa.string())],
        metadata={"gallery": json.dumps(meta)},
    )
    written = 0
    try:
        with whole_file(path) as place, pq.ParquetWriter(place, schema, write_page_checksum=True) as file:
            for rows in parts:
                file.write_table(_table(pa, rows, schema))
                written += len(rows)
    except OSError as error:
        remedy = "Free some space and export again" if error.errno in DISK_FULL else "Check the folder and its rights"
        raise DpmError(f"expected to write {path}, got {error}; an old file is as it was. {remedy}") from error
    return written


def read(path: Path) -> tuple[dict[str, Any], Iterator[Rows]]:
    """The gallery's description and its rows, some at a time.

    Raises:
        GalleryError: the file is missing, damaged, or something else.
        MissingLibrary: pyarrow is not installed.
    """
    pa, pq = _libraries()
    try:
        file = pq.ParquetFile(path, page_checksum_verification=True)
        meta = json.loads((file.schema_arrow.metadata or {}).get(b"gallery", b"{}"))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return check_meta(meta, str(path)), _parts(pa, path, file, meta["dimension"])


def _parts(pa: ModuleType, path: Path, file: Any, dimension: int) -> Iterator[Rows]:
    """The rows of a file, some at a time.

    Raises:
        GalleryError: a page is damaged, or a column is missing.
    """
    batches = file.iter_batches(BATCH)
    while True:
        try:
            batch = next(batches, None)
            rows = None if batch is None else _rows(batch, dimension)
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise _damaged(path, error) from error
        if rows is None:
            return
        columns = rows.features, rows.visibility
        if any(one is None or not np.isfinite(one).all() for one in columns):
            raise _damaged(path, ValueError("features or visibility hold NaN or infinity"))
        yield rows


def _damaged(path: Path, error: Exception) -> GalleryError:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return GalleryError(
        f"expected a parquet file that `gallery.export` wrote, got {path}, which is damaged or something else "
        f"({first}). Export it again"
    )


def _table(pa: ModuleType, rows: Rows, schema: Any) -> Any:
    assert rows.features is not None and rows.visibility is not None, "an export scans whole rows"

    def lists(values: Any) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])

    d = rows.features.shape[1]
    columns = [rows.ids, lists(rows.features)]
    columns.append(pa.nulls(len(rows), pa.list_(pa.float32(), d)) if rows.masks is None else lists(rows.masks))
    columns += [pa.array(getattr(rows, name), pa.string()) for name in LABELS]
    columns += [rows.timestamps, rows.visibility.astype(np.float32), lists(rows.boxes)]
    columns.append(pa.array([json.dumps(one, ensure_ascii=False) for one in rows.payloads], pa.string()))
    return pa.table(columns, schema=schema)


def _rows(batch: Any, dimension: int) -> Rows:
    def lists(name: str, width: int) -> Any:
        return batch.column(name).flatten().to_numpy(zero_copy_only=False).reshape(-1, width)

    masked = batch.column("mask").null_count == 0
    return Rows(
        ids=batch.column("id").to_numpy(),
        features=lists("feature", dimension),
        masks=lists("mask", dimension) if masked else None,
        **{name: batch.column(name).to_pylist() for name in LABELS},
        timestamps=batch.column("timestamp").to_numpy(),
        visibility=batch.column("visibility").to_numpy(),
        boxes=lists("box", 4),
        payloads=[json.loads(one) for one in batch.column("payload").to_pylist()],
    )
