"""One camera: its frames become people with identities.

This file and `seeing.py` alone touch the detector, the trackers and the identities.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.opencv import cv2
from dpm_edge.watch.drift_watch import DriftWatch
from dpm_edge.watch.records import TrackRecord
from dpm_edge.watch.rules import Moment, Sighting
from dpm_edge.watch.seeing import DecidedTrack, FollowsBoxes, Seeing, SeenTrack
from dpm_edge.watch.sharpness import sharpness
from dpm_edge.watch.site_config import CameraConfig
from dpm_edge.watch.sources import CameraFrame, Source
from dpm_edge.watch.vectors import vector_json

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
DEFAULT_RATE = 10.0
"""Frames a second of a camera that has not shown its own yet."""
THUMBNAIL_HEIGHT = 160
TRACK_MEMORY_SECONDS = 30.0
"""A track that was not seen for so long is no longer followed here."""


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
    change: str = ""
    """How its identity changed last: merged, split, or not."""
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    ended: bool = False
    vector: dict[str, Any] | None = None
    """What it looked like when it ended, where vectors are wanted."""

    def take(self, decision: DecidedTrack) -> None:
        """Take over what was decided about it."""
        self.changed |= (self.state, self.identity) != (decision.state, decision.identity)
        self.state, self.identity = decision.state, decision.identity
        self.probability, self.previous_ids = decision.probability, tuple(decision.previous_ids)

    def sighting(self, name: str) -> Sighting:
        """What the rules need of it."""
        return Sighting(
            track=name,
            box=self.box,
            identity=self.identity,
            state=self.state,
            probability=self.probability,
            previous_ids=self.previous_ids,
            change=self.change,
        )


@dataclass(frozen=True, kw_only=True)
class Looked:
    """What a frame showed."""

    moment: Moment
    sightings: tuple[Sighting, ...]
    size: tuple[int, int]
    """Height and width of the frame."""
    final: tuple[Sighting, ...]
    """Tracks that have ended, with what was finally decided about them."""
    detector_seconds: float | None
    """Seconds that the detector took; None where it did not look."""


class CameraPipeline:
    """One camera: its source, its tracker, and what is known of its tracks.

    Args:
        config: the camera.
        source: gives its frames.
        thumbnails: make a small picture of each track's best crop.
        run: begins the names of tracks, so that those of several runs differ.
        drift: is given the features of each track.
        lock: held while tracks and identities change; the page reads them.
        vectors: remember what ended tracks looked like, for `vector`.
    """

    def __init__(
        self, config: CameraConfig, source: Source, *, thumbnails: bool, run: str, drift: DriftWatch,
        lock: AbstractContextManager, vectors: bool = False,
    ) -> None:  # fmt: skip
        self.config, self.source = config, source
        self.view: CameraView | None = None
        self.taken = self.processed = self.failures = 0
        self.latency = self.turn = 0.0
        self.message = ""
        self.lost_since: float | None = None
        self._thumbnails, self._vectors, self._run, self._drift, self._lock = thumbnails, vectors, run, drift, lock
        self._tracker: FollowsBoxes | None = None
        self._size = (0, 0)
        self._first_id = self._last_id = 0
        self._every = self._unlooked = 0
        self._followed: dict[str, _Followed] = {}

    def look_at(self, seeing: Seeing, frame: CameraFrame, every: int = 1) -> Looked:
        """Find, follow and recognise the people of a frame.

        Args:
            seeing: what looks.
            frame: this camera's next one.
            every: detect people in every n-th frame only; between, they are where their motion brings them.
        """
        size = (frame.image.shape[0], frame.image.shape[1])
        ended: list[str] = []
        if self._tracker is None or size != self._size:  # a camera that changes its size is looked at anew
            ended += [name for name, one in self._followed.items() if not one.ended]
            self._tracker, self._size = seeing.make_tracker(self._rate(frame)), size
            self._first_id, self._every, self._unlooked = self._last_id, 1, every
        if every != self._every:
            self._tracker.frame_rate, self._every = self._tracker.frame_rate * self._every / every, every
        took = None
        if self._unlooked >= every - 1:
            begin = time.monotonic()
            boxes, scores = seeing.detect(frame.image)
            took, self._unlooked = time.monotonic() - begin, 0
            tracks = self._tracker.update(boxes, scores, frame.seconds)
            ended += [self._name(track) for track in self._tracker.ended]
        else:
            self._unlooked += 1
            tracks = self._tracker.predict(frame.seconds)
        moment = Moment(seconds=frame.seconds, wall=frame.wall, uncertainty=frame.uncertainty)
        with self._lock:
            for track in tracks:
                self._last_id = max(self._last_id, self._first_id + int(track.id))
                followed = self._followed.setdefault(self._name(track), _Followed(moment, moment))
                x0, y0, x1, y1 = (float(value) for value in track.box)
                followed.last, followed.changed, followed.box = moment, True, (x0, y0, x1, y1)
        if took is not None:  # a crop where somebody may be would tell nothing
            self._recognise(seeing, frame, self._due(tracks, frame.seconds))
        with self._lock:
            final = self._end(seeing, ended)
            for change in seeing.identities.changes(frame.camera):
                if change.track in self._followed:
                    self._followed[change.track].change = change.kind
            sightings = tuple(self._sighting(seeing, self._name(track), track.box) for track in tracks)
            for name, one in list(self._followed.items()):
                if frame.seconds - one.last.seconds > TRACK_MEMORY_SECONDS and one.ended and not one.changed:
                    del self._followed[name]
        self.view = CameraView(
            number=frame.number, image=frame.image, seconds=frame.seconds, wall=frame.wall, sightings=sightings
        )
        return Looked(moment=moment, sightings=sightings, size=size, final=final, detector_seconds=took)

    def end_tracks(self, seeing: Seeing) -> tuple[Sighting, ...]:
        """End every track, because no frame comes any more; what was finally decided about each."""
        with self._lock:
            self._tracker = None
            self._first_id = self._last_id
            return self._end(seeing, [name for name, one in self._followed.items() if not one.ended])

    def _end(self, seeing: Seeing, names: Iterable[str]) -> tuple[Sighting, ...]:
        final = []
        for name in names:
            followed = self._followed.get(name)
            if followed is None or followed.ended:
                continue
            followed.vector = self.vector(seeing, name) if self._vectors else None
            followed.ended = True
            decision = seeing.identities.end(self.config.name, name)
            if decision is not None:
                followed.take(decision)
                final.append(followed.sighting(name))
        return tuple(final)

    def vector(self, seeing: Seeing, name: str) -> dict[str, Any] | None:
        """What a track looks like, as JSON types, from all it has shown; None where it has shown nothing clear."""
        followed = self._followed.get(name)
        if followed is None or followed.ended:
            return None if followed is None else followed.vector
        row = seeing.identities.pooled(self.config.name, name)
        return None if row is None else vector_json(row)

    def status(self) -> dict[str, Any]:
        """How the camera is, as JSON types."""
        source, drift = self.source.status(), self._drift.found.get(self.config.name)
        return {
            "camera": self.config.name,
            "address": source.address,
            "state": source.state,
            "message": self.message or source.message or self._drift.message(self.config.name),
            "live": self.source.live,
            "frames": source.frames,
            "total": source.total,
            "dropped": source.dropped,
            "processed": self.processed,
            "reconnects": source.reconnects,
            "rate": round(source.rate, 2),
            "width": source.width,
            "height": source.height,
            "silent_s": round(source.silent, 1),
            "clock_offset_s": None if source.clock_offset is None else round(source.clock_offset, 3),
            "latency_s": round(self.latency, 3),
            "people": len(self.view.sightings) if self.view else 0,
            "detect_every": max(1, self._every),
            "drift": None if drift is None else round(drift.drift, 3),
        }

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

    def _name(self, track: SeenTrack) -> str:
        """A name that no other track of this camera has had, whichever tracker and run gave its id."""
        return f"{self._run}{self._first_id + int(track.id)}"

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
            followed = self._followed[self._name(track)]
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
                self._drift.add(frame.camera, self._name(track), embedded.features[row : row + 1])
                height = float(track.box[3] - track.box[1])
                quality = min(1.0, height / FULL_HEIGHT) * float(track.score)
                if embedded.visibility is None:
                    quality *= sharpness(frame.image, track.box)
                decision = seeing.identities.observe(
                    frame.camera,
                    self._name(track),
                    frame.seconds,
                    embedded.features[row : row + 1],
                    embedded.masks[row : row + 1],
                    None if embedded.visibility is None else embedded.visibility[row : row + 1],
                    np.array([quality], np.float32),
                )
                followed = self._followed.get(self._name(track))
                if followed is None:  # it was forgotten meanwhile
                    continue
                followed.crops += 1
                followed.embedded = frame.seconds
                followed.take(decision)
                seen = float(embedded.weight[row])
                if embedded.visibility is not None:
                    followed.visibility = max(followed.visibility or 0.0, seen)
                if self._thumbnails and quality * seen > 1.2 * followed.best:
                    followed.best, followed.thumbnail = quality * seen, _thumbnail(frame.image, track.box)

    def _sighting(self, seeing: Seeing, name: str, box: NDArray) -> Sighting:
        """Who a track of this frame is, as of now."""
        followed = self._followed.get(name)
        if followed is None:  # it was forgotten meanwhile
            x0, y0, x1, y1 = (float(value) for value in box)
            return Sighting(track=name, box=(x0, y0, x1, y1))
        decision = seeing.identities.decision(self.config.name, name)
        if decision is not None:
            followed.take(decision)
        return followed.sighting(name)


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
