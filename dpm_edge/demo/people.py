"""People in a video without a boxes file: what moves before a camera that stands still, and tracks by overlap.

OpenCV 5 has no people detector left (HOG went), so this uses its background model; whoever has a real detector gives
its boxes instead.

n detections · boxes (n, 4) float xyxy pixels
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float64]
Detector = Callable[[NDArray[np.uint8]], Boxes]

SMALLEST = 40
"""Rows of pixels below which a detection is too small to recognise anybody."""


def moving() -> Detector:
    """Whatever moves before a still background and is tall as a person is; needs the frames in their order."""
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
    """Intersection over union of each pair, (len(a), len(b))."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(-1)
    area = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b)]
    return inside / np.maximum(area[0][:, None] + area[1][None] - inside, 1e-9)


class Tracker:
    """Names boxes: a box that overlaps a track's last one enough, within `patience` frames, continues that track."""

    def __init__(self, patience: int, least_overlap: float = 0.3) -> None:
        self._patience, self._least = patience, least_overlap
        self._last: dict[str, tuple[int, NDArray[np.float64]]] = {}
        self._count = 0

    def name(self, frame: int, boxes: Boxes) -> list[str]:
        """A track name for each box; the best overlaps are given away first."""
        alive = {t: box for t, (at, box) in self._last.items() if frame - at <= self._patience}
        names: list[str | None] = [None] * len(boxes)
        if alive and len(boxes):
            tracks = list(alive)
            shared = overlap(boxes, np.stack([alive[t] for t in tracks]))
            for flat in np.argsort(-shared, axis=None):
                i, j = divmod(int(flat), len(tracks))
                if shared[i, j] < self._least:
                    break
                if names[i] is None and tracks[j] not in names:
                    names[i] = tracks[j]
        done = []
        for i, name in enumerate(names):
            if name is None:
                self._count += 1
                name = str(self._count)
            self._last[name] = (frame, boxes[i])
            done.append(name)
        return done
