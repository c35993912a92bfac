"""The folder layouts of the field's data sets, and a plain one for a user's own cameras.

Each reader takes the root folder and returns a People: train, query and gallery, every picture with a person and a
camera. Person ids are numbers as the data set gives them; −1 is junk, 0 a distractor (Market-1501's convention).
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dpm_edge.errors import DataError, ImageError, nearest
from dpm_edge.images import find_images
from dpm_edge.market import LabelledFolder, query_and_gallery, read_folder

OCCLUDED, WHOLE = 1, 2
"""Camera ids of sets that have no cameras: occluded pictures and whole ones, so that no true match is dropped."""


@dataclass(frozen=True)
class People:
    """The three parts of a data set; a set that is only evaluated on has train None."""

    train: LabelledFolder | None
    query: LabelledFolder
    gallery: LabelledFolder


@dataclass(frozen=True)
class TrainingPeople(People):
    """A data set that can be trained on."""

    train: LabelledFolder


def _pictures(folder: Path) -> list[Path]:
    try:
        return find_images(folder)
    except ImageError as error:
        raise DataError(str(error)) from error


def _table(rows: list[tuple[Path, int, int]]) -> LabelledFolder:
    people, cameras = (np.array([row[i] for row in rows], np.int64) for i in (1, 2))
    return LabelledFolder([path for path, _, _ in rows], people, cameras)


def _market(root: Path) -> People:
    """bounding_box_train, query, bounding_box_test; names 0002_c1s1_000451_03.jpg. Occluded-Duke is laid out alike."""
    query, gallery = query_and_gallery(root)
    train = root / "bounding_box_train"
    return People(read_folder(train) if train.is_dir() else None, query, gallery)


def _msmt17(root: Path) -> People:
    """train/, test/ and list_{train,val,query,gallery}.txt with lines `0000/0000_000_01_0303morning_0008_0.jpg 0`.

    The camera is the third number of the name; train and val lists are trained on together, as published.
    """

    def listed(name: str, folder: str) -> list[tuple[Path, int, int]]:
        path = root / f"list_{name}.txt"
        if not path.is_file():
            raise DataError(f"{path} is missing: MSMT17 comes with list_train, list_val, list_query, list_gallery .txt")
        rows = []
        for line in path.read_text().split("\n"):
            if line.strip():
                file, person = line.rsplit(" ", 1)
                rows.append((root / folder / file, int(person), int(Path(file).name.split("_")[2])))
        return rows

    return People(
        _table(listed("train", "train") + listed("val", "train")),
        _table(listed("query", "test")),
        _table(listed("gallery", "test")),
    )


def _cuhk03(root: Path) -> People:
    """The 767/700 protocol unpacked to Market's folders and names (0001_c1_1.png under bounding_box_train/…)."""
    return _market(root)


def _two_halves(root: Path, occluded: str, whole: str) -> People:
    """PERSON/… folders (or PERSON_… files) below an occluded and a whole half: queries and gallery.

    These sets record no cameras. The published numbers count every whole picture of the person as a match, so the
    halves get different camera ids and the protocol's same-camera rule drops nothing.
    """

    def half(name: str, camera: int) -> LabelledFolder:
        folder = root / name
        rows = []
        for path in _pictures(folder):
            parts = path.relative_to(folder).parts
            match = re.match(r"\d+", parts[0])
            if match is None:
                raise DataError(f"{path}: the folder or name must start with the person's number, such as 001/")
            rows.append((path, int(match[0]) + 1, camera))
        return _table(rows)

    return People(None, half(occluded, OCCLUDED), half(whole, WHOLE))


def _occluded_reid(root: Path) -> People:
    """occluded_body_images/001/… are queries, whole_body_images/001/… the gallery. Evaluation only."""
    return _two_halves(root, "occluded_body_images", "whole_body_images")


def _partial_reid(root: Path) -> People:
    """partial_body_images/001_01.jpg are queries, whole_body_images/001_01.jpg the gallery. Evaluation only."""
    return _two_halves(root, "partial_body_images", "whole_body_images")


