"""Follow people from frame to frame by where they are: boxes in, tracks with ids out.

    tracker = Tracker(frame_rate=10)
    for seconds, frame in video:
        for track in tracker.update(*detector(frame), seconds):
            print(track.id, track.box)

Each track predicts where its person is now: a Kalman filter of constant velocity for the centre, a running mean for the
size. Predictions and boxes are paired so that the sum of their likenesses is largest, in two rounds: confident boxes
first, then the tracks of the last frame with the faint ones, as people half hidden give them (ByteTrack, arXiv
2110.06864). Before they are compared both are grown (C-BIoU, arXiv 2211.14317), and the more, the less certain the
prediction is: whoever was hidden for a second is looked for in a wider place. The likeness of a pair is

    IoU of the grown boxes · exp(−½ distance of the centres / height) · lower height / greater height

All lengths are in heights of the person, and all times in seconds, so that neither the size of the picture nor the
frame rate changes what a parameter means.

n tracks · m boxes (m, 4) x0 y0 x1 y1 in pixels
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpm_edge.errors import DataError
from dpm_edge.watch.overlap import assign, iou

BUFFER = 0.3
"""Share of width and height by which boxes are grown on each side, when the prediction is certain."""
DISTANCE_WEIGHT = 0.5
LEAST_CONFIDENT, LEAST_FAINT, LEAST_NEW = 0.05, 0.3, 0.2
"""Likeness that a pair must reach: with a confident box, with a faint one, and while the track is not confirmed."""
NOISE = 0.06
"""Standard deviation of a detected centre, in heights."""
ACCELERATION = 0.2
"""Spread of the speed after one second, in heights a second."""
FIRST_SPEED = 1.0
"""Standard deviation of a new track's speed, in heights a second."""
SIZE_GAIN = 0.1
"""Weight of a new box in the running mean of the size."""
EDGE = 0.01
"""A box is at the picture's edge when it is nearer to it than this share of the picture."""


@dataclass
class Track:
    """One person, followed without interruption."""

    id: int
    """From 1 on; a tracker gives none twice."""
    box: NDArray[np.float32]
    """(4,) float32 x0 y0 x1 y1 in pixels, of the last detection."""
    score: float
    """Of that detection."""
    start: float
    """Seconds of the first detection."""
    last: float
    """Seconds of the last detection."""
    row: int
    """Place of that detection among the boxes that `update` was given."""
    hits: int = 1
    """Detections so far."""
    confirmed: bool = False
    """Whether it has had enough detections to be a person."""
    _centre: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2), repr=False)
    _speed: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2), repr=False)
    _size: NDArray[np.float64] = field(default_factory=lambda: np.zeros(2), repr=False)
    _variance: tuple[float, float, float] = field(default=(NOISE**2, 0.0, FIRST_SPEED**2), repr=False)
    """Of the centre, of centre and speed together, of the speed; in heights and seconds, the same for x and y."""

    @property
    def age(self) -> float:
        """Seconds from the first to the last detection."""
        return self.last - self.start

    def _predict(self, seconds: float) -> None:
        """Move on by so many seconds: constant velocity, disturbed by white acceleration."""
        a, b, c = self._variance
        q = ACCELERATION**2
        self._centre = self._centre + self._speed * seconds
        self._variance = (
            a + 2 * b * seconds + c * seconds**2 + q * seconds**3 / 3,
            b + c * seconds + q * seconds**2 / 2,
            c + q * seconds,
        )

    def _correct(self, box: NDArray[np.float64], score: float, seconds: float, row: int) -> None:
        """Take in a detection."""
        a, b, c = self._variance
        error = (box[:2] + box[2:]) / 2 - self._centre
        gain, speed_gain = a / (a + NOISE**2), b / (a + NOISE**2)
        self._centre, self._speed = self._centre + gain * error, self._speed + speed_gain * error
        self._variance = (a * (1 - gain), b * (1 - gain), c - speed_gain * b)
        self._size = self._size + SIZE_GAIN * (box[2:] - box[:2] - self._size)
        self.box, self.score, self.last, self.row = box.astype(np.float32), score, seconds, row
        self.hits += 1


