"""People in a frame without a boxes file: a detector of OpenCV's own, and tracks by overlap.

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


def detector() -> tuple[Detector, str]:
    """OpenCV's HOG people detector where this OpenCV has it (4.x); else whatever moves before a still background."""
    if hasattr(cv2, "HOGDescriptor"):
        return _hog(), "OpenCV's HOG people detector"
    return _moving(), "what moves (this OpenCV has no HOG detector; the camera must stand still)"


def _hog() -> Detector:
    hog = getattr(cv2, "HOGDescriptor")()  # noqa: B009 (unknown to OpenCV 5's types)
    hog.setSVMDetector(getattr(cv2, "HOGDescriptor_getDefaultPeopleDetector")())  # noqa: B009

    def find(frame: NDArray[np.uint8]) -> Boxes:
        scale = 2.0 if frame.shape[0] < 720 else 1.0
        large = cv2.resize(frame, None, fx=scale, fy=scale) if scale != 1 else frame
        found, weights = hog.detectMultiScale(large, winStride=(8, 8), scale=1.05)
        if not len(found):
            return np.zeros((0, 4))
        good = np.asarray(weights).ravel() > 0.4
        x, y, w, h = np.asarray(found, np.float64)[good].T / scale
        return _apart(np.stack([x + 0.12 * w, y + 0.06 * h, x + 0.88 * w, y + 0.95 * h], axis=1))

    return find


def _moving() -> Detector:
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


def _apart(boxes: Boxes) -> Boxes:
    """Boxes without those that mostly repeat an earlier one."""
    kept: list[int] = []
    for i in range(len(boxes)):
        if not kept or overlap(boxes[i : i + 1], boxes[kept]).max() < 0.4:
            kept.append(i)
    return boxes[kept]


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
