"""Crops of people out of videos and their boxes files, in the folders that `read_crops` reads: CAMERA/TRACK/*.jpg."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import cv2

from dpm_edge.boxes import read_boxes
from dpm_edge.errors import DataError
from dpm_edge.files import whole_folder
from dpm_edge.images import clip_boxes
from dpm_edge.progress import say
from dpm_edge.video import boxed_frames

DONE = "cut.json"
"""Written into the folder when every crop is there: what it was cut from."""
LEAST_PIXELS = 16
"""Width and height below which a box teaches nothing."""
QUALITY = 95


def cut_crops(
    videos: Sequence[Path],
    boxes: Sequence[Path],
    into: Path,
    *,
    every: int = 5,
    first_frame: int | None = None,
    quiet: bool = False,
) -> Path:
    """Cut the boxes of every `every`-th frame out of each video; a video is a camera, its name without ending names it.

    `into` appears once every crop is there, and is left as it is where it was cut from the same files. Returns `into`.

    Raises:
        DataError: a video has no boxes file, two videos have one name, a file cannot be read, or `into` holds others'
            files.
    """
    if len(videos) != len(boxes):
        raise DataError(
            f"expected --boxes FILE for each of {len(videos)} videos, in their order, got {len(boxes)}. A tracker or "
            "detector writes such a file: frame,id,x0,y0,x1,y1"
        )
    names = [video.stem for video in videos]
    double = {name for name in names if names.count(name) > 1}
    if double:
        raise DataError(f"expected a name for each camera, got {sorted(double)[0]!r} twice. Rename one of the videos")
    asked = {
        "files": [[str(path.resolve()), *_state(path)] for pair in zip(videos, boxes) for path in pair],
        "every": every,
        "first frame": first_frame,
    }
    if (into / DONE).is_file() and json.loads((into / DONE).read_text()) == asked:
        return into
    if into.is_dir() and any(into.iterdir()) and not (into / DONE).is_file():
        raise DataError(f"expected an empty folder for the crops, got {into}, which holds other files. Give another -o")
    with whole_folder(into) as folder:
        for video, file in zip(videos, boxes):
            written = _cut(video, file, folder / video.stem, every, first_frame, quiet)
            if not quiet:
                say(f"{video.name}: {written} crops")
        (folder / DONE).write_text(json.dumps(asked))
    return into


def _state(path: Path) -> list[Any]:
    """Size and time of the last change; [] where there is no such file, which its reader says better."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def _cut(video: Path, file: Path, into: Path, every: int, first_frame: int | None, quiet: bool) -> int:
    written = 0
    frames = boxed_frames(video, read_boxes(file), every=every, first_frame=first_frame, quiet=quiet)
    for position, here, frame in frames:
        whole, bad = clip_boxes(here.boxes, frame.shape)
        unusable = {row for row, _ in bad}
        for row, (person, (x0, y0, x1, y1)) in enumerate(zip(here.ids, whole.tolist())):
            if row in unusable or min(x1 - x0, y1 - y0) < LEAST_PIXELS:
                continue
            folder = into / f"track-{quote(person, safe='')}"
            folder.mkdir(parents=True, exist_ok=True)
            made, data = cv2.imencode(".jpg", frame[y0:y1, x0:x1], [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            assert made, "a crop of 16 pixels and more is encoded"
            (folder / f"{int(position):07d}.jpg").write_bytes(data.tobytes())
            written += 1
    return written
