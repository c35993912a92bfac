"""How sharp a crop is, for models that do not say what they see of a person."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpm_edge.opencv import cv2

WIDTH = 9
"""Pixels of the blur that a crop is compared with, as in the paper."""


def sharpness(image: NDArray[np.uint8], box: ArrayLike) -> float:
    """How much of the steps between neighbouring pixels a blur takes away: 0 of a blurred crop, near 1 of a sharp one.

    One less the blur effect of Crété et al. (2007, "The blur effect: perception and estimation with a new no-reference
    perceptual blur metric"), with the blurrier of the two directions.

    Args:
        image: (H, W, 3) uint8 BGR.
        box: x0 y0 x1 y1 in pixels; what is outside of the picture is left out.
    """
    x0, y0, x1, y1 = (round(max(0.0, float(value))) for value in np.asarray(box))
    crop = image[y0:y1, x0:x1]
    if min(crop.shape[:2]) < 2:
        return 0.0
    grey = cv2.cvtColor(crop, cv2.COLOR_BGR2GRAY).astype(np.float32)
    found = 1.0
    for axis, size in ((0, (1, WIDTH)), (1, (WIDTH, 1))):
        steps = np.abs(np.diff(grey, axis=axis))
        left = np.abs(np.diff(cv2.blur(grey, size), axis=axis))
        whole = float(steps.sum())
        found = min(found, float(np.maximum(steps - left, 0).sum()) / whole if whole > 0 else 0.0)
    return found
