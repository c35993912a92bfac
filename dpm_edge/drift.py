"""Whether a camera's features move away from its statistics: it was turned, it is night, its lens is dirty.

With t_1 … t_n the mean features of a camera's last n tracks, m their mean, s² = Σ‖t_i − m‖² / (n − 1) their scatter
and μ the camera's mean feature as it is known,

    drift = √(max(0, ‖m − μ‖² − s²/n)) / s

is how far the camera has moved, in units of how far one track usually lies from the mean of all; s²/n is what chance
moves m. It is near 0 for other people at the same camera. A track counts once, however long somebody stands there.

n tracks · N features · D dimensions
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import EmbeddingsError
from dpm_edge.metrics import EPSILON, normalise

WINDOW, LEAST_TRACKS = 50, 30
"""The last tracks of a camera that are compared, and how many of them tell something."""
LEAST_FEATURES = 300
"""Features that a camera's statistics need before anything is compared with them."""
DRIFTED = 0.3
"""Drift from which on a camera is reported: benchmarks/results/camera-drift.json."""


@dataclass(frozen=True)
class Drift:
    """How far a camera's last tracks are from its statistics."""

    drift: float
    """0 or more; 1 is as far as a track usually lies from the mean of all."""
    tracks: int
    """n."""

    @property
    def warns(self) -> bool:
        """Whether it is more than other people explain."""
        return self.drift >= DRIFTED

    def sentence(self, camera: str) -> str:
        """Say what was seen and what to do."""
        return (
            f"{camera}: the features of its last {self.tracks} tracks have moved {self.drift:.2f} away from its "
            f"statistics, {DRIFTED} or more is a change. Look whether the camera was turned, is dirty, or sees at night"
        )


def drift_of(tracks_ND: NDArray, mean_D: NDArray) -> float:
    """The formula above, of n mean features of tracks (n, D), n of 2 or more, and the camera's mean (D,)."""
    exact = np.asarray(tracks_ND, np.float64)
    n, m = len(exact), exact.mean(axis=0)
    scatter = float(((exact - m) ** 2).sum() / (n - 1))
    moved = float(((m - mean_D) ** 2).sum()) - scatter / n
    return float(np.sqrt(max(0.0, moved) / max(scatter, EPSILON)))


class DriftMeter:
    """Keeps the last tracks of each camera and compares them with its statistics. Not for several threads at once.

        meter = DriftMeter(engine.camera_statistics)
        meter.add("door", track.id, embeddings.features)
        for camera, found in meter.drifts().items(): ...

    A camera is compared with the first statistics that hold LEAST_FEATURES or more features of it.
    """

    def __init__(self, statistics: CameraStatistics | None = None) -> None:
        """Begin without tracks; statistics may come later."""
        self._means: dict[str, NDArray[np.float64]] = {}
        self._tracks: dict[str, OrderedDict[str, tuple[NDArray[np.float64], int]]] = {}
        if statistics is not None:
            self.refer_to(statistics)

    def refer_to(self, statistics: CameraStatistics) -> None:
        """Compare cameras that have not been compared with anything yet with these statistics."""
        for camera, count in statistics.counts.items():
            if camera and camera not in self._means and count >= LEAST_FEATURES:
                self._means[camera] = statistics.sums[camera] / count

    def add(self, camera: str, track: int | str, features: NDArray) -> None:
        """Count features (N, D) of one track.

        Raises:
            EmbeddingsError: they are not (N, D), or of another dimension than the camera's statistics.
        """
        unit = np.asarray(features, np.float64)
        mean = self._means.get(camera)
        if unit.ndim != 2 or (mean is not None and unit.shape[1] != len(mean)):
            wanted = "D" if mean is None else len(mean)
            raise EmbeddingsError(
                f"expected features (N, {wanted}) of camera {camera!r}, got {unit.shape}. Embed with the model that "
                "the statistics are of"
            )
        if not len(unit):
            return
        tracks = self._tracks.setdefault(camera, OrderedDict())
        total, count = tracks.pop(str(track), (np.zeros(unit.shape[1]), 0))
        tracks[str(track)] = total + normalise(unit).sum(axis=0), count + len(unit)
        if len(tracks) > WINDOW:
            tracks.popitem(last=False)

    def forget(self, camera: str, track: int | str) -> None:
        """Keep nothing of a track."""
        if camera in self._tracks:
            self._tracks[camera].pop(str(track), None)

    def drifts(self) -> dict[str, Drift]:
        """Drift of each camera with statistics and LEAST_TRACKS or more tracks."""
        return {
            camera: Drift(drift_of(np.stack([total / count for total, count in tracks.values()]), mean), len(tracks))
            for camera, mean in sorted(self._means.items())
            if len(tracks := self._tracks.get(camera, OrderedDict())) >= LEAST_TRACKS
        }
