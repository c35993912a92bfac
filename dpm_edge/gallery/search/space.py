"""Which features a search compares: as they are, or centred per camera."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpm_edge.gallery.calibration import Calibration

LEAST_ROWS, LEAST_CAMERAS = 50, 2
"""Rows of known cameras, and cameras with rows, from which searches are centred unless told otherwise. With fewer
rows a draw in ten lost, from about 50 on none did, and rows of one camera alone gain nothing:
benchmarks/results/centring-least-rows.json."""


def wanted_space(
    centre: bool | None, calibration: Calibration | None, meta: Mapping[str, Any], metric: str, *, cameras: bool
) -> bool | None:
    """Whether a search is centred: as it was told, else as its calibration is; None: as its gallery's rows allow.

    Args:
        centre: what the caller says; None: nothing.
        calibration: what the caller gives.
        meta: how the gallery describes itself; a calibration that it keeps for the metric counts like a given one.
        metric: the search's.
        cameras: whether the cameras of the queries are known. Without them nothing is centred unless it is asked for.
    """
    if centre is not None:
        return centre
    if calibration is not None:
        return calibration.centred
    if not cameras:
        return False
    kept = meta.get("calibration")
    return Calibration.of(kept).centred if kept and kept["metric"] == metric else None


def enough(counts: Mapping[str, int]) -> bool:
    """Whether so many features of known cameras are counted that a search gains by centring."""
    known = [count for camera, count in counts.items() if camera]
    return sum(known) >= LEAST_ROWS and len(known) >= LEAST_CAMERAS


def described(counts: Mapping[str, int], meta: Mapping[str, Any]) -> str:
    """Say in a few words whether searches that name their cameras are centred, and why."""
    kept = meta.get("calibration")
    if kept:
        known = Calibration.of(kept)
        state = "on" if known.centred else "off"
        return f"{state} for metric {known.metric}, as the kept calibration is; other metrics: {_by_rows(counts)}"
    return _by_rows(counts)


def _by_rows(counts: Mapping[str, int]) -> str:
    known = [count for camera, count in counts.items() if camera]
    there = f"{sum(known)} rows of {len(known)} known cameras"
    return f"on ({there})" if enough(counts) else f"off ({there}; on from {LEAST_ROWS} of {LEAST_CAMERAS})"
