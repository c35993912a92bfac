"""Boxes files: which people stand where in which frame.

Three formats are read:

- `corners`: text with the columns frame,id,x0,y0,x1,y1 in pixels; frames count from 0, or are file names. A heading may
  name the columns in another order, and more of them.
- `mot`: MOTChallenge's text without a heading, frame,id,left,top,width,height,conf,…; frames and pixels count from 1.
- `xml`: the ground truth of PETS/CVML, whose boxes are a centre, a width and a height; frames count from 0.

Text is UTF-8 or UTF-16, with or without a byte order mark; columns are parted by commas, semicolons, tabs or spaces.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError
from dpm_edge.files import decode_text

COLUMNS = ("frame", "id", "x0", "y0", "x1", "y1")
FORMATS = ("auto", "corners", "mot", "xml")
SIZES = ("frame", "id", "left", "top", "width", "height")
OTHER_NAMES = {
    "frame_id": "frame", "frame_number": "frame", "track": "id", "track_id": "id", "person": "id",
    "xmin": "x0", "ymin": "y0", "xmax": "x1", "ymax": "y1", "x": "left", "y": "top", "w": "width", "h": "height",
    "bb_left": "left", "bb_top": "top", "bb_width": "width", "bb_height": "height",
}  # fmt: skip
"""Names that headings of other tools use → ours."""

Row = tuple[str, str, list[float]]


@dataclass(frozen=True)
class FrameBoxes:
    """The boxes of one frame."""

    ids: list[str]
    """n track ids."""
    boxes: NDArray[np.float64]
    """(n, 4) float64, x0 y0 x1 y1 in pixels."""


@dataclass(frozen=True)
class BoxesFile:
    """What a boxes file holds."""

    path: Path
    format: str
    """"corners", "mot" or "xml"."""
    frames: dict[str, FrameBoxes] = field(repr=False)
    """Frame, a number or a file name as it stands in the file → its boxes."""

    def of_video(self, count: int, first_frame: int | None = None) -> tuple[dict[int, FrameBoxes], str | None]:
        """Give the boxes by the position of their frame in a video, from 0, and a sentence on how that was found.

        Args:
            count: frames that the video's header announces; 0 where it does not say.
            first_frame: the number that the file gives to the video's first frame; None finds it, where that is sure.

        Raises:
            DataError: frames are no numbers, lie outside the video, or may be numbered from 0 as well as from 1.
        """
        by_number: dict[int, FrameBoxes] = {}
        for name, boxes in self.frames.items():
            number = _whole_number(name)
            if number is None:
                raise DataError(
                    f"expected frame numbers for a video, got frame {name!r} in {self.path}. "
                    "File names belong to a folder of frames; for a video, number them"
                )
            by_number[number] = boxes
        low, high = min(by_number), max(by_number)
        first, how = self._first(low, high, count) if first_frame is None else (first_frame, None)
        if low < first or (count and low >= first + count):
            where = f"{first} to {first + count - 1}" if count else f"from {first} on"
            raise DataError(
                f"expected frames {where} in {self.path}, got {low} to {high}. Say which number the video's first "
                "frame has: --first-frame N; or take the boxes file of this video"
            )
        return {number - first: boxes for number, boxes in by_number.items()}, how

    def _first(self, low: int, high: int, count: int) -> tuple[int, str | None]:
        """The number of the first frame, and a sentence where the file does not make it plain.

        Raises:
            DataError: the file may be numbered from 0 as well as from 1.
        """
        if self.format == "mot":
            return 1, f"{self.path}: MOTChallenge format, frames and pixels count from 1"
        if low == 0:
            return 0, None
        if count and high == count:
            return 1, f"{self.path}: its last frame is {high} of {count}, so frames are taken as counted from 1"
        if self.format == "xml":
            return 0, None
        if low == 1:
            raise DataError(
                f"expected boxes of frame 0, or a word on it, got {self.path}, whose frames are {low} to {high}. "
                "Say whether they count from 0 or from 1: --first-frame 0 or --first-frame 1"
            )
        return 0, f"{self.path}: frames {low} to {high} are taken as counted from 0; --first-frame 1 says otherwise"


def read_boxes(path: Path, *, format: str = "auto") -> BoxesFile:
    """Read a boxes file; "auto" finds its format by its ending, heading and number of columns.

    Raises:
        DataError: the file is missing, is none of the formats, may be of two, or a line lacks a column; it is named.
    """
    if format not in FORMATS:
        raise DataError(f"expected a boxes format of {', '.join(FORMATS)}, got {format!r}")
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing"
        raise DataError(f"expected a boxes file ({','.join(COLUMNS)}; or XML) at {path}, got {found}. Check the path")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"expected a boxes file that may be read, got {path}: {error.strerror}") from error
    if format == "xml" or (format == "auto" and (path.suffix.lower() == ".xml" or data.lstrip()[:5] == b"<?xml")):
        format, rows = "xml", _from_xml(path, data)
    else:
        format, rows = _from_text(path, data, format)
    frames: dict[str, list[tuple[str, list[float]]]] = {}
    for frame, track, box in rows:
        frames.setdefault(frame, []).append((track, box))
    if not frames:
        raise DataError(f"expected rows of {','.join(COLUMNS)}, got {path}, which holds no box")
    return BoxesFile(
        path,
        format,
        {
            frame: FrameBoxes([track for track, _ in here], np.array([box for _, box in here], np.float64))
            for frame, here in frames.items()
        },
    )


def _whole_number(text: str) -> int | None:
    """A frame's number, also where a spreadsheet wrote 1 as 1.0 or 0001; None for a name."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None


