"""A detector of coloured squares, a tracker of their nearest boxes and identities by colour: for tests of the loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery import Gallery
from dpm_edge.runtime import Embeddings
from dpm_edge.watch.seeing import Seeing

COLOURS = {"red": (40, 40, 230), "green": (40, 200, 40), "blue": (230, 60, 40)}
HEIGHT, WIDTH = 240, 320


def scene(*people: tuple[str, int, int]) -> NDArray[np.uint8]:
    """A grey picture (240, 320, 3) with people, 24 wide and 64 high, whose feet are at x, y."""
    image = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    for colour, x, y in people:
        image[max(0, y - 64) : y, max(0, x - 12) : x + 12] = COLOURS[colour]
    return image


def write_scenes(path: Path, scenes: Sequence[NDArray[np.uint8]], fps: float = 10.0) -> Path:
    """A video of scenes."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (WIDTH, HEIGHT))
    for one in scenes:
        writer.write(one)
    writer.release()
    return path


def walk(colour: str, frames: int, begin: int = 30, step: int = 4) -> list[NDArray[np.uint8]]:
    """Scenes of somebody who walks from left to right."""
    return [scene((colour, begin + step * number, 200)) for number in range(frames)]


def find_squares(image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes of what is far from grey."""
    strong = (image.max(axis=2).astype(int) - image.min(axis=2) > 80).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(strong)
    boxes = np.array([(x, y, x + w, y + h) for x, y, w, h, area in stats[1:] if area > 200], np.float32)
    return boxes.reshape(-1, 4), np.ones(len(boxes), np.float32)


@dataclass
class SquareTrack:
    id: int
    box: NDArray[np.float32]
    score: float
    seconds: float


class NearestTracker:
    """Gives each box the id of the nearest one of the last second."""

    def __init__(self) -> None:
        self._tracks: list[SquareTrack] = []
        self._count = 0
        self.ended: list[SquareTrack] = []
        self.frame_rate = 10.0

    def predict(self, seconds: float) -> list[SquareTrack]:
        return []

    def update(self, boxes: NDArray, scores: NDArray, seconds: float) -> list[SquareTrack]:
        self.ended = [one for one in self._tracks if seconds - one.seconds > 1.0]
        self._tracks = [one for one in self._tracks if seconds - one.seconds <= 1.0]
        found = []
        for box, score in zip(boxes, scores):
            near = [one for one in self._tracks if one not in found and abs(one.box[0] - box[0]) < 40]
            if near:
                track = min(near, key=lambda one: abs(one.box[0] - box[0]))
                track.box, track.seconds = box, seconds
            else:
                self._count += 1
                track = SquareTrack(self._count, box, float(score), seconds)
                self._tracks.append(track)
            found.append(track)
        return found


class ColourEngine:
    """The mean colour of a crop as its feature."""

    fingerprint, dimension = "colour" * 10, 3
    spec = SimpleNamespace(masks=True, foreign=False)

    def embed(self, images: Any, boxes: Any = None) -> Embeddings:
        crops = list(images) if boxes is None else []
        for x0, y0, x1, y1 in [] if boxes is None else np.asarray(boxes):
            crops.append(images[max(0, int(y0)) : int(y1) + 1, max(0, int(x0)) : int(x1) + 1])
        raw = np.array([crop.reshape(-1, 3).mean(axis=0) for crop in crops], np.float32).reshape(-1, 3)
        features = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        n = len(features)
        return Embeddings(
            features=features,
            masks=np.ones_like(features),
            visibility=np.ones(n, np.float32),
            rows=np.arange(n),
            fingerprint=self.fingerprint,
        )


@dataclass
class Known:
    state: str = "pending"
    identity: str | None = None
    probability: float | None = None
    previous_ids: tuple[str, ...] = ()


class ColourIdentities:
    """Decides by colour, after three crops."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        self.calls: list[tuple[Any, ...]] = []
        self._crops: dict[tuple[str, str], int] = {}
        self._decided: dict[tuple[str, str], Known] = {}
        self._last: dict[tuple[str, str], Embeddings] = {}

    def observe(self, camera: str, track_id: str, seconds: float, features: Any, masks: Any, *more: Any) -> Known:
        key = (camera, track_id)
        self._crops[key] = self._crops.get(key, 0) + 1
        self._last[key] = Embeddings(
            features=features, masks=masks, visibility=np.full(1, 0.75, np.float32), rows=np.zeros(1, np.int64),
            fingerprint=ColourEngine.fingerprint,
        )  # fmt: skip
        if self._crops[key] < 3:
            return Known()
        identity = ("blue", "green", "red")[int(np.argmax(features[0]))]
        if self._crops[key] == 3:
            row = Embeddings(
                features=features, masks=masks, visibility=np.ones(1, np.float32), rows=np.zeros(1, np.int64),
                fingerprint=ColourEngine.fingerprint,
            )  # fmt: skip
            self.gallery.add(row, people=[identity], cameras=[camera], timestamps=[seconds])
        self._decided[key] = Known("known", identity, 0.9)
        return self._decided[key]

    def decision(self, camera: str, track_id: str) -> Known | None:
        return self._decided.get((camera, track_id))

    def pooled(self, camera: str, track_id: str) -> Embeddings | None:
        return self._last.get((camera, track_id))

    def hear(self, news: Any) -> None: ...

    def end(self, camera: str, track_id: str) -> Known | None:
        return self._decided.pop((camera, track_id), Known("unknown", f"{camera}-{track_id}"))

    def changes(self, camera: str | None = None) -> list[Any]:
        return []

    def forget(self, identity: str) -> int:
        return self.gallery.forget(identity)

    def merge(self, identity: str, into: str) -> None:
        self.calls.append(("merge", identity, into))

    def split(self, camera: str, track_id: str) -> str:
        self.calls.append(("split", camera, track_id))
        return "somebody"

    def name(self, identity: str, name: str) -> None:
        self.calls.append(("name", identity, name))


def make_seeing() -> Seeing:
    """Everything that looks at pictures, by colour."""
    gallery = Gallery(ColourEngine.fingerprint, ColourEngine.dimension)
    return Seeing(
        detector=find_squares,
        make_tracker=lambda rate: NearestTracker(),
        engine=ColourEngine(),
        gallery=gallery,
        identities=ColourIdentities(gallery),
    )
