"""A track that has not ended, as the identities remember it, and its crops as they come in, checked.

n crops · D feature dimensions
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError
from dpm_edge.gallery import Gallery
from dpm_edge.metrics import MASK_METRICS
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.watch.decisions import TOO_FEW, TOO_HIDDEN, Decision
from dpm_edge.watch.evidence import Crops
from dpm_edge.watch.whereabouts import Stay


@dataclass
class LiveTrack:
    """A track that has not ended."""

    stay: Stay
    crops: Crops = field(default_factory=Crops)
    decision: Decision | None = None
    own: str | None = None
    """The identity that was made for this track."""
    odds: dict[str, float] = field(default_factory=dict)
    """Log odds of each candidate against somebody new, of the last look."""
    compared: int = 0
    """People of the gallery that it was compared with in the last look, candidates or not."""
    looked_at: int = 0
    """Crops at the last look."""
    clearest: float = 0.0
    """Visibility at the last look."""
    fixed: bool = False
    """Corrected by hand."""
    barred: set[str] = field(default_factory=set)
    """Identities that somebody said it is not."""
    seen: int = 0
    """Crops so far, usable or not."""

    @property
    def key(self) -> tuple[str, str]:
        """Camera and track."""
        return self.stay.camera, self.stay.track

    @property
    def identity(self) -> str | None:
        """Who it is taken for; None while pending."""
        return None if self.decision is None else self.decision.identity

    def lack(self, least_views: int) -> str:
        """Why there is no identity yet."""
        return TOO_FEW if self.seen < least_views else TOO_HIDDEN


def checked_crops(
    gallery: Gallery, metric: str, features: Any, masks: Any, visibility: Any, quality: Any
) -> tuple[Embeddings, NDArray[np.float32]]:
    """Crops as `Identities.observe` takes them, and how much each counts, (n,).

    Raises:
        DataError: a quality is negative, or the features are not of the gallery's dimension.
        EmbeddingsError: the arrays do not fit each other, or are not finite.
    """
    if isinstance(features, Embeddings):
        features, masks, visibility = features.features, features.masks, features.visibility
    found = np.asarray(features, np.float32)
    n = len(found) if found.ndim == 2 else 0
    if visibility is None and metric in MASK_METRICS:  # the model says something, whoever passes its crops does not
        visibility = np.ones(n)
    crops = Embeddings(
        features=found,
        masks=np.ones_like(found) if masks is None else np.asarray(masks, np.float32),
        visibility=None if visibility is None else np.asarray(visibility, np.float32),
        rows=np.arange(n),
        fingerprint=gallery.fingerprint,
    )
    if n and crops.dimension != gallery.dimension:
        raise DataError(
            f"expected features of {gallery.dimension} dimensions, as the gallery's, got {crops.dimension}. "
            "Embed with the gallery's model"
        )
    weight = np.ones(n, np.float32) if quality is None else np.asarray(quality, np.float32)
    if weight.shape != (n,) or not (np.isfinite(weight) & (weight >= 0)).all():
        raise DataError(f"expected a quality of 0 or more for each of {n} crops, got {quality}")
    return crops, weight


def add_best_crops(gallery: Gallery, live: LiveTrack, identity: str) -> None:
    """Put a track's best crops into the gallery, as an identity's."""
    best = live.crops.best()
    crops = best.embeddings(gallery.fingerprint)
    gallery.add(
        crops,
        people=[identity] * len(crops),
        cameras=[live.stay.camera] * len(crops),
        timestamps=best.seconds,
        tracks=[live.stay.track] * len(crops),
        payloads=[{"quality": max(q, 1e-3)} for q in best.quality],
    )
