"""Who is on a picture and which camera took it, by the path alone: names of people and cameras for a gallery.

    read_people(folder)    every picture below a folder with its person and camera
    labels_of(paths)       the same for paths that are at hand, such as an embeddings file's sources

N pictures. `dpm_edge.layouts` splits such folders into queries and a gallery to score on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpm_edge.errors import DataError, nearest
from dpm_edge.images import find_images
from dpm_edge.market import NAME

AUTO, UNLABELLED = "auto", "none"
"""What `--layout` takes beside a layout's name: found by looking; pictures without person and camera."""
PARTS = ("train", "test", "query", "gallery")
"""Folders that a layout's people stand in; never a person's name."""
DATE = re.compile(r"(19|20)\d\d([-_.]?(0\d|1[0-2])([-_.]?[0-3]\d)?)?")
"""A folder of an archive by year, month or day, which is neither a person nor a camera."""
Names = tuple[str | None, str | None]
"""Person and camera; None where nothing says so."""


@dataclass(frozen=True)
class LabelledPictures:
    """N pictures with the names of their people and cameras; None where nothing says who it is, or which camera."""

    layout: str
    """The layout that the names come from; UNLABELLED where none does."""
    paths: list[Path]
    people: list[str | None]
    cameras: list[str | None]

    def __len__(self) -> int:
        return len(self.paths)

    def describe(self) -> str:
        """Say what was found, in one line: a user must see a folder that was misread."""
        if self.layout == UNLABELLED:
            return f"{len(self)} pictures without person and camera"
        known = [person for person in self.people if person is not None]
        cameras = {camera for camera in self.cameras if camera is not None}
        nobody = f", {len(self) - len(known)} of nobody known" if len(known) < len(self) else ""
        return f"layout {self.layout}: {len(self)} pictures, {len(set(known))} people, {len(cameras)} cameras{nobody}"


def read_people(folder: Path, layout: str = AUTO) -> LabelledPictures:
    """List every picture below `folder`, sorted, with its person and camera by name.

    Args:
        folder: of any layout, or of pictures without labels.
        layout: a name of LAYOUTS; "auto" to find it by looking; "none" for pictures without labels.

    Raises:
        ImageError: there is no folder, or no picture in it.
        DataError: unknown layout, or a picture that does not follow the layout that was named.
    """
    paths = find_images(folder)
    return _labelled(paths, folder, layout)


def labels_of(
    paths: Sequence[Path | str], layout: str = AUTO, root: Path | None = None
) -> tuple[list[str | None], list[str | None]]:
    """Give the person and the camera of each path by its name; no file is looked at.

    Args:
        paths: of pictures.
        layout: as `read_people` takes it.
        root: the folder that they lie below; without one, "auto" takes the deepest folder that all of them share.

    Returns:
        N people and N cameras; None where the path does not say.

    Raises:
        DataError: unknown layout, or a path that does not follow the layout that was named.
    """
    files = [Path(path) for path in paths]
    found = _labelled(files, root or (_common(files) if layout == AUTO else Path()), layout)
    return found.people, found.cameras


def is_person_camera(paths: Sequence[Path], root: Path) -> bool:
    """Tell whether all paths are PERSON/CAMERA/picture below root or a part of it, such as test/.

    An archive in folders by date is none, whichever of the two levels the dates are on.
    """
    found = [path.parts for path in _below(paths, root)]
    below = [parts[1:] if len(parts) > 3 and parts[0] in PARTS else parts for parts in found]
    if not below or any(len(parts) != 3 for parts in below):
        return False
    levels = [{parts[level] for parts in below} for level in (0, 1)]
    return not any(all(DATE.fullmatch(name) for name in names) for names in levels)


def _below(paths: Sequence[Path], root: Path) -> list[Path]:
    return [path.relative_to(root) if path.is_relative_to(root) else path for path in paths]


def _labelled(paths: list[Path], root: Path, layout: str) -> LabelledPictures:
    """The paths, which lie below root, with what the layout says of each."""
    known = [*NAMES, AUTO, UNLABELLED]
    if layout not in known:
        raise DataError(f"expected a layout, got {layout!r}.{nearest(layout, known)}")
    name = _layout_of(paths, root) if layout == AUTO else layout
    below = _below(paths, root) if name == "cameras" else paths  # a folder above root is nobody's name
    named = [None if name == UNLABELLED else NAMES[name][0](path) for path in below]
    strange = [path for path, one in zip(paths, named) if one is None]
    if strange and layout not in (AUTO, UNLABELLED):
        raise DataError(
            f"expected paths like {NAMES[layout][1]} (layout {layout}), got {strange[0]} and {len(strange) - 1} more. "
            "Rename them, or give --layout none for pictures without labels"
        )
    both = [one or (None, None) for one in named]
    return LabelledPictures(name, paths, [person for person, _ in both], [camera for _, camera in both])


def _layout_of(paths: list[Path], root: Path) -> str:
    """Market-1501's names speak for themselves, each of them; else PERSON/CAMERA folders; else nothing is known."""
    of_market = [NAME.match(path.name) is not None for path in paths]
    if paths and all(of_market):
        return "market"
    if is_person_camera(paths, root):
        return "cameras"
    return "market" if any(of_market) else UNLABELLED


def _common(paths: list[Path]) -> Path:
    """The deepest folder that holds all paths."""
    folders = [path.parent.parts for path in paths]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    return Path(*folders[0][:shared]) if shared else Path()


def _market_names(path: Path) -> Names | None:
    match = NAME.match(path.name)
    if match is None:
        return None
    return (match["person"] if int(match["person"]) > 0 else None), match["camera"]


def _msmt17_names(path: Path) -> Names | None:
    numbers = path.name.split("_")
    part = next((p for p in reversed(path.parts) if p in ("train", "test")), "")
    return (f"{part}/{path.parent.name}", numbers[2]) if len(numbers) > 3 and path.parent.name.isdigit() else None


def p_duke_names(path: Path) -> Names | None:
    """Read PERSON/…cCAMERA….jpg, such as 0001/0001_c1_f0044158.jpg; None for another path."""
    camera = re.search(r"_?c(\d+)", path.name)
    return (path.parent.name, camera[1]) if camera and path.parent.name.isdigit() else None


def _halves_names(path: Path) -> Names | None:
    below = next((i for i in range(len(path.parts) - 1, 0, -1) if path.parts[i - 1].endswith("_body_images")), 0)
    number = re.match(r"\d+", path.parts[below]) if below else None
    return (number[0], None) if number else None


def _camera_names(path: Path) -> Names | None:
    person, camera = path.parts[-3:-1] if len(path.parts) >= 3 else ("", "")
    return (person, camera) if person and person not in PARTS else None


NAMES: dict[str, tuple[Callable[[Path], Names | None], str]] = {
    **dict.fromkeys(("market", "occluded_duke", "cuhk03"), (_market_names, "0002_c1s1_000451_03.jpg")),
    "msmt17": (_msmt17_names, "test/0000/0000_000_01_0303morning_0008_0.jpg"),
    "occluded_reid": (_halves_names, "occluded_body_images/001/001_01.jpg"),
    "partial_reid": (_halves_names, "partial_body_images/001_01.jpg"),
    "p_duke": (p_duke_names, "0001/0001_c1_f0044158.jpg"),
    "cameras": (_camera_names, "PERSON/CAMERA/picture.jpg"),
}
"""Layout → what its paths say of a picture (None: nothing), and an example."""
