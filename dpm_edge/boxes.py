"""Boxes files: which people stand where in which frame.

Two forms are read: CSV with the columns frame,id,x0,y0,x1,y1 (pixels; a heading line is optional), and the XML of
PETS/CVML ground truth, whose boxes are a centre, a width and a height.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError

COLUMNS = ("frame", "id", "x0", "y0", "x1", "y1")


@dataclass(frozen=True)
class FrameBoxes:
    """The boxes of one frame."""

    ids: list[str]
    """n track names."""
    boxes: NDArray[np.float64]
    """(n, 4) float64, x0 y0 x1 y1 in pixels."""


def read_boxes(path: Path) -> dict[str, FrameBoxes]:
    """Frame (a number from 0 as text, or a file name) → its boxes.

    Raises:
        DataError: the file is missing, is neither form, or a line lacks a column; the line is named.
    """
    if not path.is_file():
        raise DataError(f"{path} does not exist; a boxes file (CSV {','.join(COLUMNS)}, or XML) is wanted")
    rows = _from_xml(path) if path.suffix.lower() == ".xml" else _from_csv(path)
    frames: dict[str, list[tuple[str, list[float]]]] = {}
    for frame, track, box in rows:
        frames.setdefault(frame, []).append((track, box))
    if not frames:
        raise DataError(f"{path} holds no box; {','.join(COLUMNS)} are wanted")
    return {
        frame: FrameBoxes([track for track, _ in found], np.array([box for _, box in found], np.float64))
        for frame, found in frames.items()
    }


def _from_csv(path: Path) -> list[tuple[str, str, list[float]]]:
    rows = []
    with path.open(newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            cells = [cell.strip() for cell in row]
            if not any(cells) or (number == 1 and cells[-1] == COLUMNS[-1]):
                continue
            try:
                frame, track, *box = cells
                x0, y0, x1, y1 = (float(value) for value in box)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: {','.join(row)!r} is not {','.join(COLUMNS)}") from error
            rows.append((frame, track, [x0, y0, x1, y1]))
    return rows


def _from_xml(path: Path) -> list[tuple[str, str, list[float]]]:
    rows = []
    try:
        for frame in ElementTree.parse(path).getroot().iter("frame"):
            for thing in frame.iter("object"):
                box = thing.find("box")
                if box is None:
                    raise KeyError("box")
                xc, yc, w, h = (float(box.attrib[key]) for key in ("xc", "yc", "w", "h"))
                rows.append(
                    (
                        str(int(frame.attrib["number"])),
                        thing.attrib["id"],
                        [xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2],
                    )
                )
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is not the XML that is read here ({error}): <frame number><object id><box xc yc w h>"
        ) from error
    return rows