def _p_duke(root: Path) -> People:
    """train/ and test/, each with occluded_body_images/PERSON/ and whole_body_images/PERSON/; names 0001_c1_….jpg."""

    def half(split: str, name: str) -> list[tuple[Path, int, int]]:
        rows = []
        for path in _pictures(root / split / name):
            camera = re.search(r"_?c(\d+)", path.name)
            if not path.parent.name.isdigit() or camera is None:
                raise DataError(f"{path}: PERSON/…cCAMERA….jpg is wanted, such as 0001/0001_c1_f0044158.jpg")
            rows.append((path, int(path.parent.name), int(camera[1])))
        return rows

    train = half("train", "occluded_body_images") + half("train", "whole_body_images")
    return People(
        _table(train), _table(half("test", "occluded_body_images")), _table(half("test", "whole_body_images"))
    )


def _cameras(root: Path) -> People:
    """A user's own: train/PERSON/CAMERA/*.jpg, and query/ and gallery/ alike (or test/, one query per camera)."""

    def part(name: str, people: dict[str, int], cameras: dict[str, int]) -> LabelledFolder:
        rows = []
        for path in _pictures(root / name):
            parts = path.relative_to(root / name).parts
            if len(parts) != 3:
                raise DataError(f"{path}: {name}/PERSON/CAMERA/picture is wanted")
            rows.append(
                (path, people.setdefault(parts[0], len(people) + 1), cameras.setdefault(parts[1], len(cameras)))
            )
        return _table(rows)

    people: dict[str, int] = {}
    cameras: dict[str, int] = {}
    train = part("train", people, cameras) if (root / "train").is_dir() else None
    if (root / "query").is_dir():
        return People(train, part("query", people, cameras), part("gallery", people, cameras))
    test = part("test", people, cameras)
    _, first = np.unique(np.stack([test.people, test.cameras]), axis=1, return_index=True)
    is_query = np.isin(np.arange(len(test)), first)
    return People(train, take(test, is_query), take(test, ~is_query))


def take(folder: LabelledFolder, keep: np.ndarray | list[bool]) -> LabelledFolder:
    """The rows where keep (N,) bool is true."""
    keep = np.asarray(keep, bool)
    return LabelledFolder([p for p, k in zip(folder.paths, keep) if k], folder.people[keep], folder.cameras[keep])


LAYOUTS: dict[str, Callable[[Path], People]] = {
    "market": _market,
    "occluded_duke": _market,
    "msmt17": _msmt17,
    "cuhk03": _cuhk03,
    "occluded_reid": _occluded_reid,
    "partial_reid": _partial_reid,
    "p_duke": _p_duke,
    "cameras": _cameras,
}


def read_people(layout: str, root: Path) -> People:
    """The data set below root, checked.

    Raises:
        DataError: unknown layout, missing folders, people in both train and test (named), no training person with two
            pictures, or all training pictures from one camera and the test part unable to score.
    """
    if layout not in LAYOUTS:
        raise DataError(f"no layout {layout!r}.{nearest(layout, LAYOUTS)}")
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; a data set of layout {layout!r} is wanted")
    people = LAYOUTS[layout](root)
    train = people.train
    if train is not None:
        real = train.people > 0 if layout in ("market", "occluded_duke", "cuhk03") else train.people >= 0
        train = take(train, real)
        if layout != "msmt17":  # its train and test lists count people from 0 each
            both = sorted(set(train.people.tolist()) & (set(people.query.people.tolist()) - {0, -1}))
            if both:
                raise DataError(f"{root}: people {both[:10]} are in both train and query: test people must be unseen")
        if len(train) == 0 or np.unique(train.people, return_counts=True)[1].max() < 2:
            raise DataError(f"{root}: no training person has two pictures; nothing can be learned from these")
    cameras = set(people.query.cameras.tolist()) | set(people.gallery.cameras.tolist())
    if len(cameras) < 2:
        raise DataError(
            f"{root}: query and gallery have one camera ({cameras.pop()}): the protocol drops every match of the "
            "same camera, so nothing is left to find. Give pictures of two cameras or more"
        )
    return People(train, people.query, people.gallery)


def visible_shares(folder: LabelledFolder, labels: Path) -> np.ndarray:
    """(N,) share of each person that is visible, from a rendered set's labels.csv (columns file, visible).

    Raises DataError where the file or a picture's row is missing.
    """
    if not labels.is_file():
        raise DataError(f"{labels} is missing: data.min_visible needs a rendered set's labels")
    with labels.open(newline="") as file:
        shares = {Path(row["file"]).name: float(row["visible"]) for row in csv.DictReader(file)}
    missing = [p.name for p in folder.paths if p.name not in shares]
    if missing:
        raise DataError(f"{labels} has no row for {len(missing)} pictures, such as {missing[0]}")
    return np.array([shares[p.name] for p in folder.paths])
