"""Folders in Market-1501's layout: query/ and bounding_box_test/ with names like 0002_c1s1_000451_03.jpg.

The name says it all: person (−1: junk detection, 0: distractor), camera, sequence, frame, box.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError
from dpm_edge.images import find_images

NAME = re.compile(r"^(?P<person>-?\d+)_c(?P<camera>\d+)")


@dataclass(frozen=True)
class LabelledFolder:
    """N pictures with a person and a camera each."""

    paths: list[Path]
    people: NDArray[np.int64]
    cameras: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: NDArray) -> LabelledFolder:
        """The pictures of these rows: (n,) integers, or (N,) bool."""
        numbers = np.arange(len(self))[rows]
        return LabelledFolder([self.paths[i] for i in numbers], self.people[numbers], self.cameras[numbers])


def read_folder(folder: Path) -> LabelledFolder:
    """Every picture below `folder`, labelled by its name.

    Raises:
        DataError: the folder is missing or empty, or a name does not follow Market-1501's.
    """
    if not folder.is_dir():
        raise DataError(f"expected a folder of pictures named like 0002_c1s1_000451_03.jpg, got no folder {folder}")
    paths = find_images(folder)
    names = [(p, NAME.match(p.name)) for p in paths]
    strange = [p.name for p, match in names if match is None]
    if strange:
        raise DataError(
            f"expected names PERSON_cCAMERA…, such as 0002_c1s1_000451_03.jpg, in {folder}, got {strange[0]!r} and "
            f"{len(strange) - 1} more. Rename them, or put them in PERSON/CAMERA/ folders"
        )
    labels = [match for _, match in names if match]
    return LabelledFolder(
        paths,
        np.array([int(m["person"]) for m in labels], np.int64),
        np.array([int(m["camera"]) for m in labels], np.int64),
    )


def query_and_gallery(root: Path) -> tuple[LabelledFolder, LabelledFolder]:
    """The two sides of an evaluation: root/query and root/bounding_box_test.

    Raises:
        DataError: one of them is missing; the message says what the folder holds instead.
    """
    sides = root / "query", root / "bounding_box_test"
    missing = [s.name for s in sides if not s.is_dir()]
    if missing:
        holds = sorted(p.name for p in root.iterdir())[:8] if root.is_dir() else "nothing: it does not exist"
        raise DataError(f"expected Market-1501's folders, got {root} without {' and '.join(missing)}; it holds {holds}")
    query, gallery = (read_folder(s) for s in sides)
    return query, gallery
