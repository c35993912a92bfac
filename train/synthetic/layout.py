"""Where a rendered set keeps what. Standard library only: training reads sets without the renderer's libraries."""

from __future__ import annotations

from pathlib import Path

SEEN, HIDDEN = 255, 100
"""Values of a mask's pixels: the person, and the person behind something."""


def mask_of(out: Path, file: str) -> Path:
    """The mask of a picture of the set in `out`; file: its name in labels.csv, FOLDER/NAME.jpg."""
    return (out / "masks" / file).with_suffix(".png")
