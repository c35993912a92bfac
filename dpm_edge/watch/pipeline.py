"""One camera's frames become people with identities. This file alone touches detector, trackers and identities."""

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
from dpm_edge.opencv import cv2
from dpm_edge.runtime import Embeddings
from dpm_edge.watch.rules import Moment, Sighting
from dpm_edge.watch.site_config import CameraConfig, PersonOfInterest, Site
from dpm_edge.watch.sources import CameraFrame, Source
from dpm_edge.watch.store import TrackRecord

EMBED_SECONDS = 0.5
"""A track is embedded again after so long."""
FIRST_CROPS = 3
"""A new track is embedded in each frame until it has so many crops."""
CROPS_A_FRAME = 8
"""Crops embedded of one frame at most, so that a crowd holds no other camera up; the others have their turn next."""
SMALLEST = 24
"""Rows of pixels below which a crop recognises nobody."""
FULL_HEIGHT = 128
"""Rows of pixels from which on a crop's size no longer limits its quality."""
SURE_SCORE = 0.4
"""Score from which a box of the detector shows a person; a tracker makes use of lower ones, a search does not."""
DEFAULT_RATE = 10.0
"""Frames a second of a camera that has not shown its own yet."""
THUMBNAIL_HEIGHT = 160
TRACK_MEMORY_SECONDS = 30.0
"""A track that was not seen for so long is no longer followed here."""


class SeenTrack(Protocol):
    """What the pipeline needs of a track."""

    id: int
    box: NDArray[np.float32]
    score: float


class FollowsBoxes(Protocol):
    """What the pipeline needs of a tracker, one for each camera."""

    def update(self, boxes: NDArray, scores: NDArray, seconds: float) -> Any:
        """Tracks of this frame, as a list of `SeenTrack`."""


class Decision(Protocol):
    """What the pipeline needs of what is known about a track."""

    state: str
    identity: str | None
    probability: float | None
    previous_ids: tuple[str, ...]


