"""Drift of a gallery's cameras: their last tracks against all the rest that is known of them."""

from __future__ import annotations

import math

import numpy as np

from dpm_edge.drift import WINDOW, Drift, DriftMeter
from dpm_edge.gallery.guarded import GuardedStore
from dpm_edge.gallery.rows import Rows, Where

Latest = tuple[float, int]
"""Time and id of a track's last row: what comes last is greater."""


class LastTracks:
    """The last WINDOW tracks of each camera, out of rows that come in any order."""

    def __init__(self) -> None:
        """Empty."""
        self._cameras: dict[str, dict[str, tuple[Latest, list[int]]]] = {}

    def take(self, rows: Rows) -> None:
        """Take in rows; their vectors are not needed."""
        for at, (row, camera) in enumerate(zip(rows.ids.tolist(), rows.cameras)):
            time = float(rows.timestamps[at])
            key = rows.tracks[at] or rows.people[at] or f"row {row}"
            tracks = self._cameras.setdefault(camera, {})
            latest, ids = tracks.get(key, ((-math.inf, -1), []))
            tracks[key] = max(latest, (-math.inf if math.isnan(time) else time, row)), [*ids, row]
            if len(tracks) > 4 * WINDOW:
                self._cameras[camera] = _last(tracks)

    def ids(self) -> dict[str, list[list[int]]]:
        """Camera → the ids of each of its last tracks' rows, the last track last; cameras that are known."""
        return {
            camera: [ids for _, ids in _last(tracks).values()] for camera, tracks in self._cameras.items() if camera
        }


def _last(tracks: dict[str, tuple[Latest, list[int]]]) -> dict[str, tuple[Latest, list[int]]]:
    return dict(sorted(tracks.items(), key=lambda one: one[1][0])[-WINDOW:])


def camera_drift(guarded: GuardedStore) -> dict[str, Drift]:
    """See `Gallery.camera_drift`."""
    found = LastTracks()
    with guarded.lock:
        known = guarded.all_statistics()
        for rows in guarded.store.scan(Where(), vectors=False):
            found.take(rows)
        last = {
            camera: [guarded.store.get(np.array(ids, np.int64), vectors=True) for ids in tracks]
            for camera, tracks in found.ids().items()
        }
    for tracks in last.values():
        for rows in tracks:
            assert rows.features is not None, "whole rows were read"
            known.add(rows.features, rows.cameras, sign=-1)
    meter = DriftMeter(known)
    for camera, tracks in last.items():
        for number, rows in enumerate(tracks):
            assert rows.features is not None, "whole rows were read"
            meter.add(camera, number, rows.features)
    return meter.drifts()
