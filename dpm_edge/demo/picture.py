"""The demo's drawing: text and crops on a canvas, and the picture of queries and their matches. Colours are BGR."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpm_edge.opencv import cv2

WHITE, INK, SOFT = (255, 255, 255), (40, 36, 32), (130, 124, 118)
RIGHT, WRONG, QUERY = (80, 160, 40), (60, 60, 210), (170, 120, 40)
FONT = cv2.FONT_HERSHEY_SIMPLEX
CROP = (92, 184)
GAP, MARGIN, PANEL_GAP, CAPTION, HEADER = 16, 28, 44, 62, 140

Canvas = NDArray[np.uint8]


def blank(height: int, width: int) -> Canvas:
    """Make a white canvas (height, width, 3) uint8."""
    return np.full((height, width, 3), 255, np.uint8)


def draw_text(
    canvas: Canvas,
    words: str,
    at: tuple[int, int],
    *,
    color: tuple[int, int, int] = INK,
    size: float = 0.45,
    bold: bool = False,
) -> None:
    """Write ASCII words with their baseline's left end at (x, y) pixels."""
    cv2.putText(canvas, words, at, FONT, size, color, 2 if bold else 1, cv2.LINE_AA)


def text_width(words: str, *, size: float = 0.45, bold: bool = False) -> int:
    """Measure the pixels that `draw_text` takes."""
    return cv2.getTextSize(words, FONT, size, 2 if bold else 1)[0][0]


def draw_crop(
    canvas: Canvas, picture: Canvas, at: tuple[int, int], size: tuple[int, int], border: tuple[int, int, int]
) -> None:
    """Draw a picture scaled to fit (width, height) at (x, y), centred on grey, with a border of 4 pixels."""
    (x, y), (width, height) = at, size
    scale = min(width / picture.shape[1], height / picture.shape[0])
    w, h = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
    canvas[y : y + height, x : x + width] = 236
    dx, dy = x + (width - w) // 2, y + (height - h) // 2
    canvas[dy : dy + h, dx : dx + w] = cv2.resize(picture, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else 2)
    cv2.rectangle(canvas, (x - 4, y - 4), (x + width + 3, y + height + 3), border, 4)


@dataclass(frozen=True)
class ShownMatch:
    """One match."""

    picture: NDArray[np.uint8]
    similarity: float
    right: bool


@dataclass(frozen=True)
class ShownQuery:
    """One query and what each metric found for it, best first."""

    picture: NDArray[np.uint8]
    name: str
    visible: float
    """Share of the person that was rendered visible, 0..1."""
    visibility: float
    """The model's own score; 1 is an average crop."""
    matches: dict[str, list[ShownMatch]]


def compose(
    rows: Sequence[ShownQuery], title: str, subtitle: str, headings: dict[str, tuple[str, str]]
) -> NDArray[np.uint8]:
    """Lay out one canvas, a line per query; `headings`: metric → its title and scores, in the order of the panels."""
    width, height = CROP
    places = max(len(matches) for row in rows for matches in row.matches.values())
    query_width = width + GAP
    panel = places * (width + GAP) - GAP
    line = height + CAPTION
    canvas = blank(
        HEADER + len(rows) * line + MARGIN // 2, 2 * MARGIN + query_width + len(headings) * (PANEL_GAP + panel) - GAP
    )
    draw_text(canvas, title, (MARGIN, 38), size=0.8, bold=True)
    draw_text(canvas, subtitle, (MARGIN, 64), color=SOFT)
    draw_text(canvas, "query", (MARGIN - 4, HEADER - 38), size=0.55, bold=True)
    for index, row in enumerate(rows):
        y = HEADER + index * line
        draw_crop(canvas, row.picture, (MARGIN, y), CROP, QUERY)
        caption = row.name, f"{row.visible:.0%} in sight", f"visibility {row.visibility:.2f}"
        for below, words in zip((19, 34, 49), caption):
            draw_text(canvas, words, (MARGIN - 4, y + height + below), size=0.4)
        for side, (metric, heading) in enumerate(headings.items()):
            x0 = MARGIN + query_width + PANEL_GAP - GAP + side * (panel + PANEL_GAP)
            if index == 0:
                draw_text(canvas, heading[0], (x0 - 4, HEADER - 38), size=0.55, bold=True)
                draw_text(canvas, heading[1], (x0 - 4, HEADER - 16), color=SOFT)
            for place, match in enumerate(row.matches[metric]):
                x = x0 + place * (width + GAP)
                color = RIGHT if match.right else WRONG
                draw_crop(canvas, match.picture, (x, y), CROP, color)
                draw_text(canvas, f"{place + 1}", (x - 4, y + height + 19), size=0.4, color=SOFT)
                draw_text(
                    canvas,
                    f"{match.similarity:.3f} {'yes' if match.right else 'no'}",
                    (x + 14, y + height + 19),
                    size=0.4,
                    color=color,
                )
    return canvas
