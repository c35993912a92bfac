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
        GalleryError: the length is no duration, or the camera stands for unknown.
    """
    name = label(camera, "camera")
    if not name:
        raise GalleryError(f"expected a camera whose rows are kept so long, got {camera!r}")
    kept = {**meta.get("retention", {}), name: None if length is None else duration(length, "retain")}
    return {**meta, "retention": {name: seconds for name, seconds in kept.items() if seconds is not None}}


def due(meta: Mapping[str, Any], now: float, cameras: tuple[str, ...] | None = None) -> list[Where]:
    """Return which rows are older than their camera's retention, one filter a camera; `cameras`: only of these."""
    return [
        Where(cameras=(name,), until=now - duration(length, f"the retention of camera {name}"))
        for name, length in meta.get("retention", {}).items()
        if cameras is None or name in cameras
    ]
