"""The folder layouts of labelled data sets, the field's and a user's own cameras; found by looking at the folder.

People and cameras are numbers here; −1 is junk and 0 a distractor (Market-1501's convention). For the names of people
and cameras in any folder of pictures see `dpm_edge.labels`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError, ImageError, nearest
from dpm_edge.files import decode_text
from dpm_edge.images import find_images
from dpm_edge.labels import AUTO, is_person_camera, p_duke_names
from dpm_edge.market import LabelledFolder, query_and_gallery, read_folder

OCCLUDED, WHOLE = 1, 2
"""Camera ids of sets that have no cameras: occluded pictures and whole ones, so that no true match is dropped."""


@dataclass(frozen=True)
class Dataset:
    """What is scored on, and what is trained on where that was asked for and the layout has such a part."""

    layout: str
    query: LabelledFolder
    gallery: LabelledFolder
    train: LabelledFolder | None = None


def find_layout(root: Path) -> str:
    """Tell a data set's layout by the folders in it.

    Raises:
        DataError: it is of no known layout; the message says what is there.
    """
    if not root.is_dir():
        raise DataError(f"expected the folder of a labelled data set, got {root}, which is no folder")

    def has(*names: str) -> bool:
        return all((root / name).is_dir() for name in names)

    if (root / "list_query.txt").is_file():
        return "msmt17"
    if has("bounding_box_test") or has("bounding_box_train"):
        return "market"
    for layout, folders in (
        ("p_duke", ("test/occluded_body_images", "test/whole_body_images")),
        ("occluded_reid", ("occluded_body_images", "whole_body_images")),
        ("partial_reid", ("partial_body_images", "whole_body_images")),
    ):
        if has(*folders):
            return layout
    if has("test") or has("query", "gallery") or is_person_camera(_below(root), root):
        return "cameras"
    raise DataError(
        f"expected a data set in one of the layouts {', '.join(LAYOUTS)}, got {root}, which holds {_holds(root)}. Put "
        "your own pictures in test/PERSON/CAMERA/ (docs/training.md), or name the layout with --layout"
    )


def read_dataset(root: Path, layout: str = AUTO, *, train: bool = False) -> Dataset:
    """Read the labels of a data set, and check that it can be scored on; no picture is opened.

    Args:
        root: its folder.
        layout: a name of LAYOUTS, or "auto" to find it by looking.
        train: also read the part that is trained on, and check it.

    Raises:
        DataError: unknown layout, missing folders or pictures, one camera alone; of the training part: people who are
            also tested (named), or nobody with two pictures.
    """
    layout = find_layout(root) if layout == AUTO else layout
    if layout not in LAYOUTS:
        raise DataError(f"expected a layout, got {layout!r}.{nearest(layout, [*LAYOUTS, AUTO])}")
    if not root.is_dir():
        raise DataError(f"expected the folder of a data set of layout {layout!r}, got {root}, which is no folder")
    query, gallery, learned = LAYOUTS[layout](root, train)
    if learned is not None:
        learned = _checked(learned, query, root, layout)
    cameras = set(query.cameras.tolist()) | set(gallery.cameras.tolist())
    if len(cameras) < 2:
        raise DataError(
            f"expected queries and gallery of two cameras or more, got one in {root}: matches of the same camera do "
            "not count, so nothing is left to find. Add pictures of another camera"
        )
    return Dataset(layout, query, gallery, learned)


def take(folder: LabelledFolder, keep: NDArray[np.bool_] | list[bool]) -> LabelledFolder:
    """Keep the rows where keep (N,) bool is true."""
    keep = np.asarray(keep, bool)
    return folder.take(keep)


def _below(root: Path) -> list[Path]:
    try:
        return find_images(root)
    except ImageError:
        return []


def _holds(root: Path) -> str:
    names = sorted(path.name for path in root.iterdir())
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"


Parts = tuple[LabelledFolder, LabelledFolder, "LabelledFolder | None"]
"""Query, gallery, and the training part where it is asked for and there."""


def _pictures(folder: Path) -> list[Path]:
    try:
        return find_images(folder)
    except ImageError as error:
        raise DataError(str(error)) from error


def _table(rows: list[tuple[Path, int, int]]) -> LabelledFolder:
    people, cameras = (np.array([row[i] for row in rows], np.int64) for i in (1, 2))
    return LabelledFolder([path for path, _, _ in rows], people, cameras)


def _market(root: Path, train: bool) -> Parts:
    """bounding_box_train, query, bounding_box_test; names 0002_c1s1_000451_03.jpg. Occluded-Duke is laid out alike, and
    so is CUHK03's 767/700 protocol once unpacked to these folders and names."""
    query, gallery = query_and_gallery(root)
    folder = root / "bounding_box_train"
    return query, gallery, read_folder(folder) if train and folder.is_dir() else None


def _msmt17(root: Path, train: bool) -> Parts:
    """train/, test/ and list_{train,val,query,gallery}.txt with lines `0000/0000_000_01_0303morning_0008_0.jpg 0`.

    The camera is the third number of the name; train and val lists are trained on together, as published.
    """

    def listed(name: str, folder: str) -> list[tuple[Path, int, int]]:
        path = root / f"list_{name}.txt"
        if not path.is_file():
            raise DataError(f"expected list_train, list_val, list_query and list_gallery .txt in {root}, got no {path}")
        rows = []
        for number, line in enumerate(decode_text(path, path.read_bytes()).split("\n"), 1):
            if line.strip():
                try:
                    file, person = line.rsplit(" ", 1)
                    rows.append((root / folder / file, int(person), int(Path(file).name.split("_")[2])))
                except (ValueError, IndexError) as error:
                    raise DataError(
                        f"{path}, line {number}: expected a picture and its person, such as "
                        f"`0000/0000_000_01_0303morning_0008_0.jpg 0`, got {line!r}"
                    ) from error
        return rows

    learned = _table(listed("train", "train") + listed("val", "train")) if train else None
    return _table(listed("query", "test")), _table(listed("gallery", "test")), learned