def _cells(line: str) -> list[str]:
    """The cells of a line, whichever of comma, semicolon, tab and space parts them; decimal commas become points."""
    mark = next((mark for mark in ("\t", ";", ",") if mark in line), None)
    cells = line.split() if mark is None else next(csv.reader([line], delimiter=mark))
    cells = [cell.strip() for cell in cells]
    return cells if mark == "," else [*cells[:2], *(cell.replace(",", ".") for cell in cells[2:])]


def _from_text(path: Path, data: bytes, format: str) -> tuple[str, list[Row]]:
    """The format, and the rows."""
    lines = [(number, line) for number, line in enumerate(io.StringIO(decode_text(path, data)), start=1)]
    table = [(number, line.strip(), _cells(line)) for number, line in lines if line.strip(" \t\r\n,;")]
    if not table:
        return "corners", []
    heading = [cell.lower() for cell in table[0][2]]
    heading = [OTHER_NAMES.get(name, name) for name in heading]
    if "frame" in heading or "id" in heading:
        table = table[1:]
        columns, format = _columns(path, heading, format)
    else:
        if format == "auto":
            format = _format(path, len(heading))
        columns = list(range(6))
    rows: list[Row] = []
    for number, line, cells in table:
        try:
            frame, track, *box = (cells[column] for column in columns)
            a, b, c, d = (float(value) for value in box)
        except (ValueError, IndexError) as error:
            names = SIZES if format != "corners" else COLUMNS
            raise DataError(f"expected {','.join(names)} in {path}, line {number}, got {line!r}") from error
        rows.append((frame, track, _corners(format, a, b, c, d)))
    if format == "corners":
        _check_corners(path, [box for _, _, box in rows])
    return ("corners" if format == "sizes" else format), rows


def _columns(path: Path, heading: Sequence[str], format: str) -> tuple[list[int], str]:
    """Where a heading has our six columns, and whether they are corners or sizes."""
    for names, meant in ((COLUMNS, "corners"), (SIZES, "mot" if format == "mot" else "sizes")):
        if set(names) <= set(heading):
            return [heading.index(name) for name in names], meant
    raise DataError(
        f"expected a heading with {','.join(COLUMNS)} or {','.join(SIZES)} in {path}, got {','.join(heading)}. "
        "Rename its columns, or leave the heading out"
    )


def _format(path: Path, columns: int) -> str:
    """What text without a heading is, by its number of columns."""
    if columns in (9, 10):  # MOTChallenge's ground truth and its detections and results
        return "mot"
    if columns > 6:
        raise DataError(
            f"expected {','.join(COLUMNS)}, or the 9 or 10 columns of MOTChallenge, got {path} with {columns} columns "
            "and no heading. Say which it is: --boxes-format corners, or mot"
        )
    return "corners"


def _corners(format: str, a: float, b: float, c: float, d: float) -> list[float]:
    """x0 y0 x1 y1. MOTChallenge counts pixels from 1, so that its left and top are one more than ours."""
    if format == "mot":
        return [a - 1, b - 1, a - 1 + c, b - 1 + d]
    return [a, b, a + c, b + d] if format == "sizes" else [a, b, c, d]


def _check_corners(path: Path, boxes: list[list[float]]) -> None:
    """Refuse left,top,width,height taken for corners: then most boxes end before they begin."""
    empty = sum(x1 <= x0 or y1 <= y0 for x0, y0, x1, y1 in boxes)
    if len(boxes) >= 2 and 2 * empty > len(boxes):
        raise DataError(
            f"expected x0,y0,x1,y1 in {path}, got {empty} of {len(boxes)} boxes with x1 <= x0 or y1 <= y0: "
            f"they look like left,top,width,height. Say so in a heading ({','.join(SIZES)}), or by --boxes-format mot"
        )


def _from_xml(path: Path, data: bytes) -> list[Row]:
    rows: list[Row] = []
    try:
        for frame in ElementTree.fromstring(data).iter("frame"):
            for thing in frame.iter("object"):
                box = thing.find("box")
                if box is None:
                    raise KeyError("box")
                xc, yc, w, h = (float(box.attrib[key]) for key in ("xc", "yc", "w", "h"))
                number = str(int(frame.attrib["number"]))
                rows.append((number, thing.attrib["id"], [xc - w / 2, yc - h / 2, xc + w / 2, yc + h / 2]))
    except (ElementTree.ParseError, KeyError, ValueError) as error:
        raise DataError(
            f"expected XML of <frame number><object id><box xc yc w h>, got {path} ({error}). "
            f"Write {','.join(COLUMNS)} as CSV instead"
        ) from error
    return rows
