"""How long rows of a camera are kept: seconds by camera, in what a gallery says of itself."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.labels import label, names_to_find
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.times import duration, moment


def with_retention(meta: Mapping[str, Any], camera: Any, length: Any) -> dict[str, Any]:
    """Return what a gallery says of retention after a change of one camera; None: for ever.

    Raises:
        GalleryError: the length is no duration, or the camera stands for unknown.
    """
    name = label(camera, "camera")
    if not name:
        raise GalleryError(f"expected a camera whose rows are kept so long, got {camera!r}")
    kept = {**meta.get("retention", {}), name: None if length is None else duration(length, "retain")}
    return {"retention": {name: seconds for name, seconds in kept.items() if seconds is not None}}


def due(meta: Mapping[str, Any], older_than: Any, camera: Any, now: Any) -> list[Where]:
    """Return filters for the rows that are too old: by one age for all, or without it by each camera's retention.

    Args:
        meta: what the gallery says of itself.
        older_than: a duration; None for each camera's own.
        camera: only rows of this camera, or of these.
        now: another moment than this one.

    Raises:
        GalleryError: the duration, the camera or the moment is none.
    """
    at, cameras = moment(now, "now"), names_to_find(camera, "camera")
    at = time.time() if at is None else at
    if older_than is not None:
        return [Where(cameras=cameras, until=at - duration(older_than, "older_than"))]
    return [
        Where(cameras=(name,), until=at - duration(length, f"the retention of {name}"))
        for name, length in meta.get("retention", {}).items()
        if cameras is None or name in cameras
    ]