def _two_halves(root: Path, occluded: str) -> Parts:
    """PERSON/… folders (or PERSON_… files) below an occluded and a whole half: queries and gallery.

    These sets record no cameras. The published numbers count every whole picture of the person as a match, so the
    halves get different camera ids and the protocol's same-camera rule drops nothing.
    """

    def half(name: str, camera: int) -> LabelledFolder:
        folder = root / name
        rows = []
        for path in _pictures(folder):
            match = re.match(r"\d+", path.relative_to(folder).parts[0])
            if match is None:
                raise DataError(f"expected a folder or name that starts with the person's number, got {path}")
            rows.append((path, int(match[0]) + 1, camera))
        return _table(rows)

    return half(occluded, OCCLUDED), half("whole_body_images", WHOLE), None


def _occluded_reid(root: Path, train: bool) -> Parts:
    """occluded_body_images/001/… are queries, whole_body_images/001/… the gallery. Evaluation only."""
    return _two_halves(root, "occluded_body_images")


def _partial_reid(root: Path, train: bool) -> Parts:
    """partial_body_images/001_01.jpg are queries, whole_body_images/001_01.jpg the gallery. Evaluation only."""
    return _two_halves(root, "partial_body_images")


def _p_duke(root: Path, train: bool) -> Parts:
    """train/ and test/, each with occluded_body_images/PERSON/ and whole_body_images/PERSON/; names 0001_c1_….jpg."""

    def half(split: str, name: str) -> list[tuple[Path, int, int]]:
        rows = []
        for path in _pictures(root / split / name):
            names = p_duke_names(path)
            if names is None:
                raise DataError(f"expected PERSON/…cCAMERA….jpg, such as 0001/0001_c1_f0044158.jpg, got {path}")
            rows.append((path, int(names[0] or 0), int(names[1] or 0)))
        return rows

    halves = ("occluded_body_images", "whole_body_images")
    query, gallery = (_table(half("test", name)) for name in halves)
    learned = _table([row for name in halves for row in half("train", name)]) if train else None
    return query, gallery, learned


def _cameras(root: Path, train: bool) -> Parts:
    """A user's own: test/PERSON/CAMERA/*.jpg, or query/ and gallery/ alike; train/ to train on.

    A folder of PERSON/CAMERA/ alone is its own test part. Of a test part, one picture of each person and camera is a
    query; the others are the gallery. The only picture of a person and camera is both: the protocol drops a query's
    matches of its own camera, itself among them.
    """
    people: dict[str, int] = {}
    cameras: dict[str, int] = {}

    def part(folder: Path) -> LabelledFolder:
        rows = []
        for path in _pictures(folder):
            parts = path.relative_to(folder).parts
            if len(parts) != 3:
                raise DataError(f"expected {folder}/PERSON/CAMERA/picture, got {path}")
            who, where = parts[:2]
            rows.append((path, people.setdefault(who, len(people) + 1), cameras.setdefault(where, len(cameras))))
        return _table(rows)

    learned = part(root / "train") if train and (root / "train").is_dir() else None
    if (root / "query").is_dir():
        return part(root / "query"), part(root / "gallery"), learned
    alone = not any((root / name).is_dir() for name in ("test", "train"))
    test = part(root if alone else root / "test")
    seen = np.stack([test.people, test.cameras])
    _, first, place, count = np.unique(seen, axis=1, return_index=True, return_inverse=True, return_counts=True)
    is_query = np.isin(np.arange(len(test)), first)
    return take(test, is_query), take(test, ~is_query | (count[place.ravel()] == 1)), learned


LAYOUTS: dict[str, Callable[[Path, bool], Parts]] = {
    "market": _market,
    "occluded_duke": _market,
    "msmt17": _msmt17,
    "cuhk03": _market,
    "occluded_reid": _occluded_reid,
    "partial_reid": _partial_reid,
    "p_duke": _p_duke,
    "cameras": _cameras,
}
"""Layout → its reader; what `--layout` and `data.layout` take, beside "auto"."""


def _checked(train: LabelledFolder, query: LabelledFolder, root: Path, layout: str) -> LabelledFolder:
    """The training part without junk and distractors. Raises DataError as `read_dataset` does."""
    train = take(train, train.people > 0 if LAYOUTS[layout] is _market else train.people >= 0)
    if layout != "msmt17":  # its train and test lists count people from 0 each
        both = sorted(set(train.people.tolist()) & (set(query.people.tolist()) - {0, -1}))
        if both:
            one = query.paths[int(np.flatnonzero(query.people == both[0])[0])]
            raise DataError(
                f"expected other people to test on than to train on, got {len(both)} in both parts of {root}: "
                f"numbers {both[:10]}, such as the one of {one}. Move each person into one part"
            )
    if len(train) == 0 or np.unique(train.people, return_counts=True)[1].max() < 2:
        raise DataError(
            f"expected training people with two pictures or more, got {len(train)} pictures in {root} and nobody with "
            "two: nothing can be learned from these. Add pictures of the same people"
        )
    return train
