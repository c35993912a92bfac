"""The rendered sample people that ship: Market-1501's layout, and how much of each person can be seen."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError
from dpm_edge.market import LabelledFolder, query_and_gallery
from dpm_edge.shipped import ASSETS

FOLDER = ASSETS / "samples"
LABELS = "labels.csv"
LEAST_SHOWN = 0.35
"""Share in sight from which somebody can judge a match by eye."""


@dataclass(frozen=True)
class Samples:
    """Queries and gallery, and the visible share of every query."""

    query: LabelledFolder
    gallery: LabelledFolder
    visible: NDArray[np.float64]
    """(Q,) share of the person that can be seen, 0..1, as rendered."""


def read_samples(folder: Path) -> Samples:
    """The samples of a folder with query/, bounding_box_test/ and labels.csv (columns `file` and `visible`).

    Raises:
        DataError: something is missing; it is named.
    """
    query, gallery = query_and_gallery(folder)
    path = folder / LABELS
    if not path.is_file():
        raise DataError(f"{path} is missing: a CSV with the columns file and visible is wanted")
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not {"file", "visible"} <= set(rows[0]):
        raise DataError(f"{path} has the columns {list(rows[0]) if rows else []}; file and visible are wanted")
    share = {Path(row["file"]).name: float(row["visible"]) for row in rows}
    missing = [p.name for p in query.paths if p.name not in share]
    if missing:
        raise DataError(f"{path} does not say how much of {missing[0]} can be seen ({len(missing)} such files)")
    return Samples(query, gallery, np.array([share[p.name] for p in query.paths]))


def choose(samples: Samples, rows: NDArray[np.int64], count: int) -> list[int]:
    """Positions in `rows` of the queries to show: three quarters the most hidden of different people, then whole ones.

    `rows` are the query rows that were embedded. A query that no other camera saw is left out. Queries with less than
    LEAST_SHOWN in sight come only where there are too few others: a person reading the picture could not judge them.
    """
    people = samples.query.people[rows]
    cameras = samples.query.cameras[rows]
    visible = samples.visible[rows]
    answerable = [
        bool(((samples.gallery.people == p) & (samples.gallery.cameras != c)).any()) for p, c in zip(people, cameras)
    ]
    rising = [int(i) for i in np.argsort(visible, kind="stable") if answerable[i]]
    readable = sorted(rising, key=lambda i: visible[i] < LEAST_SHOWN)
    hidden = _first_of_each(readable, people, count - count // 4)
    taken = {people[i] for i in hidden}
    whole = _first_of_each([i for i in reversed(rising) if people[i] not in taken], people, count // 4)
    return hidden + whole


def _first_of_each(order: list[int], people: NDArray[np.int64], count: int) -> list[int]:
    """The first `count` of `order` with different people."""
    seen: dict[int, int] = {}
    for i in order:
        seen.setdefault(int(people[i]), i)
    return list(seen.values())[:count]