class KnowsPeople(Protocol):
    """What the pipeline needs of the identities."""

    def observe(
        self, camera: str, track_id: int, seconds: float, features: NDArray, masks: NDArray, visibility: NDArray,
        quality: NDArray,
    ) -> Any:  # fmt: skip
        """A `Decision` about a track, after more crops of it."""

    def merge(self, identity: str, into: str) -> Any:
        """Two identities are one person."""

    def split(self, camera: str, track_id: int) -> Any:
        """A track is not who it was taken for; its new identity."""

    def name(self, identity: str, name: str) -> Any:
        """Somebody gave an identity a name."""


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

    def split(self, camera: str, track: str, identity: str) -> str:
        """Take a track from an identity; its new one."""
        return str(self.identities.split(camera, int(track)) or f"{identity}-{camera}-{track}")

    def forget(self, identity: str) -> int:
        """Delete the rows of an identity; how many there were."""
        return self.gallery.forget(identity)

    def search(self, picture: NDArray[np.uint8], k: int) -> dict[str, Any]:
        """Who of the gallery is on a picture: on the largest person that the detector finds, or on all of it.

        Returns:
            JSON types: box, visibility, visibility_map, and the ranks under the masked and the plain metric.

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
            "visibility": round(float(embedded.visibility[0]), 3),
            "visibility_map": None if embedded.visibility_map is None else embedded.visibility_map[0].round(2).tolist(),
        }
        for metric in ("masked", "plain"):
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
    from dpm_edge.watch.detector import Detector
    from dpm_edge.watch.identities import Identities
    from dpm_edge.watch.tracker import Tracker

    identities = Identities(
        gallery,
        cameras=[camera.name for camera in site.cameras],
        travel={(one.origin, one.destination): (one.least, one.most) for one in site.travel},
        overlap=list(site.overlaps),
    )
    return Seeing(
        detector=Detector.load(site.detector, threads=threads),
        make_tracker=lambda rate: Tracker(frame_rate=rate),
        engine=engine,
        gallery=gallery,
        identities=identities,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraView:
    """What the page shows of a camera."""

    number: int
    image: NDArray[np.uint8]
    seconds: float
    wall: float
    sightings: tuple[Sighting, ...] = ()
    looked_at: bool = True
    """False while the detector is not open yet."""


@dataclass
class _Followed:
    """One track of one camera, as it is remembered."""

    first: Moment
    last: Moment
    crops: int = 0
    embedded: float = float("-inf")
    state: str = "pending"
    identity: str | None = None
    probability: float | None = None
    previous_ids: tuple[str, ...] = ()
    visibility: float | None = None
    best: float = 0.0
    thumbnail: bytes | None = None
    changed: bool = True


class CameraPipeline:
    """One camera: its source, its tracker, and what is known of its tracks.

    Args:
        config: the camera.
        source: gives its frames.
        thumbnails: make a small picture of each track's best crop.
        lock: held while tracks and identities change; the page reads them.
    """

    def __init__(self, config: CameraConfig, source: Source, *, thumbnails: bool, lock: AbstractContextManager) -> None:
        self.config, self.source = config, source
        self.view: CameraView | None = None
        self.taken = self.processed = self.failures = 0
        self.latency = self.turn = 0.0
        self.message = ""
        self.lost_since: float | None = None
        self._thumbnails, self._lock = thumbnails, lock
        self._tracker: FollowsBoxes | None = None
        self._size = (0, 0)
        self._first_id = self._last_id = 0
        self._followed: dict[str, _Followed] = {}

    def look_at(self, seeing: Seeing, frame: CameraFrame) -> tuple[Moment, tuple[Sighting, ...], tuple[int, int]]:
        """Find, follow and recognise the people of a frame: when it was taken, who is in it, its height and width."""
        size = (frame.image.shape[0], frame.image.shape[1])
        if self._tracker is None or size != self._size:  # a camera that changes its size is looked at anew
            self._tracker, self._size = seeing.make_tracker(self._rate(frame)), size
            self._first_id = self._last_id
        boxes, scores = seeing.detect(frame.image)
        tracks = self._tracker.update(boxes, scores, frame.seconds)
        moment = Moment(seconds=frame.seconds, wall=frame.wall, uncertainty=frame.uncertainty)
        with self._lock:
            for track in tracks:
                self._last_id = max(self._last_id, self._number(track))
                followed = self._followed.setdefault(str(self._number(track)), _Followed(moment, moment))
                followed.last, followed.changed = moment, True
        self._recognise(seeing, frame, self._due(tracks, frame.seconds))
        with self._lock:
            sightings = tuple(self._sighting(track) for track in tracks)
            for name, one in list(self._followed.items()):
                if frame.seconds - one.last.seconds > TRACK_MEMORY_SECONDS and not one.changed:
                    del self._followed[name]
        self.view = CameraView(
            number=frame.number, image=frame.image, seconds=frame.seconds, wall=frame.wall, sightings=sightings
        )
        return moment, sightings, size

    def changed_tracks(self) -> tuple[list[TrackRecord], dict[tuple[str, str], bytes]]:
        """Tracks that changed since the last call, for the store, and new thumbnails by camera and track."""
        records, thumbnails = [], {}
        for name, one in self._followed.items():
            if not one.changed:
                continue
            one.changed = False
            records.append(
                TrackRecord(
                    camera=self.config.name,
                    track=name,
                    first=one.first.wall,
                    last=one.last.wall,
                    uncertainty=one.last.uncertainty,
                    identity=one.identity,
                    state=one.state,
                    probability=one.probability,
                    visibility=one.visibility,
                )
            )
            if one.thumbnail is not None:
                thumbnails[self.config.name, name] = one.thumbnail
                one.thumbnail = None
        return records, thumbnails

    def rename(self, identity: str, into: str, track: str | None = None) -> None:
        """Call an identity by another one's name, on one track or on all."""
        for name, one in self._followed.items():
            if one.identity == identity and track in (None, name):
                one.identity, one.changed = into, True
                if track is None:
                    one.previous_ids = (*one.previous_ids, identity)

    def forget(self, identity: str) -> None:
        """Know nothing of the tracks of an identity any more, and take the picture with it off the page."""
        self._followed = {name: one for name, one in self._followed.items() if one.identity != identity}
        if self.view is not None and any(one.identity == identity for one in self.view.sightings):
            self.view = None

    def _number(self, track: SeenTrack) -> int:
        """A number that no other track of this camera has had, whichever tracker gave its id."""
        return self._first_id + int(track.id)

    def _rate(self, frame: CameraFrame) -> float:
        """Frames a second that the tracker will get."""
        if self.source.live:
            return self.source.status().rate or DEFAULT_RATE
        ahead = self.source.peek()
        apart = ahead.seconds - frame.seconds if ahead is not None else 0.0
        return 1.0 / (apart * self.config.every) if apart > 0 else DEFAULT_RATE

    def _due(self, tracks: Iterable[SeenTrack], seconds: float) -> list[SeenTrack]:
        """The tracks whose turn it is to be embedded, those that waited longest first."""
        due = []
        for track in tracks:
            followed = self._followed[str(self._number(track))]
            waited = seconds - followed.embedded
            tall = float(track.box[3] - track.box[1]) >= SMALLEST
            if tall and (followed.crops < FIRST_CROPS or waited >= EMBED_SECONDS):
                due.append((-waited, track))
        due.sort(key=lambda pair: pair[0])
        return [track for _, track in due[:CROPS_A_FRAME]]

    def _recognise(self, seeing: Seeing, frame: CameraFrame, tracks: list[SeenTrack]) -> None:
        """Embed the crops of tracks and ask who they are."""
        if not tracks:
            return
        embedded = seeing.engine.embed(frame.image, np.array([track.box for track in tracks], np.float64))
        with self._lock:
            for row, number in enumerate(embedded.rows.tolist()):
                track = tracks[number]
                height = float(track.box[3] - track.box[1])
                quality = min(1.0, height / FULL_HEIGHT) * float(track.score)
                decision = seeing.identities.observe(
                    frame.camera,
                    self._number(track),
                    frame.seconds,
                    embedded.features[row : row + 1],
                    embedded.masks[row : row + 1],
                    embedded.visibility[row : row + 1],
                    np.array([quality], np.float32),
                )
                followed = self._followed.get(str(self._number(track)))
                if followed is None:  # it was forgotten meanwhile
                    continue
                followed.crops += 1
                followed.embedded = frame.seconds
                followed.state, followed.identity = decision.state, decision.identity
                followed.probability = decision.probability
                followed.previous_ids = tuple(decision.previous_ids)
                seen = float(embedded.visibility[row])
                followed.visibility = max(followed.visibility or 0.0, seen)
                if self._thumbnails and quality * seen > 1.2 * followed.best:
                    followed.best, followed.thumbnail = quality * seen, _thumbnail(frame.image, track.box)

    def _sighting(self, track: SeenTrack) -> Sighting:
        name = str(self._number(track))
        x0, y0, x1, y1 = (float(value) for value in track.box)
        followed = self._followed.get(name)
        if followed is None:
            return Sighting(track=name, box=(x0, y0, x1, y1))
        return Sighting(
            track=name,
            box=(x0, y0, x1, y1),
            identity=followed.identity,
            state=followed.state,
            probability=followed.probability,
            previous_ids=followed.previous_ids,
        )


def _thumbnail(image: NDArray[np.uint8], box: NDArray) -> bytes | None:
    """JPEG of a crop, THUMBNAIL_HEIGHT high at most."""
    height, width = image.shape[:2]
    x0, y0 = (max(0, int(value)) for value in box[:2])
    x1, y1 = min(width, int(box[2]) + 1), min(height, int(box[3]) + 1)
    crop = image[y0:y1, x0:x1]
    if 0 in crop.shape:
        return None
    if crop.shape[0] > THUMBNAIL_HEIGHT:
        wide = max(1, round(crop.shape[1] * THUMBNAIL_HEIGHT / crop.shape[0]))
        crop = np.asarray(cv2.resize(crop, (wide, THUMBNAIL_HEIGHT), interpolation=cv2.INTER_AREA), np.uint8)
    good, data = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, 85])
    return data.tobytes() if good else None
