"""What looks at pictures: detector, trackers, engine, gallery and identities, as the camera application needs them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DpmError
from dpm_edge.gallery import Gallery
from dpm_edge.images import read_image
from dpm_edge.metrics import MASK_METRICS, chosen_metric
from dpm_edge.runtime import Embeddings
from dpm_edge.watch.shared_sightings import News, SharedSightings
from dpm_edge.watch.site_config import PersonOfInterest, Site

ABSENT_SECONDS = 10.0
"""Tracks without crops for so long end by themselves; before, they end when their tracker ends them."""
MEMORY_SECONDS = 86400.0
"""It is known for so long where somebody was, or for a site's `keep` where that is less."""
SURE_SCORE = 0.4
"""Score from which a box of the detector shows a person; a tracker makes use of lower ones, a search does not."""


class SeenTrack(Protocol):
    """What the pipeline needs of a track."""

    id: int
    box: NDArray[np.float32]
    score: float


class FollowsBoxes(Protocol):
    """What the pipeline needs of a tracker, one for each camera."""

    ended: Any
    """Tracks that ended with the last `update`."""
    frame_rate: float
    """Frames a second that `update` gets; set again where that changes."""

    def predict(self, seconds: float) -> Any:
        """The tracks of the last frame where they are in a later one, as a list of `SeenTrack`."""

    def update(self, boxes: NDArray, scores: NDArray, seconds: float) -> Any:
        """Tracks of this frame, as a list of `SeenTrack`."""


class DecidedTrack(Protocol):
    """What the pipeline needs of what is known about a track."""

    state: str
    identity: str | None
    probability: float | None
    previous_ids: tuple[str, ...]


class KnowsPeople(Protocol):
    """What the pipeline needs of the identities."""

    def observe(
        self, camera: str, track_id: str, seconds: float, features: NDArray, masks: NDArray,
        visibility: NDArray | None, quality: NDArray,
    ) -> Any:  # fmt: skip
        """Who a track is, a `DecidedTrack`, after more crops of it."""

    def decision(self, camera: str, track_id: str) -> Any:
        """The present decision, which other tracks may have changed; None where the track is not followed."""

    def pooled(self, camera: str, track_id: str) -> Embeddings | None:
        """One row of what a track has shown so far; None where it is not followed or has shown nothing clear."""

    def end(self, camera: str, track_id: str) -> Any:
        """The final decision about a track that has ended; None where it is not followed."""

    def hear(self, news: News) -> None:
        """Take in what the programs at other cameras tell."""

    def changes(self, camera: str | None = None) -> Any:
        """Merges and splits since the last call, each with kind, camera and track."""

    def merge(self, identity: str, into: str) -> Any:
        """Two identities are one person."""

    def split(self, camera: str, track_id: str) -> str:
        """A track is not who it was taken for; its new identity."""

    def name(self, identity: str, name: str) -> Any:
        """Somebody gave an identity a name."""

    def forget(self, identity: str) -> int:
        """Remove everything about an identity, with its rows of the gallery; how many those were."""


class EmbedsCrops(Protocol):
    """What the pipeline needs of an engine."""

    def embed(self, images: Any, boxes: Any = None) -> Embeddings:
        """Features of a frame's boxes, or of pictures."""


@dataclass(frozen=True, kw_only=True)
class Seeing:
    """Everything that looks at pictures."""

    detector: Callable[[NDArray[np.uint8]], tuple[NDArray[np.float32], NDArray[np.float32]]]
    make_tracker: Callable[[float], FollowsBoxes]
    """Frames a second → a tracker."""
    engine: EmbedsCrops
    gallery: Gallery
    identities: KnowsPeople
    shared: SharedSightings | None = None
    """Tracks and corrections of other programs with the same gallery."""
    lock: AbstractContextManager = field(default_factory=threading.Lock)
    """Held while the detector works: a search on the page comes from another thread."""

    def detect(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Boxes (N, 4) and scores (N,) of a picture (H, W, 3) uint8 BGR."""
        with self.lock:
            return self.detector(image)

    def enrol(self, people: Iterable[PersonOfInterest]) -> None:
        """Put people who are known by pictures into the gallery, once."""
        for person in people:
            if not self.gallery.count(person=person.name):
                embedded = self.engine.embed([read_image(path) for path in person.pictures])
                self.gallery.add(embedded, people=[person.name] * len(embedded))

    def search(self, picture: NDArray[np.uint8], k: int) -> dict[str, Any]:
        """Who of the gallery is on a picture: on the largest person that the detector finds, or on all of it.

        Returns:
            JSON types: box, visibility, visibility_map, and the ranks under the masked and the plain metric. Of a model
            without masks visibility is None, and nobody is ranked under the masked metric.

        Raises:
            DpmError: the picture cannot be embedded.
        """
        boxes, scores = self.detect(picture)
        sure = boxes[scores >= SURE_SCORE]
        box = max(sure.tolist(), key=lambda one: (one[2] - one[0]) * (one[3] - one[1]), default=None)
        embedded = self.engine.embed([picture]) if box is None else self.engine.embed(picture, np.array([box]))
        if not len(embedded):
            raise DpmError("expected a person on the picture, got none that can be embedded. Choose another picture")
        found: dict[str, Any] = {
            "box": box and [round(value, 1) for value in box],
            "visibility": None if embedded.visibility is None else round(float(embedded.visibility[0]), 3),
            "visibility_map": None if embedded.visibility_map is None else embedded.visibility_map[0].round(2).tolist(),
        }
        for metric in ("masked", "plain"):
            if metric in MASK_METRICS and not embedded.has_masks:
                found[metric] = []
                continue
            matches = self.gallery.search(embedded, k, metric=metric, by="person").of_query(0)
            found[metric] = [
                {
                    "identity": one.person,
                    "similarity": round(one.similarity, 4),
                    "probability": None if np.isnan(one.probability) else round(one.probability, 4),
                    "camera": one.camera,
                    "unix": None if np.isnan(one.timestamp) else one.timestamp,
                }
                for one in matches
                if one.person
            ]
        return found


def open_seeing(site: Site, engine: Any, gallery: Gallery, *, threads: int | None = None) -> Seeing:
    """Open the detector, the trackers and the identities of a site.

    Raises:
        DpmError: whatever opening them raises.
    """
    from dpm_edge.watch.identities import Identities
    from dpm_edge.watch.open_detector import open_detector
    from dpm_edge.watch.tracker import Tracker

    on_server = site.gallery is not None and "://" in site.gallery
    shared = SharedSightings.beside(site.gallery, keep=site.keep) if site.gallery is not None and on_server else None
    identities = Identities(
        gallery,
        cameras=[camera.name for camera in (*site.cameras, *site.elsewhere)],
        metric=chosen_metric(None, engine.spec.masks),
        travel={(one.origin, one.destination): (one.least, one.most) for one in site.travel},
        overlap=list(site.overlaps),
        absent=ABSENT_SECONDS,
        shared=shared,
        memory=MEMORY_SECONDS if site.keep is None else min(site.keep, MEMORY_SECONDS),
        ours=not engine.spec.foreign,
    )
    return Seeing(
        detector=open_detector(
            site.detector,
            layout=site.detector_layout,
            person=site.detector_person,
            size=site.detector_size,
            threads=threads,
        ),
        make_tracker=lambda rate: Tracker(frame_rate=rate),
        engine=engine,
        gallery=gallery,
        identities=identities,
        shared=shared,
    )
