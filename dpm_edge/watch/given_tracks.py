"""People whose boxes and tracks are given, frame by frame: in place of the detector and the tracker.

    given = GivenTracks()
    given.place(["7"], [[10, 20, 60, 180]])        # before the frame is looked at
    given.detect(frame)                            # nothing: `update` has the boxes
    tracks = given.update(boxes, scores, seconds)

An id that comes back after `memory` seconds is a new track: of a file's ids nobody knows whether they are used again.

n people
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass
class GivenTrack:
    """One person of the present frame."""

    id: int
    """From 1 on; none is given twice."""
    name: str
    """The id as it was given."""
    box: NDArray[np.float32]
    """(4,) float32 x0 y0 x1 y1 in pixels."""
    last: float
    """Seconds of the last frame that has it."""
    score: float = 1.0


class GivenTracks:
    """Stands for the detector and the tracker of one camera. Not for several threads at once."""

    def __init__(self, memory: float = 1.0) -> None:
        """Begin without people; `memory`: seconds after which an id that is not there has ended."""
        self.names: dict[int, str] = {}
        """A track's id → the id as it was given."""
        self.ended: list[GivenTrack] = []
        """Tracks that ended with the last `update`."""
        self.frame_rate = 0.0
        self._memory = memory
        self._placed: list[tuple[str, NDArray[np.float32]]] = []
        self._tracks: dict[str, GivenTrack] = {}

    def place(self, ids: Sequence[str], boxes: ArrayLike) -> None:
        """Say who is in the next frame: n ids and boxes (n, 4). Boxes that are empty or not finite are left out."""
        found = np.asarray(boxes, np.float32).reshape(-1, 4)
        real = np.flatnonzero(np.isfinite(found).all(1) & (found[:, 2:] > found[:, :2]).all(1))
        self._placed = [(str(ids[i]), found[i]) for i in real.tolist()]

    def detect(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The boxes of the next frame and scores of 1, as a detector gives them."""
        boxes = np.array([box for _, box in self._placed], np.float32).reshape(-1, 4)
        return boxes, np.ones(len(boxes), np.float32)

    def predict(self, seconds: float) -> list[GivenTrack]:
        """Nobody: who is in a frame is given for each of them."""
        return []

    def update(self, boxes: ArrayLike, scores: ArrayLike, seconds: float) -> list[GivenTrack]:
        """The tracks of the next frame, as a tracker gives them; boxes and scores are those that were placed."""
        self.ended = [one for one in self._tracks.values() if seconds - one.last > self._memory]
        for one in self.ended:
            del self._tracks[one.name]
        here = []
        for name, box in self._placed:
            track = self._tracks.get(name)
            if track is None:
                track = self._tracks[name] = GivenTrack(len(self.names) + 1, name, box, seconds)
                self.names[track.id] = name
            track.box, track.last = box, seconds
            here.append(track)
        return here
