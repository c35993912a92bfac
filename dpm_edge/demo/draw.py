"""Text and crops on a canvas. Colours are BGR."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

WHITE, INK, SOFT = (255, 255, 255), (40, 36, 32), (130, 124, 118)
RIGHT, WRONG, QUERY = (80, 160, 40), (60, 60, 210), (170, 120, 40)
FONT = cv2.FONT_HERSHEY_SIMPLEX

Canvas = NDArray[np.uint8]


def blank(height: int, width: int) -> Canvas:
    """A white canvas (height, width, 3) uint8."""
    return np.full((height, width, 3), 255, np.uint8)


def text(
    canvas: Canvas,
    words: str,
    at: tuple[int, int],
    *,
    color: tuple[int, int, int] = INK,
    size: float = 0.45,
    bold: bool = False,
) -> None:
    """ASCII words with their baseline's left end at (x, y) pixels."""
    cv2.putText(canvas, words, at, FONT, size, color, 2 if bold else 1, cv2.LINE_AA)


def text_width(words: str, *, size: float = 0.45, bold: bool = False) -> int:
    """Pixels that `text` takes."""
    return cv2.getTextSize(words, FONT, size, 2 if bold else 1)[0][0]


def crop(
    canvas: Canvas, picture: Canvas, at: tuple[int, int], size: tuple[int, int], border: tuple[int, int, int]
) -> None:
    """A picture scaled to fit (width, height) at (x, y), centred on grey, with a border of 4 pixels."""
    (x, y), (width, height) = at, size
    scale = min(width / picture.shape[1], height / picture.shape[0])
    w, h = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    canvas[y : y + height, x : x + width] = 236
    dx, dy = x + (width - w) // 2, y + (height - h) // 2
    canvas[dy : dy + h, dx : dx + w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else 2)
    cv2.rectangle(canvas, (x - 4, y - 4), (x + width + 3, y + height + 3), border, 4)
