"""Who is it? Tracks come and go; each new one is compared with the people whose tracks have ended.

A track's first crops are averaged, weighted by their visibility, into one feature and one mask (D,). It is matched
against the finished tracks under the masked metric, people who are in the picture at that moment left out: nobody is
in two places at once. Scores are shares of what the track scores against itself (the masked similarity of a feature
with itself is below 1), so that 1 is the same feature. A track with too few crops is nobody: a detector's slip.

How high a score must be to mean the same person depends on the model and the scene. People who are in the picture
together are surely different, so their scores say what strangers score here: the threshold is high among those.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery import Gallery
from dpm_edge.metrics import normalise, similarity
from dpm_edge.runtime import Embeddings

LEAST_CROPS = 3
"""A track is decided on at least this many crops."""
STRANGERS, LEAST_STRANGERS = 0.95, 10
"""The threshold is this quantile of strangers' scores, once there are so many of them."""
FIRST_THRESHOLD = 0.9
"""The threshold until then."""


@dataclass
class Track:
    """One uninterrupted appearance."""

    name: str
    first: int
    """First frame."""
    last: int
    """Last frame so far."""
    crops: list[tuple[NDArray[np.float32], NDArray[np.float32], float]] = field(default_factory=list)
    """(feature (D,), mask (D,), visibility) of each embedded crop."""
    person: str | None = None
    """Who it is, once that is decided."""
    similarity: float | None = None
    """Score of the person's nearest earlier track, 1 being the same feature; None for somebody new."""
    ended: bool = False

    @property
    def visibility(self) -> float:
        """Mean over the crops."""
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

    def see(self, frame: int, names: list[str], embedded: Embeddings | None) -> None:
        """Tracks `names` stand in `frame`; `embedded` holds some of their crops, `rows` pointing into `names`."""
        for name in names:
            track = self.tracks.get(name)
            if track is None or track.ended:
                track = self.tracks[name] = self._begin(name, frame)
            track.last = frame
        if embedded is not None:
            for i, row in enumerate(embedded.rows):
                crop = embedded.features[i], embedded.masks[i], float(embedded.visibility[i])
                self.tracks[names[row]].crops.append(crop)
        self._end([t for t in self._open() if frame - t.last > self._end_after])
        for track in self._open():
            if track.person is None and len(track.crops) >= LEAST_CROPS and frame - track.first >= self._decide_after:
                self._decide(track)

    def finish(self) -> None:
        """The video is over: end every track."""
        self._end(self._open())

    def _begin(self, name: str, frame: int) -> Track:
        """A new track; an ended one of the same name is kept under name#1, name#2, …"""
        if name in self.tracks:
            past = sum(key.startswith(f"{name}#") for key in self.tracks)
            self.tracks[f"{name}#{past + 1}"] = self.tracks[name]
        return Track(name, frame, frame)

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
        found = self._gallery.search(mean, max(1, len(self._gallery)))
        for person, score in zip(found.people[0], found.similarity[0] / to_itself):
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
            visibility=np.array([track.visibility]),
            rows=np.zeros(1, np.int64),
            fingerprint=self._gallery.fingerprint,
        )
