"""How long rows of a camera are kept: seconds by camera, in what a gallery says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.labels import label
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.times import duration


def with_retention(meta: Mapping[str, Any], camera: Any, length: Any) -> dict[str, Any]:
    """Return the description with another retention of one camera; None: for ever.

    Raises:
        GalleryError: the duration is none, or the camera stands for unknown.
    """
    name = label(camera, "camera")
    if not name:
        raise GalleryError(f"expected a camera whose rows are kept so long, got {camera!r}")
    seconds = None if length is None else duration(length, "retain")
    kept = {**meta.get("retention", {}), name: seconds}
    return {**meta, "retention": {name: value for name, value in kept.items() if value is not None}}


def due(meta: Mapping[str, Any], now: float, older_than: Any, cameras: tuple[str, ...] | None) -> list[Where]:
    """Return filters for the rows that are too old: by one age for all, or without it by each camera's retention.

    Args:
        meta: what the gallery says of itself.
        now: Unix seconds.
        older_than: a duration; None for each camera's own.
        cameras: only rows of these.

    Raises:
        GalleryError: the duration is none.
    """
    if older_than is not None:
        return [Where(cameras=cameras, until=now - duration(older_than, "older_than"))]
    return [
        Where(cameras=(name,), until=now - duration(length, f"the retention of {name}"))
        for name, length in meta.get("retention", {}).items()
        if cameras is None or name in cameras
    ]
