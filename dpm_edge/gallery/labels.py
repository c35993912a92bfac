"""People, cameras, tracks, boxes and payloads as callers give them, checked before anything is written.

Unknown is unknown: None, NaN and "" are nobody's name and no camera's, so that two of them never count as the same.

N rows
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.rows import Where, payload_json
from dpm_edge.gallery.search.exact import unit
from dpm_edge.gallery.times import moment
from dpm_edge.gallery.times import timestamps as unix_seconds
from dpm_edge.runtime.embeddings import Embeddings

UNKNOWN = frozenset({"", "nan", "NaN", "None", "<NA>", "NaT"})
"""Texts that stand for unknown: what None and the missing values of numpy and pandas become when they are made text."""


def label(value: Any, name: str) -> str:
    r"""Return one person, camera or track as text; "" for unknown. 3 and 3.0 are the same camera.

    Bytes of a folder's name that are not UTF-8 become \xNN, as in the sources of rows.

    Raises:
        GalleryError: it is neither text nor a number nor anything else that has one name.
    """
    if isinstance(value, float | np.floating) and value == value and float(value).is_integer():
        return str(int(value))
    if isinstance(value, bytes | Mapping | list | tuple | set | frozenset | np.ndarray):
        raise GalleryError(f"expected text or a number in {name}, got {value!r:.80} ({type(value).__name__})")
    text = str(value)
    if not text.isascii():
        try:
            text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        except UnicodeEncodeError as error:
            raise GalleryError(f"expected {name} that UTF-8 can hold, got {text!r:.80} ({error.reason})") from error
    return "" if text in UNKNOWN else text


def label_column(values: Any, count: int, name: str) -> list[str]:
    """Return the labels of N rows, in order; "" everywhere when `values` is None.

    Raises:
        GalleryError: there are not N, or they have no order (a set), or are one text instead of N.
    """
    if values is None:
        return [""] * count
    return [
        one if type(one) is str and one.isascii() and one not in UNKNOWN else label(one, name)
        for one in column(values, count, name)
    ]


def column(values: Any, count: int, name: str) -> list[Any]:
    """Return one value for each of N rows out of any ordered collection: list, tuple, array, generator, Series.

    Raises:
        GalleryError: it has no order, is a single value, or has another length.
    """
    if isinstance(values, str | bytes | Mapping | set | frozenset) or not isinstance(values, Iterable):
        kind = type(values).__name__
        raise GalleryError(f"expected a list of {count} {name}, one for each row in order, got {values!r:.80} ({kind})")
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise GalleryError(f"expected {count} {name}, one for each row, got an array of shape {values.shape}")
        values = values.tolist() if values.dtype.kind not in "OM" else list(values)
    found = list(values)
    if len(found) != count:
        raise GalleryError(
            f"expected {count} {name}, one for each row, got {len(found)}. Boxes that were skipped have no row: pick "
            f"labels with embeddings.rows"
        )
    return found


def names_to_find(values: Any, name: str) -> tuple[str, ...] | None:
    """Return the people or cameras of a filter: one, or any collection of them. None: no filter.

    Raises:
        GalleryError: one of them stands for unknown, which names nobody, or is no name.
    """
    if values is None:
        return None
    if isinstance(values, np.ndarray):
        values = values.ravel().tolist()
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        values = [values]
    found = tuple(label(value, name) for value in values)
    if "" in found:
        raise GalleryError(
            f'expected a {name} to look for, got None, NaN or "", which stand for unknown. Leave it out, or look in '
            f"gallery.rows(vectors=False) for the ids of such rows"
        )
    return found


def box_array(values: Any, count: int) -> NDArray[np.float32]:
    """Return (N, 4) float32 boxes x0, y0, x1, y1 in pixels; NaN where unknown.

    Raises:
        GalleryError: the shape is another, or a number is infinite or no number.
    """
    if values is None:
        return np.full((count, 4), np.nan, np.float32)
    wanted = f"expected ({count}, 4) boxes, x0 y0 x1 y1 in pixels"
    try:
        if not isinstance(values, np.ndarray):
            values = [[np.nan] * 4 if box is None else box for box in values]
        boxes = np.asarray(values, np.float32)
    except (TypeError, ValueError) as error:
        raise GalleryError(f"{wanted}, got {values!r:.80} ({error}). Pass four numbers for each row") from error
    if not count and not boxes.size:
        return boxes.reshape(0, 4)
    if boxes.shape != (count, 4):
        raise GalleryError(f"{wanted}, got {boxes.shape}. Pass four numbers for each row")
    if np.isinf(boxes).any():
        raise GalleryError(f"{wanted}, got infinity. Pass NaN for an unknown box")
    return boxes


def payload_list(values: Any, count: int) -> list[dict[str, Any]]:
    """Return the payloads of N rows, each checked; {} where one is None, and everywhere when `values` is None.

    Raises:
        GalleryError: there are not N, or one is no dict of JSON values or too long.
    """
    if values is None:
        return [{} for _ in range(count)]
    found = [{} if one is None else one for one in column(values, count, "payloads")]
    for one in found:
        if one or not isinstance(one, dict):
            payload_json(one)
    return found


def make_filter(
    *, person: Any = None, camera: Any = None, since: Any = None, until: Any = None, min_visibility: float | None = None
) -> Where:
    """Return a filter of what callers give: one or several people and cameras, times as `Gallery.add` takes them.

    Raises:
        GalleryError: a person or camera stands for unknown, or a time is none.
    """
    return Where(
        people=names_to_find(person, "person"),
        cameras=names_to_find(camera, "camera"),
        since=moment(since, "since"),
        until=moment(until, "until"),
        min_visibility=min_visibility,
    )


def new_rows(
    embeddings: Embeddings,
    *,
    masks: bool,
    people: Any,
    cameras: Any,
    timestamps: Any,
    tracks: Any,
    boxes: Any,
    payloads: Any,
) -> dict[str, Any]:
    """Return the columns of `Rows` but for the ids, out of what `Gallery.add` takes; masks: whether they are kept.

    Raises:
        GalleryError: a label is missing, too long or no label, a time is none, or a mask leaves 0..1.
    """
    n = len(embeddings)
    if n and (embeddings.masks.min() < 0 or embeddings.masks.max() > 1):
        raise GalleryError(f"expected masks in 0..1, got {embeddings.masks.min()}..{embeddings.masks.max()}")
    return {
        "features": unit(embeddings.features),
        "masks": embeddings.masks if masks else None,
        "people": label_column(column(people, n, "people"), n, "people"),
        "tracks": label_column(tracks, n, "tracks"),
        "cameras": label_column(cameras, n, "cameras"),
        "timestamps": unix_seconds(timestamps, n),
        "visibility": embeddings.visibility,
        "boxes": box_array(boxes, n),
        "sources": list(embeddings.sources) or [""] * n,
        "payloads": payload_list(payloads, n),
    }
