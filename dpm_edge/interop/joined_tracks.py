"""Tracks that a tracker broke, joined by what people look like: for trackers that take no embeddings.

A tracker such as roboflow's `trackers` gives a person who was hidden a new id. Here each track keeps the mean of its
embeddings; a new track that resembles one that has ended, and none that is in the picture, takes that one's id.

n detections · D dimensions
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import SpecError
from dpm_edge.metrics import chosen_metric, normalise, similarity
from dpm_edge.runtime.embeddings import Embeddings


@dataclass
class _Track:
    last: int
    """Frame in which it was seen last."""
    count: int = 0
    feature: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    """(D,) sum of features, each times its weight."""
    mask: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    weight: float = 0.0


class JoinedTracks:
    """Gives each track the id of the person whose earlier track it goes on. Call `update` once a frame."""

    def __init__(self, *, threshold: float, least_crops: int = 1, memory: int = 900, metric: str | None = None) -> None:
        """Join what is at least this similar.

        Args:
            threshold: least similarity of two tracks of one person, such as a calibration's threshold. Under masks a
                feature's similarity with itself is below 1.
            least_crops: crops of a new track that are averaged before it is joined; until then it has its own id, so
                that with more than one an id changes once more.
            memory: frames after which a track that ended is forgotten.
            metric: as `Gallery.search` takes it.

        Raises:
            SpecError: the threshold is not in −1..1, or a number is below 1.
        """
        if not -1 <= threshold <= 1 or least_crops < 1 or memory < 1:
            raise SpecError(
                f"expected a threshold in −1..1, and least_crops and memory of 1 or more, got {threshold}, "
                f"{least_crops} and {memory}."
            )
        self._threshold, self._least, self._memory, self._metric = threshold, least_crops, memory, metric
        self._tracks: dict[int, _Track] = {}
        self._names: dict[int, int] = {}
        """A tracker's id → the id that it goes by."""
        self._undecided: set[int] = set()
        self._frame = 0

    def update(self, ids: Iterable[int], embeddings: Embeddings) -> NDArray[np.int64]:
        """Take one frame's tracks, and give the id that each goes by, (n,) int64.

        Args:
            ids: n tracker ids; −1 is no track yet, and stays.
            embeddings: of the same n boxes; `rows` say which of them could be embedded.
        """
        self._frame += 1
        given = [int(one) for one in ids]
        for one in given:
            if one >= 0 and one not in self._names:
                self._names[one] = one
                self._undecided.add(one)
        for place, row in enumerate(embeddings.rows):
            if (one := given[row]) >= 0:
                self._add(self._names[one], embeddings, place)
        here = {self._names[one] for one in given if one >= 0}
        for name in here:
            self._tracks.setdefault(name, _Track(self._frame)).last = self._frame
        for one in [one for one in given if one in self._undecided]:
            track = self._tracks[self._names[one]]
            if track.count >= self._least:
                self._undecided.discard(one)
                self._join(one, here, embeddings.has_masks)
                here.add(self._names[one])
        self._forget()
        return np.array([self._names.get(one, one) for one in given], np.int64)

    def _add(self, name: int, embeddings: Embeddings, place: int) -> None:
        track = self._tracks.setdefault(name, _Track(self._frame))
        weight = max(float(embeddings.weight[place]), 1e-3)
        if not track.count:
            track.feature, track.mask = np.zeros_like(embeddings.features[0]), np.zeros_like(embeddings.masks[0])
        track.feature = track.feature + weight * embeddings.features[place]
        track.mask = track.mask + weight * embeddings.masks[place]
        track.weight += weight
        track.count += 1

    def _join(self, one: int, here: set[int], has_masks: bool) -> None:
        """Let a track go by the id of the ended one that it resembles most, if it does enough."""
        new = self._tracks[one]
        ended = [name for name, track in self._tracks.items() if name not in here and name != one and track.count]
        if not ended:
            return
        features = normalise(np.stack([self._tracks[name].feature for name in ended]))
        metric = chosen_metric(self._metric, has_masks)
        masks = np.stack([self._tracks[name].mask / self._tracks[name].weight for name in ended])
        s = similarity(
            normalise(new.feature[None]), features, metric=metric, query_masks=(new.mask / new.weight)[None],
            target_masks=masks,
        )[0]  # fmt: skip
        best = int(s.argmax())
        if s[best] < self._threshold:
            return
        old = self._tracks[ended[best]]
        self._tracks[ended[best]] = _Track(
            self._frame, old.count + new.count, old.feature + new.feature, old.mask + new.mask, old.weight + new.weight
        )
        del self._tracks[one]
        self._names[one] = ended[best]

    def _forget(self) -> None:
        """Drop tracks that ended long ago, and the names that led to them."""
        old = {name for name, track in self._tracks.items() if self._frame - track.last > self._memory}
        if old:
            self._tracks = {name: track for name, track in self._tracks.items() if name not in old}
            self._names = {one: name for one, name in self._names.items() if name not in old}
            self._undecided &= set(self._names)
