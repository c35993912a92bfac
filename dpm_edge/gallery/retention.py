"""How long rows of a camera are kept: seconds by camera, in what a gallery says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpm_edge.gallery.rows import Where


def with_retention(meta: Mapping[str, Any], camera: Any, seconds: float | None) -> dict[str, Any]:
    """The description with another retention of one camera; None: for ever."""
    kept = {**meta.get("retention", {}), str(camera): seconds}
    return {**meta, "retention": {name: value for name, value in kept.items() if value is not None}}


def due(meta: Mapping[str, Any], now: float) -> list[Where]:
    """Which rows are older than their camera's retention, one filter a camera."""
    return [Where(cameras=(name,), until=now - seconds) for name, seconds in meta.get("retention", {}).items()]
