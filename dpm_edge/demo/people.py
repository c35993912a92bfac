"""The people of a video: found by movement, followed by overlap, recognised when they come back.

Finding. OpenCV 5 has no people detector left (HOG went), so whatever moves before a camera that stands still is taken
for a person: a guess. Whoever has a detector gives its boxes instead. Tracks are boxes that overlap.

Recognising. Tracks come and go; each new one is compared with the people whose tracks have ended.

A track's first crops are averaged, weighted by their visibility, into one feature and one mask (D,). It is matched
against the finished tracks under the masked metric, people who are in the picture at that moment left out: nobody is
in two places at once. Scores are shares of what the track scores against itself (the masked similarity of a feature
with itself is below 1), so that 1 is the same feature. A track with too few crops is nobody: a detector's slip.

How high a score must be to mean the same person depends on the model and the scene. People who are in the picture
together are surely different, so their scores say what strangers score here: the threshold is high among those.

n detections · boxes (n, 4) float xyxy pixels · D features
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge import shipped
from dpm_edge.errors import CheckpointError, DpmError
from dpm_edge.files import sha256
from dpm_edge.gallery import Gallery
from dpm_edge.manifest import PORTABLE, Manifest
from dpm_edge.metrics import normalise, similarity
from dpm_edge.opencv import cv2
from dpm_edge.progress import say
from dpm_edge.runtime import Embeddings, Engine

Boxes = NDArray[np.float64]
Detector = Callable[[NDArray[np.uint8]], Boxes]

SMALLEST = 40
"""Rows of pixels below which a detection is too small to recognise anybody."""
LEAST_CROPS = 3
"""A track is decided on at least this many crops."""
STRANGERS, LEAST_STRANGERS = 0.95, 10
"""The threshold is this quantile of strangers' scores, once there are so many of them."""
FIRST_THRESHOLD = 0.9
"""The threshold until then."""


def moving() -> Detector:
    """Make a finder of what moves before a still background and is tall as a person is; frames come in order."""
    still = cv2.createBackgroundSubtractorMOG2(history=200, varThreshold=32, detectShadows=True)
    close = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 13))

    def find(frame: NDArray[np.uint8]) -> Boxes:
        moved = (still.apply(frame) == 255).astype(np.uint8)
        moved = cv2.morphologyEx(cv2.medianBlur(moved, 5), cv2.MORPH_CLOSE, close)
        _, _, stats, _ = cv2.connectedComponentsWithStats(moved)
        x, y, w, h, area = stats[1:].T.astype(np.float64)
        tall = (h >= SMALLEST) & (h > 1.3 * w) & (h < 5 * w) & (area > 0.3 * w * h) & (h < 0.9 * frame.shape[0])
        return np.stack([x, y, x + w, y + h], axis=1)[tall]

    return find


def overlap(a: Boxes, b: Boxes) -> NDArray[np.float64]:
    """Compute the intersection over union of each pair, (len(a), len(b))."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(-1)
    area = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    return inside / np.maximum(area[0][:, None] + area[1][None] - inside, 1e-9)


class Tracker:
    """Follows boxes: a box that overlaps a track's last one enough, within `patience` frames, continues that track."""

    def __init__(self, patience: int, least_overlap: float = 0.3) -> None:
        self._patience, self._least = patience, least_overlap
        self._last: dict[str, tuple[int, NDArray[np.float64]]] = {}
        self._count = 0

    def follow(self, frame: int, boxes: Boxes) -> list[str]:
        """Give each box its track's id; the best overlaps are given away first."""
        alive = {t: box for t, (at, box) in self._last.items() if frame - at <= self._patience}
        ids: list[str | None] = [None] * len(boxes)
        if alive and len(boxes):
            tracks = list(alive)
            shared = overlap(boxes, np.stack([alive[t] for t in tracks]))
            for flat in np.argsort(-shared, axis=None):
                i, j = divmod(int(flat), len(tracks))
                if shared[i, j] < self._least:
                    break
                if ids[i] is None and tracks[j] not in ids:
                    ids[i] = tracks[j]
        given = []
        for i, track in enumerate(ids):
            if track is None:
                self._count += 1
                track = str(self._count)
            self._last[track] = (frame, boxes[i])
            given.append(track)
        return given


@dataclass
class Track:
    """One uninterrupted appearance."""

    id: str
    first: int
    """First frame."""
    last: int
    """Last frame so far."""
    crops: list[tuple[NDArray[np.float32], NDArray[np.float32], float]] = field(default_factory=list)
    """(feature (D,), mask (D,), weight: its visibility, or 1) of each embedded crop."""
    has_masks: bool = True
    """Whether the model has masks and a visibility."""
    person: str | None = None
    """Who it is, once that is decided."""
    similarity: float | None = None
    """Score of the person's nearest earlier track, 1 being the same feature; None for somebody new."""
    ended: bool = False

    @property
    def visibility(self) -> float | None:
        """Mean over the crops; None of a model without one."""
        if not self.has_masks:
            return None
        return float(np.mean([v for _, _, v in self.crops])) if self.crops else 0.0


