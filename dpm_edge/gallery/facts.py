"""What a gallery knows beside its rows: its model, a calibration, statistics of the site's cameras."""

from __future__ import annotations

from typing import Any

from dpm_edge.centring import CameraStatistics
from dpm_edge.drift import Drift
from dpm_edge.gallery.calibration import Calibration, to_keep
from dpm_edge.gallery.camera_drift import camera_drift
from dpm_edge.gallery.guarded import GuardedStore
from dpm_edge.gallery.stores.store import SITE, Store


class GalleryFacts:
    """The part of a gallery that describes it."""

    _guarded: GuardedStore

    @property
    def fingerprint(self) -> str:
        """The model whose embeddings these are."""
        return self.store.meta["fingerprint"]

    @property
    def dimension(self) -> int:
        """D, the length of a feature and of a mask."""
        return self.store.meta["dimension"]

    @property
    def store(self) -> Store:
        """The medium. Hold no thread of your own in it."""
        return self._guarded.store

    def camera_statistics(self) -> CameraStatistics:
        """A copy of the rows' count and sum per camera, as of now. The first call may have to read every row."""
        return self._guarded.camera_statistics()

    def all_statistics(self) -> CameraStatistics:
        """As `camera_statistics`, with the site's (`use_statistics`) counted beside."""
        return self._guarded.all_statistics()

    def camera_drift(self) -> dict[str, Drift]:
        """How far each camera's last tracks are from what its other rows and the site's statistics have in common.

        A camera needs 30 tracks (people, or rows, where no tracks are known) and 300 other rows; the others are left
        out. The last are those of the latest time, and of equal times those of the highest id.
        """
        return camera_drift(self._guarded)

    def use_statistics(self, statistics: CameraStatistics | None) -> None:
        """Keep statistics of the site's cameras: searches are centred by them and the rows' together. None: none.

        Raises:
            GalleryError: the gallery is read-only.
            EmbeddingsError: they are of another model.
        """
        if statistics is not None:
            statistics.require_model(self.fingerprint, self.dimension)
        self.describe(**{SITE: None if statistics is None else statistics.to_json()})

    def use_calibration(self, calibration: Calibration | None) -> None:
        """Keep a calibration with the gallery: every later search under its metric carries probabilities. None: none.

        Raises:
            GalleryError: it is of another model.
        """
        self.describe(calibration=to_keep(calibration, self.fingerprint))

    def describe(self, **facts: Any) -> dict[str, Any]:
        """What the store says of itself, after adding `facts` (JSON) to it."""
        return self._guarded.describe(facts)