class Tracker:
    """Gives the boxes of one camera's frames to tracks. Not for several threads at once."""

    def __init__(
        self,
        *,
        frame_rate: float = 10.0,
        confident: float = 0.55,
        faint: float = 0.25,
        new: float = 0.65,
        memory: float = 2.0,
        edge_memory: float = 1.0,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        """Begin without tracks.

        Args:
            frame_rate: frames per second. With it go the detections that confirm a track (0.4 s of them, 3 to 6), and
                the time of frames for which `update` is given none.
            confident: score from which a box may continue any track.
            faint: score from which a box may continue a track of the last frame.
            new: score from which a box may begin a track. The three scores fit the detector that ships.
            memory: seconds after which a track that has no box ends.
            edge_memory: the same, for a track whose last box was at the picture's edge: its person has left.
            frame_size: width and height of the picture in pixels; None learns them from the boxes.

        Raises:
            DataError: an argument is out of range.
        """
        if not (math.isfinite(frame_rate) and frame_rate > 0):
            raise DataError(f"expected a frame rate above 0, got {frame_rate}. Give the camera's frames per second")
        if not 0 <= faint <= confident <= new <= 1:
            raise DataError(
                f"expected scores 0 <= faint <= confident <= new <= 1, got {faint}, {confident} and {new}. "
                "Leave them out for those of the detector that ships"
            )
        if not (memory > 0 and edge_memory > 0):
            raise DataError(f"expected a memory above 0 seconds, got {memory} and {edge_memory} at the edge")
        self.confident, self.faint, self.new = confident, faint, new
        self.memory, self.edge_memory = memory, edge_memory
        self.frame_rate = frame_rate
        self.tracks: list[Track] = []
        """Every track that has not ended, also those without a box in the last frame and those not confirmed."""
        self.ended: list[Track] = []
        """The confirmed tracks that ended with the last `update`."""
        self._extent = np.array(frame_size if frame_size else (0, 0), np.float64)
        self._learns_extent = frame_size is None
        self._now: float | None = None
        self._count = 0

    def update(self, boxes: ArrayLike, scores: ArrayLike, seconds: float | None = None) -> list[Track]:
        """Take the boxes of the next frame.

        Args:
            boxes: (m, 4) x0 y0 x1 y1 in pixels; m may be 0.
            scores: (m,) in 0..1.
            seconds: when the frame was taken, by a clock that rises; None: 1 / frame_rate after the last.

        Returns:
            The confirmed tracks that have a box in this frame, by id. `Track.row` says which box. They are the
            tracker's own objects, and change with the next frame.

        Raises:
            DataError: the arrays do not fit each other or are not finite, or the time does not rise. Nothing changed.
        """
        found, confidence = _checked(boxes, scores)
        if seconds is None:
            seconds = 0.0 if self._now is None else self._now + 1 / self.frame_rate
        if not math.isfinite(seconds) or (self._now is not None and seconds <= self._now):
            raise DataError(
                f"expected a time after {self._now} seconds, got {seconds}. Give the frames in order, timed by a clock "
                "that never goes back (time.monotonic), or make a new Tracker"
            )
        before, self._now = self._now, float(seconds)
        for track in self.tracks:
            track._predict(self._now - (self._now if before is None else before))
        if self._learns_extent and len(found):
            self._extent = np.maximum(self._extent, found[:, 2:].max(0))
        for track, row in self._pairs(found, confidence, before):
            track._correct(found[row], float(confidence[row]), self._now, row)
            track.confirmed |= track.hits >= self.confirm
        self._end()
        taken = {track.row for track in self.tracks if track.last == self._now}
        for row in map(int, np.flatnonzero(confidence >= self.new)):
            if row not in taken:
                self._begin(found[row], float(confidence[row]), row)
        return [track for track in self.tracks if track.confirmed and track.last == self._now]

    @property
    def frame_rate(self) -> float:
        """Frames per second that `update` gets; it may change."""
        return self._frame_rate

    @frame_rate.setter
    def frame_rate(self, rate: float) -> None:
        self._frame_rate = rate
        self.confirm = min(max(round(0.4 * rate), 3), 6)

    def predict(self, seconds: float) -> list[Track]:
        """Where people are in a frame that no detector has looked at, by their motion alone; the tracks do not change.

        Args:
            seconds: when the frame was taken, after the last that `update` was given.

        Returns:
            Copies of the tracks that the last `update` returned, with boxes at `seconds`.

        Raises:
            DataError: the time is before that frame.
        """
        if self._now is None:
            return []
        if not (math.isfinite(seconds) and seconds >= self._now):
            raise DataError(f"expected a time from {self._now} seconds on, got {seconds}. Give the frames in order")
        moved = []
        for track in self.tracks:
            if track.confirmed and track.last == self._now:
                shift = np.tile(track._speed * (seconds - self._now), 2)
                moved.append(replace(track, box=(track.box + shift).astype(np.float32)))
        return moved

    def finish(self) -> list[Track]:
        """End every track, and return the confirmed ones."""
        self.ended = [track for track in self.tracks if track.confirmed]
        self.tracks = []
        return self.ended

    def _pairs(
        self, boxes: NDArray[np.float64], scores: NDArray[np.float64], before: float | None
    ) -> list[tuple[Track, int]]:
        """Which track continues with which box."""
        confident = np.flatnonzero(scores >= self.confident)
        faint = np.flatnonzero((scores >= self.faint) & (scores < self.confident))
        confirmed = [track for track in self.tracks if track.confirmed]
        first = _pair(confirmed, boxes, confident, LEAST_CONFIDENT)
        with_box = {track.id for track, _ in first}
        recent = [track for track in confirmed if track.id not in with_box and track.last == before]
        second = _pair(recent, boxes, faint, LEAST_FAINT)
        used = {row for _, row in first}
        rest = np.array([row for row in confident if row not in used], np.int64)
        third = _pair([track for track in self.tracks if not track.confirmed], boxes, rest, LEAST_NEW)
        return first + second + third

    def _begin(self, box: NDArray[np.float64], score: float, row: int) -> None:
        assert self._now is not None, "update has set it"
        self._count += 1
        track = Track(self._count, box.astype(np.float32), score, self._now, self._now, row)
        track._centre, track._size = (box[:2] + box[2:]) / 2, box[2:] - box[:2]
        self.tracks.append(track)

    def _end(self) -> None:
        """Part with tracks that were without a box for too long; an unconfirmed one may miss no frame."""
        alive: list[Track] = []
        self.ended = []
        for track in self.tracks:
            assert self._now is not None, "update has set it"
            wait = 0.0 if not track.confirmed else self.memory
            if track.confirmed and self._at_edge(track):
                wait = min(wait, self.edge_memory)
            if self._now - track.last <= wait:
                alive.append(track)
            elif track.confirmed:
                self.ended.append(track)
        self.tracks = alive

    def _at_edge(self, track: Track) -> bool:
        margin = EDGE * self._extent
        return bool((track.box[:2] <= margin).any() or (track.box[2:] >= self._extent - margin).any())


def _pair(
    tracks: list[Track], boxes: NDArray[np.float64], rows: NDArray[np.int64], least: float
) -> list[tuple[Track, int]]:
    """The pairs of tracks and some of the boxes with the largest sum of likenesses, each at least `least`."""
    if not tracks or not len(rows):
        return []
    likeness = _likeness(tracks, boxes[rows])
    which, where = assign(np.where(likeness >= least, -likeness, 1.0))
    return [(tracks[i], int(rows[j])) for i, j in zip(which, where) if likeness[i, j] >= least]


def _likeness(tracks: Sequence[Track], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, m) in 0..1 of predictions and boxes."""
    centre, size = (np.stack([getattr(track, name) for track in tracks]) for name in ("_centre", "_size"))
    uncertain = np.array([math.sqrt(track._variance[0]) for track in tracks])
    grow = BUFFER + 4 * np.maximum(uncertain - NOISE, 0)
    other = boxes[:, 2:] - boxes[:, :2]
    height = np.maximum(size[:, 1], 1e-6)
    distance = np.linalg.norm(centre[:, None] - (boxes[None, :, :2] + boxes[None, :, 2:]) / 2, axis=-1)
    ratio = height[:, None] / np.maximum(other[None, :, 1], 1e-6)
    half = size / 2 + grow[:, None] * size
    grown = np.concatenate([centre - half, centre + half], axis=1)
    margin = grow[:, None, None] * other[None]
    around = np.concatenate([boxes[None, :, :2] - margin, boxes[None, :, 2:] + margin], axis=2)
    shared = np.stack([iou(grown[i : i + 1], around[i])[0] for i in range(len(tracks))])
    return shared * np.exp(-DISTANCE_WEIGHT * distance / height[:, None]) * np.minimum(ratio, 1 / ratio)


def _checked(boxes: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Boxes (m, 4) and scores (m,) as float64.

    Raises:
        DataError: they are something else.
    """
    try:
        found, confidence = np.asarray(boxes, np.float64), np.asarray(scores, np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"expected boxes (m, 4) and scores (m,), got no numbers ({error})") from error
    if found.size == 0 and confidence.size == 0:
        return np.zeros((0, 4)), np.zeros(0)
    if found.ndim != 2 or found.shape[1] != 4:
        raise DataError(f"expected (m, 4) boxes in pixels, got {found.shape}. Pass x0 y0 x1 y1")
    if confidence.shape != found.shape[:1]:
        raise DataError(f"expected a score for each of {len(found)} boxes, got {confidence.shape}")
    if not (np.isfinite(found).all() and np.isfinite(confidence).all()):
        raise DataError("expected finite boxes and scores, got NaN or infinity. Leave such boxes out")
    empty = np.flatnonzero((found[:, 2:] <= found[:, :2]).any(1))
    if len(empty):
        raise DataError(
            f"expected boxes with x0 < x1 and y0 < y1, got {found[empty[0]].tolist()} in row {empty[0]}. Leave empty "
            "boxes out, or turn x y width height into corners"
        )
    return found, confidence
