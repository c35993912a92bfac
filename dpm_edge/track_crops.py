"""Crops of people in a folder for each camera and track: cut out of videos, and read again.

CAMERA/TRACK/*.jpg              crops of one track: one person, followed without a break
CAMERA/TRACK/frame-N.jpg        the same, and the frame of the camera's video is known

A track is one person, and two tracks of one camera that share a frame are two people: both are known without labels.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from dpm_edge.boxes import read_boxes
from dpm_edge.errors import DataError, ImageError
from dpm_edge.files import whole_folder
from dpm_edge.images import clip_boxes, find_images
from dpm_edge.opencv import cv2
from dpm_edge.progress import say
from dpm_edge.video import boxed_frames

DONE = "cut.json"
"""Written into the folder when every crop is there: what it was cut from."""
LEAST_PIXELS = 16
"""Width and height below which a box teaches nothing."""
QUALITY = 95
FRAME = re.compile(r"frame-(\d+)")
"""The name of a crop whose frame is known."""
UNKNOWN_FRAME = -1


@dataclass(frozen=True)
class TrackCrops:
    """Crops of tracks. n crops."""

    paths: list[Path]
    cameras: list[str]
    """(n,) names of cameras."""
    tracks: NDArray[np.int64]
    """(n,) numbers of tracks."""
    frames: NDArray[np.int64]
    """(n,) frames of the cameras' videos; UNKNOWN_FRAME where the file's name does not tell."""
    names: list[str]
    """CAMERA/TRACK of each track's number."""


def read_track_crops(folder: Path) -> TrackCrops:
    """List every crop below a folder, which is laid out as above.

    Raises:
        DataError: the folder has another layout, or holds no picture.
    """
    try:
        paths = find_images(folder)
    except ImageError as error:
        raise DataError(str(error)) from error
    parts = [path.relative_to(folder).parts for path in paths]
    wrong = [path for path, part in zip(paths, parts) if len(part) != 3]
    if wrong:
        raise DataError(
            f"expected CAMERA/TRACK/*.jpg below {folder}, got {wrong[0].relative_to(folder)}. Put each crop into the "
            "folder of its camera and track"
        )
    names = sorted({"/".join(part[:2]) for part in parts})
    number = {name: i for i, name in enumerate(names)}
    return TrackCrops(
        paths=paths,
        cameras=[part[0] for part in parts],
        tracks=np.array([number["/".join(part[:2])] for part in parts], np.int64),
        frames=np.array([frame_of(path) for path in paths], np.int64),
        names=names,
    )


def frame_of(path: Path) -> int:
    """Return the frame that a crop's name tells, or UNKNOWN_FRAME."""
    found = FRAME.fullmatch(path.stem)
    return UNKNOWN_FRAME if found is None else int(found[1])


def seen_together(cameras: Sequence[Any], tracks: NDArray[np.int64], frames: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pairs of tracks (P, 2), the lower number first, that share a frame of one camera: two people each.

    Args:
        cameras: (n,) camera of each crop.
        tracks: (n,) number of its track.
        frames: (n,) its frame; crops of UNKNOWN_FRAME say nothing.
    """
    there: dict[tuple[Any, int], set[int]] = {}
    for camera, track, frame in zip(cameras, tracks.tolist(), frames.tolist()):
        if frame != UNKNOWN_FRAME:
            there.setdefault((camera, frame), set()).add(track)
    pairs = {(a, b) for some in there.values() for a in some for b in some if a < b}
    return np.array(sorted(pairs), np.int64).reshape(-1, 2)


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
            (folder / f"frame-{int(position):07d}.jpg").write_bytes(data.tobytes())
            written += 1
    return written
