"""Frames and boxes as callers bring them: which lie on a GPU, which boxes can be used.

frame (H, W, 3) uint8, numpy or on a GPU · boxes (N, 4) float xyxy pixels
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpm_edge import images as pictures
from dpm_edge.errors import ImageError

ON_GPU = (2, 13)
"""DLPack's device types of CUDA memory: plain and managed."""


class Boxed(NamedTuple):
    """A frame and those of its boxes that can be used."""

    frame: Any
    """(H, W, 3) uint8: numpy in BGR, or as it came where it lies on a GPU."""
    color: str
    """Channel order of `frame`."""
    boxes: NDArray[np.int64]
    """(n, 4) int64, inside the frame."""
    rows: list[int]
    """Which of the caller's boxes each one is."""
    skipped: list[tuple[int, str]]
    """(row, reason) of the others."""

    @property
    def on_gpu(self) -> bool:
        """Whether the frame lies on a GPU."""
        return not isinstance(self.frame, np.ndarray)


def is_on_gpu(array: Any) -> bool:
    """Whether an array of another library lies in CUDA memory."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in ON_GPU


def boxed(frame: Any, boxes: Any, color: str) -> Boxed:
    """Check a frame and clip its boxes to it.

    Raises:
        ImageError: the frame is no single picture, or the boxes are no (N, 4) numbers.
    """
    if isinstance(frame, np.ndarray) and frame.ndim != 4:
        frame, color = pictures.as_bgr(frame, color=color, what="the frame"), "bgr"
    elif isinstance(frame, np.ndarray) or not is_on_gpu(frame):
        raise ImageError("with boxes, one frame (H, W, 3) is wanted, not a batch: call embed once per frame")
    elif len(frame.shape) != 3 or frame.shape[2] != 3 or 0 in tuple(frame.shape):
        raise ImageError(f"the frame on the GPU has shape {tuple(frame.shape)}; (H, W, 3) is wanted")
    whole, skipped = pictures.clip_boxes(np.asarray(boxes, np.float64), tuple(frame.shape))
    unusable = {row for row, _ in skipped}
    rows = [row for row in range(len(whole)) if row not in unusable]
    return Boxed(frame, color, whole[rows], rows, skipped)
