"""The demo's picture: each query, its visibility, and its best matches under the plain and the masked metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpm_edge.demo import draw

CROP = (92, 184)
GAP, MARGIN, PANEL_GAP, CAPTION, HEADER = 16, 28, 44, 62, 140


@dataclass(frozen=True)
class Found:
    """One match."""

    picture: NDArray[np.uint8]
    similarity: float
    right: bool


@dataclass(frozen=True)
class Row:
    """One query and what each metric found for it, best first."""

    picture: NDArray[np.uint8]
    name: str
    visible: float
    """Share of the person that was rendered visible, 0..1."""
    visibility: float
    """The model's own score; 1 is an average crop."""
    found: dict[str, list[Found]]


def compose(rows: Sequence[Row], title: str, subtitle: str, headings: dict[str, tuple[str, str]]) -> NDArray[np.uint8]:
    """One canvas: a line per query; `headings` gives each metric's title and its scores, in the order of the panels."""
    width, height = CROP
    places = max(len(found) for row in rows for found in row.found.values())
    query_width = width + GAP
    panel = places * (width + GAP) - GAP
    line = height + CAPTION
    canvas = draw.blank(
        HEADER + len(rows) * line + MARGIN // 2, 2 * MARGIN + query_width + len(headings) * (PANEL_GAP + panel) - GAP
    )
    draw.text(canvas, title, (MARGIN, 38), size=0.8, bold=True)
    draw.text(canvas, subtitle, (MARGIN, 64), color=draw.SOFT)
    draw.text(canvas, "query", (MARGIN - 4, HEADER - 38), size=0.55, bold=True)
    for index, row in enumerate(rows):
        y = HEADER + index * line
        draw.crop(canvas, row.picture, (MARGIN, y), CROP, draw.QUERY)
        caption = row.name, f"{row.visible:.0%} in sight", f"visibility {row.visibility:.2f}"
        for below, words in zip((19, 34, 49), caption):
            draw.text(canvas, words, (MARGIN - 4, y + height + below), size=0.4)
        for side, (metric, heading) in enumerate(headings.items()):
            x0 = MARGIN + query_width + PANEL_GAP - GAP + side * (panel + PANEL_GAP)
            if index == 0:
                draw.text(canvas, heading[0], (x0 - 4, HEADER - 38), size=0.55, bold=True)
                draw.text(canvas, heading[1], (x0 - 4, HEADER - 16), color=draw.SOFT)
            for place, match in enumerate(row.found[metric]):
                x = x0 + place * (width + GAP)
                color = draw.RIGHT if match.right else draw.WRONG
                draw.crop(canvas, match.picture, (x, y), CROP, color)
                draw.text(canvas, f"{place + 1}", (x - 4, y + height + 19), size=0.4, color=draw.SOFT)
                draw.text(
                    canvas,
                    f"{match.similarity:.3f} {'yes' if match.right else 'no'}",
                    (x + 14, y + height + 19),
                    size=0.4,
                    color=color,
                )
    return canvas
