"""Unlabelled crops of a site, by camera and, where it is known, by track.

CAMERA/*.jpg            crops of one camera
CAMERA/TRACK/*.jpg      crops of one track: one person, followed without a break (`dpm_edge.track_crops`)
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError, ImageError
from dpm_edge.images import find_images
from dpm_edge.layouts import LabelledFolder
from dpm_edge.progress import say
from dpm_edge.spec import Preprocessing
from dpm_edge.track_crops import UNKNOWN_FRAME, frame_of
from dpm_edge.train.adapt.constraints import Constraints, constraints_of
from dpm_edge.train.data import Pictures, decode

LEAST_CROPS, LEAST_CAMERAS = 200, 2
"""Fewer crops or cameras than these teach nothing about telling people apart across cameras."""


@dataclass(frozen=True)
class Crops:
    """Decoded crops. n crops."""

    pictures: Pictures
    """`people` holds the number of the track (of the crop itself where no track is known), `cameras` of the camera."""
    camera_names: list[str]
    """Name of each camera number."""
    tracked: bool
    """Whether tracks are known."""
    track_names: list[str] = field(default_factory=list)
    """CAMERA/TRACK of each track number; none where no tracks are known."""
    answers: tuple[tuple[str, str, bool], ...] = ()
    """Names of two tracks (of two crops where no tracks are known), and whether somebody said they are one person."""

    def __len__(self) -> int:
        return len(self.pictures)

    @property
    def cameras(self) -> NDArray[np.int64]:
        """(n,) number of the camera."""
        return self.pictures.cameras.numpy()

    @property
    def tracks(self) -> NDArray[np.int64]:
        """(n,) number of the track; a crop without one is a track of its own."""
        return self.pictures.people.numpy()

    def split(self, second: NDArray[np.bool_]) -> tuple[Crops, Crops]:
        """The crops that are not in `second`, (n,) bool, and those that are, in order.

        Pixels are moved, not copied, since they may fill half of the memory: these crops' own are no longer theirs.
        """
        order = np.argsort(second, kind="stable")
        reorder(self.pictures.pixels.numpy(), order)
        count = int((~second).sum())
        return self._part(order, slice(0, count)), self._part(order, slice(count, len(order)))

    def _part(self, order: NDArray[np.int64], part: slice) -> Crops:
        """The crops order[part], whose pixels have been moved to `part`."""
        known, rows = self.pictures, order[part]
        names = [known.names[i] for i in rows.tolist()]
        return replace(self, pictures=Pictures(known.pixels[part], known.people[rows], known.cameras[rows], names))

    def names_of_cameras(self) -> list[str]:
        """(n,) name of the camera."""
        return [self.camera_names[c] for c in self.cameras]

    def names_of_tracks(self) -> list[str]:
        """(n,) CAMERA/TRACK, or CAMERA/PICTURE where no tracks are known."""
        if self.tracked:
            return [self.track_names[t] for t in self.tracks]
        return [f"{camera}/{name}" for camera, name in zip(self.names_of_cameras(), self.pictures.names)]

    def constraints(self) -> Constraints:
        """What frames and answers say about the tracks.

        Raises:
            DataError: answers contradict each other.
        """
        frames = np.array([frame_of(Path(name)) for name in self.pictures.names], np.int64)
        if not self.tracked:  # without tracks nobody knows that two boxes of a frame are no two of one person
            frames[:] = UNKNOWN_FRAME
        return constraints_of(self.cameras.tolist(), self.tracks, frames, self.names_of_tracks(), self.answers)


def read_crops(folder: Path, preprocessing: Preprocessing, *, quiet: bool = False) -> Crops:
    """Every crop below a folder, decoded once: 3·H·W bytes each stay in memory.

    Raises:
        DataError: the folder has another layout, or too few crops or cameras to learn from.
    """
    try:
        paths = find_images(folder)
    except ImageError as error:
        raise DataError(str(error)) from error
    parts = [path.relative_to(folder).parts for path in paths]
    wrong = [path for path, part in zip(paths, parts) if len(part) not in (2, 3)]
    if wrong:
        raise DataError(
            f"expected CAMERA/*.jpg or CAMERA/TRACK/*.jpg below {folder}, got {wrong[0].relative_to(folder)}. "
            f"Put each crop into the folder of its camera"
        )
    camera_names = sorted({part[0] for part in parts})
    if len(paths) < LEAST_CROPS or len(camera_names) < LEAST_CAMERAS:
        raise DataError(
            f"expected {LEAST_CROPS} crops of {LEAST_CAMERAS} cameras or more below {folder}, got {len(paths)} "
            f"crops of {len(camera_names)}. What a model learns here is to know people again across cameras: add crops"
        )
    tracked = all(len(part) == 3 for part in parts)
    number = {name: i for i, name in enumerate(camera_names)}
    track_names = {key: i for i, key in enumerate(sorted({part[:2] for part in parts}))} if tracked else {}
    labelled = LabelledFolder(
        paths=paths,
        people=np.array([track_names[part[:2]] if tracked else i for i, part in enumerate(parts)], np.int64),
        cameras=np.array([number[part[0]] for part in parts], np.int64),
    )
    names = ["/".join(key) for key in track_names]
    read = Crops(decode(labelled, preprocessing, quiet=quiet), camera_names, tracked, names)
    first = _first_of_each(read.pictures)
    if len(first) < LEAST_CROPS:
        raise DataError(
            f"expected {LEAST_CROPS} different crops below {folder}, got {len(first)}: the other "
            f"{len(paths) - len(first)} cannot be read or are copies of these. Copies teach nothing: add crops"
        )
    if len(first) < len(read):
        if not quiet:
            say(f"left out: {len(read) - len(first)} crops that are copies of others, to the pixel")
        copies = np.ones(len(read), bool)
        copies[first] = False
        read, _ = read.split(copies)
    return read


def reorder(rows: NDArray, order: NDArray[np.int64]) -> None:
    """Put rows[order] into `rows`, one row at a time, with room for one more."""
    done = order == np.arange(len(order))
    for start in np.flatnonzero(~done).tolist():
        if done[start]:
            continue
        kept, at = rows[start].copy(), start
        while (source := int(order[at])) != start:
            rows[at], done[at] = rows[source], True
            at = source
        rows[at], done[at] = kept, True


def _first_of_each(pictures: Pictures) -> NDArray[np.int64]:
    """Rows of the pictures that are not, to the pixel, an earlier one again."""
    seen: dict[bytes, int] = {}
    for row, picture in enumerate(pictures.pixels.numpy()):
        seen.setdefault(hashlib.sha256(picture.tobytes()).digest(), row)
    return np.array(list(seen.values()), np.int64)
