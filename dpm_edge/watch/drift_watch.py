"""Warns when a camera's features move away from its statistics."""

from __future__ import annotations

from typing import Protocol

from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.drift import Drift, DriftMeter
from dpm_edge.progress import say


class KnowsCameras(Protocol):
    """What is needed of a gallery."""

    def all_statistics(self) -> CameraStatistics:
        """Statistics of its cameras."""


class DriftWatch:
    """The drift of each camera of a running watch. `add`, `compare` and `forget` are called by one thread at a time."""

    def __init__(self) -> None:
        """Begin without tracks."""
        self._meter = DriftMeter()
        self.found: dict[str, Drift] = {}
        """Camera → drift, as of the last `compare`."""

    def add(self, camera: str, track: str, features: NDArray) -> None:
        """Count features (N, D) of a track."""
        self._meter.add(camera, track, features)

    def compare(self, gallery: KnowsCameras) -> None:
        """Compare the last tracks with the statistics, and say which cameras have begun to differ."""
        self._meter.refer_to(gallery.all_statistics())
        before, self.found = self.found, self._meter.drifts()
        for camera, drift in self.found.items():
            if drift.warns and not (camera in before and before[camera].warns):
                say(drift.sentence(camera))

    def message(self, camera: str) -> str:
        """Say that a camera has drifted; "" where it has not."""
        drift = self.found.get(camera)
        return drift.sentence(camera) if drift is not None and drift.warns else ""

    def forget(self, camera: str, track: str) -> None:
        """Keep nothing of a track."""
        self._meter.forget(camera, track)