class Identities:
    """Decides who each track is. Times are in frames."""

    def __init__(
        self, fingerprint: str, dimension: int, *, threshold: float | None, decide_after: int, end_after: int
    ) -> None:
        """A track is decided after `decide_after` frames, or when it ends: unseen for `end_after` frames.

        threshold: least score, 1 being the same feature, to be somebody who was seen before; None takes it from the
        people who are seen together.
        """
        self._gallery = Gallery(fingerprint, dimension)
        self._given, self._decide_after, self._end_after = threshold, decide_after, end_after
        self._strangers: list[float] = []
        self.tracks: dict[str, Track] = {}
        self.people: list[str] = []

    @property
    def threshold(self) -> float:
        """The least score, as things stand, to be somebody who was seen before."""
        if self._given is not None:
            return self._given
        if len(self._strangers) < LEAST_STRANGERS:
            return FIRST_THRESHOLD
        return float(np.quantile(self._strangers, STRANGERS))

    def see(self, frame: int, ids: list[str], embedded: Embeddings | None) -> None:
        """Take note of the tracks `ids` in `frame`; `embedded` has some of their crops, its `rows` point into `ids`."""
        for id in ids:
            track = self.tracks.get(id)
            if track is None or track.ended:
                track = self.tracks[id] = self._begin(id, frame)
            track.last = frame
        if embedded is not None:
            for i, row in enumerate(embedded.rows):
                crop = embedded.features[i], embedded.masks[i], float(embedded.weight[i])
                self.tracks[ids[row]].crops.append(crop)
                self.tracks[ids[row]].has_masks = embedded.has_masks
        self._end([t for t in self._open() if frame - t.last > self._end_after])
        for track in self._open():
            if track.person is None and len(track.crops) >= LEAST_CROPS and frame - track.first >= self._decide_after:
                self._decide(track)

    def finish(self) -> None:
        """The video is over: end every track."""
        self._end(self._open())

    def _begin(self, id: str, frame: int) -> Track:
        """A new track; an ended one of the same id is kept under id#1, id#2, …"""
        if id in self.tracks:
            past = sum(key.startswith(f"{id}#") for key in self.tracks)
            self.tracks[f"{id}#{past + 1}"] = self.tracks[id]
        return Track(id, frame, frame)

    def _open(self) -> list[Track]:
        """Tracks that have not ended."""
        return [t for t in self.tracks.values() if not t.ended]

    def _end(self, tracks: list[Track]) -> None:
        """Decide what is undecided and let later tracks be matched against these."""
        for track in tracks:
            if len(track.crops) >= LEAST_CROPS:
                if track.person is None:
                    self._decide(track)
                self._gallery.add(self._mean(track), people=[track.person])
            track.ended = True

    def _decide(self, track: Track) -> None:
        """The nearest person who is not in the picture now, or somebody new."""
        others = [t for t in self._open() if t is not track]
        here = {t.person for t in others}
        mean = self._mean(track)
        to_itself = max(float(similarity(mean.features, mean.features, query_masks=mean.masks)[0, 0]), 1e-6)
        for other in others:
            if len(other.crops) >= LEAST_CROPS:
                s = similarity(mean.features, self._mean(other).features, query_masks=mean.masks)
                self._strangers.append(float(s[0, 0]) / to_itself)
        matches = self._gallery.search(mean, max(1, len(self._gallery)))
        for person, score in zip(matches.people[0], matches.similarity[0] / to_itself):
            if person and person not in here:
                if score >= self.threshold:
                    track.person, track.similarity = str(person), float(score)
                break
        if track.person is None:
            self.people.append(f"P{len(self.people) + 1}")
            track.person = self.people[-1]

    def _mean(self, track: Track) -> Embeddings:
        """One row: the crops' features and masks, each weighted by its visibility."""
        weight = np.array([max(v, 1e-3) for _, _, v in track.crops], np.float32)
        weight /= weight.sum()
        feature = normalise(weight @ np.stack([f for f, _, _ in track.crops])[None])
        mask = weight @ np.stack([m for _, m, _ in track.crops])
        return Embeddings(
            features=feature.reshape(1, -1),
            masks=mask.reshape(1, -1),
            visibility=np.array([track.visibility]) if track.has_masks else None,
            rows=np.zeros(1, np.int64),
            fingerprint=self._gallery.fingerprint,
        )


MODEL = shipped.ASSETS / f"{shipped.DEFAULT}.onnx"


def open_engine(out: Path, engine: Path | None, *, quiet: bool) -> Engine:
    """Open the user's engine, or the default one: built into out/engine, or used again where it is there already.

    Raises:
        CheckpointError: the package holds no model.
        DpmError: whatever building or opening raises.
    """
    if engine is not None:
        return Engine.load(engine)
    from dpm_edge.build import build

    folder = out / "engine"
    if not MODEL.is_file():
        raise CheckpointError(f"expected the model that ships at {MODEL}, got nothing. Install dpm-edge again")
    if not _is_of(folder, MODEL):
        if not quiet:
            say(f"building {folder} from the model that ships")
        build(MODEL, folder, backend="openvino", precision="fp32", progress=not quiet)
    return Engine.load(folder)


def _is_of(folder: Path, model: Path) -> bool:
    """Whether `folder` holds a whole engine of exactly this model, for the library that is installed."""
    from dpm_edge.runtime.checks import fits

    try:
        manifest = Manifest.read(folder)
    except DpmError:
        return False
    return not fits(manifest, folder) and manifest.files.get(PORTABLE) == sha256(model)
