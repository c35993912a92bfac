"""Boxes in MOTChallenge's and COCO's files, in and out. `dpm_edge.boxes.read_boxes` reads MOTChallenge's.

n boxes of a frame
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge.boxes import BoxesFile, FrameBoxes
from dpm_edge.errors import DataError
from dpm_edge.files import write_whole

PERSON = "person"


def write_mot(path: Path, frames: Mapping[int, FrameBoxes], *, first_frame: int = 0) -> None:
    """Write tracks as MOTChallenge's results, frame,id,left,top,width,height,1,-1,-1,-1; frames and pixels from 1.

    Args:
        path: the file, written whole.
        frames: frame number → boxes with whole-numbered ids.
        first_frame: the number that `frames` gives to the first frame.

    Raises:
        DataError: an id is no whole number.
    """
    lines = []
    for number in sorted(frames):
        for track, (x0, y0, x1, y1) in zip(frames[number].ids, frames[number].boxes.tolist()):
            if not track.lstrip("-").isdecimal():
                raise DataError(
                    f"expected whole numbers as track ids of MOTChallenge's format, got {track!r} in frame {number}. "
                    "Number the tracks"
                )
            box = ",".join(f"{value:.2f}" for value in (x0 + 1, y0 + 1, x1 - x0, y1 - y0))
            lines.append(f"{number - first_frame + 1},{track},{box},1,-1,-1,-1\n")
    write_whole(path, "".join(lines).encode())


def read_coco(path: Path, *, category: str = PERSON) -> BoxesFile:
    """Read the boxes of one category of a COCO file; frames are its file names, ids its `track_id` or annotation id.

    Raises:
        DataError: the file is missing, is no COCO, or holds no box of that category.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        kinds = {one["id"]: one["name"] for one in data["categories"]}
        names = {one["id"]: one["file_name"] for one in data["images"]}
        found: dict[str, list[tuple[str, list[float]]]] = {}
        for one in data["annotations"]:
            if kinds[one["category_id"]] == category:
                left, top, width, height = (float(v) for v in one["bbox"])
                id = str(one.get("track_id", one["id"]))
                found.setdefault(names[one["image_id"]], []).append((id, [left, top, left + width, top + height]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"expected a COCO file with images, annotations and categories, got {path} "
            f"({type(error).__name__}: {error}). Check the path"
        ) from error
    if not found:
        known = ", ".join(sorted(set(kinds.values())))
        raise DataError(f"expected boxes of category {category!r} in {path}, got none. It has {known}")
    return BoxesFile(path, "coco", {frame: _boxes(rows) for frame, rows in found.items()})


def write_coco(
    path: Path, frames: Mapping[str, FrameBoxes], sizes: Mapping[str, tuple[int, int]] | None = None
) -> None:
    """Write boxes as a COCO file of persons, ids as `track_id`.

    Args:
        path: the file, written whole.
        frames: file name → boxes.
        sizes: file name → (height, width) in pixels, where they are known.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, here) in enumerate(frames.items(), start=1):
        size = {} if not sizes or name not in sizes else {"height": sizes[name][0], "width": sizes[name][1]}
        images.append({"id": number, "file_name": name, **size})
        for track, (x0, y0, x1, y1) in zip(here.ids, here.boxes.tolist()):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                    "track_id": int(track) if track.lstrip("-").isdecimal() else track,
                }
            )
    made = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": PERSON}]}
    write_whole(path, (json.dumps(made) + "\n").encode())


def _boxes(rows: list[tuple[str, list[float]]]) -> FrameBoxes:
    return FrameBoxes([id for id, _ in rows], np.array([box for _, box in rows], np.float64).reshape(-1, 4))
