"""Pictures of cameras as JPEG, encoded once for all who look."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.opencv import cv2
from dpm_edge.watch.pipeline import CameraView

QUALITY = 75
WIDTHS = (320, 640, 960, 1280, 1920)
"""Widths that are given; a wish is rounded up to one of them, so that viewers share pictures."""


class JpegCache:
    """The last JPEG of each camera and width."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, int], tuple[CameraView, bytes]] = {}

    def encode(self, camera: str, view: CameraView, width: int) -> bytes:
        """JPEG of a view, at most about `width` pixels wide."""
        width = next((one for one in WIDTHS if one >= width), WIDTHS[-1])
        with self._lock:
            kept = self._kept.get((camera, width))
            if kept is not None and kept[0] is view:
                return kept[1]
        data = encode_jpeg(view.image, width)
        with self._lock:
            self._kept[camera, width] = (view, data)
        return data


def encode_jpeg(image: NDArray[np.uint8], width: int) -> bytes:
    """A picture (H, W, 3) uint8 BGR as JPEG, scaled down to `width` where it is wider."""
    if image.shape[1] > width:
        height = max(1, round(image.shape[0] * width / image.shape[1]))
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
    _, data = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return data.tobytes()


def describe(camera: str, view: CameraView, names: dict[str, str]) -> dict[str, Any]:
    """Who is in a view, as JSON types; boxes are x0 y0 x1 y1 as shares of the picture."""
    height, width = view.image.shape[:2]
    return {
        "camera": camera,
        "number": view.number,
        "unix": round(view.wall, 3),
        "width": width,
        "height": height,
        "looked_at": view.looked_at,
        "people": [
            {
                "track": one.track,
                "box": [
                    round(one.box[0] / width, 4),
                    round(one.box[1] / height, 4),
                    round(one.box[2] / width, 4),
                    round(one.box[3] / height, 4),
                ],
                "identity": one.identity,
                "name": names.get(one.identity or ""),
                "state": one.state,
                "probability": None if one.probability is None else round(one.probability, 3),
            }
            for one in view.sightings
        ],
    }
