"""Whole data sets of rendered people, in Market-1501's layout, with exact labels.

    OUT/bounding_box_train/0001_c3s1_000007_00.jpg     person, camera, view
    OUT/query/…, OUT/bounding_box_test/…               the last `test` people: one query for each camera
    OUT/labels/0001.csv                                file, person, camera, occluder, visible, seed: one file a person
    OUT/labels.csv                                     all of them
    OUT/masks/bounding_box_train/0001_c3s1_000007_00.png   where the person is seen; as in each folder. First edition:
                                                           one bit a pixel. Second: 255 seen, 100 hidden, 0 neither

Every picture follows from (seed, person, view) alone, whatever the number of workers. A person whose labels,
pictures and masks are there is left alone, so that a run that was stopped goes on where it was; a set made without
masks gets them by the same command, and its pictures stay.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from dpm_edge.env import cores
from dpm_edge.errors import DataError
from dpm_edge.files import write_whole
from dpm_edge.progress import say, track
from dpm_edge.train.synthetic import camera as c
from dpm_edge.train.synthetic import scene
from dpm_edge.train.synthetic.layout import HIDDEN, SEEN, mask_of

COLUMNS = ("file", "person", "camera", "occluder", "visible", "seed")
PASSERS_BY = 16
"""Other people who walk in front; they are in no split."""
LEAST_VISIBLE = 0.12
"""A picture that shows less of the person is drawn again with another generator."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a data set is made of.

    people, views: how many, and pictures of each. test: people of the query and gallery folders, the last ones; all of
    them where it equals `people`. occluded: share of training and gallery pictures with something in front, and
    `query_occluded` that of the queries. height, width: pixels of a picture. quality: JPEG, 1–100. seed: of all;
    first: number of the first person, so that two sets of one seed can be kept apart. cameras: of the site, each
    person is seen by at most `views` of them. edition: 1, or 2 for look-alikes in textured cloth, harsher cameras and a
    detector's boxes (dpm_edge.train.synthetic.second).
    """

    people: int = 1000
    views: int = 16
    test: int = 100
    occluded: float = 0.35
    query_occluded: float = 0.5
    height: int = 256
    width: int = 128
    quality: int = 85
    seed: int = 1
    first: int = 1
    cameras: int = c.CAMERAS
    edition: int = 1
    wardrobe: str = ""

    def __post_init__(self) -> None:
        if self.people < 1 or self.views < 2 or not 0 <= self.test <= self.people:
            raise DataError(f"{self.people} people, {self.test} of them for testing, {self.views} views: at least one "
                            "person with two views, and no more test people than people, are wanted")  # fmt: skip
        if min(self.height, self.width) < 32 or not 1 <= self.quality <= 100 or self.first < 1 or self.seed < 0:
            raise DataError(f"size {self.height}×{self.width}, quality {self.quality}, first person {self.first}, seed "
                            f"{self.seed}: 32 pixels or more, 1–100, 1 or more and 0 or more are wanted")  # fmt: skip
        if self.cameras < 2 or self.edition not in (1, 2, 3):
            raise DataError(f"expected 2 cameras or more and edition 1, 2 or 3, got {self.cameras} and {self.edition}.")
        if (self.edition == 3) != bool(self.wardrobe):
            raise DataError(f"expected a wardrobe with edition 3 alone, got edition {self.edition} and wardrobe "
                            f"{self.wardrobe or 'none'}. Pass a checkout of "
                            "https://github.com/makehumancommunity/makehuman-assets with --edition 3.")  # fmt: skip
        if not (0 <= self.occluded <= 1 and 0 <= self.query_occluded <= 1):
            raise DataError(f"occluded shares {self.occluded} and {self.query_occluded} must lie in 0–1")


def plan(settings: Settings, person: int) -> Iterator[tuple[str, int, int, bool]]:
    """(folder, view, camera, is it a query) of each of a person's pictures."""
    tested = person >= settings.first + settings.people - settings.test
    order = np.random.default_rng([settings.seed, 4, person]).permutation(settings.cameras)
    for view in range(settings.views):
        camera = int(order[view % settings.cameras])
        query = tested and settings.views > c.CAMERAS // 2 and view < min(c.CAMERAS, settings.views // 2)
        yield ("query" if query else "bounding_box_test") if tested else "bounding_box_train", view, camera, query


@lru_cache(maxsize=1)
def _body() -> Any:
    from dpm_edge.train.synthetic.body import load_body

    return load_body()


@lru_cache(maxsize=PASSERS_BY)
def _someone(seed: int, number: int, edition: int, wardrobe: str) -> tuple[Any, Any]:
    return _dressed(seed, number, edition, wardrobe)


def _dressed(seed: int, number: int, edition: int, wardrobe: str) -> tuple[Any, Any]:
    """A person of an edition, and their figure."""
    if edition == 3:
        from dpm_edge.train.synthetic.third import draw_person_3, dress_3
        from dpm_edge.train.synthetic.wardrobe import load_wardrobe

        person = draw_person_3(load_wardrobe(Path(wardrobe)), seed, number)
        return person, dress_3(_body(), person)
    from dpm_edge.train.synthetic.figure import dress
    from dpm_edge.train.synthetic.person import draw_person
    from dpm_edge.train.synthetic.second import draw_person_2

    plain = draw_person_2(seed, number) if edition == 2 else draw_person(seed, number)
    return plain, dress(_body(), plain)


def _camera(settings: Settings, number: int) -> Any:
    if settings.edition == 1:
        return c.draw_camera(settings.seed, number)
    from dpm_edge.train.synthetic.second import draw_camera_2
    from dpm_edge.train.synthetic.third import draw_camera_3

    return (draw_camera_2 if settings.edition == 2 else draw_camera_3)(settings.seed, number)


def _textures(settings: Settings) -> Any:
    from dpm_edge.train.synthetic.wardrobe import NOTHING, load_wardrobe

    if settings.edition != 3:
        return NOTHING
    wardrobe = load_wardrobe(Path(settings.wardrobe))
    return wardrobe.textures, wardrobe.alpha


def render_person(settings: Settings, person: int, out: Path) -> int:
    """Render what is missing of one person; returns how many pictures were drawn.

    Raises DataError where a picture that is there was made with other settings: its mask would not be its own.
    """
    labels = out / "labels" / f"{person:04d}.csv"
    planned = [
        (f"{person:04d}_c{k + 1}s1_{view:06d}_00.jpg", folder, view, k, q)
        for folder, view, k, q in plan(settings, person)
    ]
    done = all(_whole(out / f / name) and mask_of(out, f"{f}/{name}").is_file() for name, f, *_ in planned)
    if labels.is_file() and done:
        return 0
    from dpm_edge.train.synthetic.picture import take

    cv2.setNumThreads(1)
    who = _dressed(settings.seed, person, settings.edition, settings.wardrobe)
    rows = []
    known = {row[0]: row for row in _read(labels)} if labels.is_file() else {}
    for name, folder, view, number, query in planned:
        camera = _camera(settings, number)
        for attempt in range(20):
            rng = np.random.default_rng([settings.seed, 5, person, view, attempt])
            covered = rng.random() < (settings.query_occluded if query else settings.occluded)
            kind = str(rng.choice(scene.KINDS)) if covered else ""
            other = None
            if kind == "passer-by":
                other = _someone(
                    settings.seed + 1_000_003, int(rng.integers(PASSERS_BY)), settings.edition, settings.wardrobe
                )
            size = (settings.height, settings.width)
            shot = take(
                _body(),
                who,
                camera,
                rng,
                size=size,
                site=settings.seed,
                occluder=kind,
                other=other,
                edition=settings.edition,
                textures=_textures(settings),
            )
            if shot.visible >= LEAST_VISIBLE and (not kind or shot.visible < 0.97):
                break
        _, data = cv2.imencode(".jpg", shot.image, [cv2.IMWRITE_JPEG_QUALITY, settings.quality])
        row = (f"{folder}/{name}", person, number + 1, kind or "none", f"{shot.visible:.4f}", settings.seed)
        if _whole(out / folder / name):
            was = known.get(row[0])
            if was is not None and tuple(was) != tuple(map(str, row)):
                raise DataError(f"{out / folder / name} was rendered with other settings ({', '.join(was)}; now "
                                f"{', '.join(map(str, row))}): use those again, or another folder")  # fmt: skip
        else:
            write_whole(out / folder / name, data.tobytes())
        mask_of(out, row[0]).parent.mkdir(parents=True, exist_ok=True)
        if settings.edition >= 2:
            grey = np.where(shot.mask, SEEN, np.where(shot.whole, HIDDEN, 0)).astype(np.uint8)
            _, bits = cv2.imencode(".png", grey)
        else:
            _, bits = cv2.imencode(".png", shot.mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
        write_whole(mask_of(out, f"{folder}/{name}"), bits.tobytes())
        rows.append(row)
    write_whole(labels, _csv(rows))
    return len(rows)


def _whole(path: Path) -> bool:
    """Whether a JPEG is there to its last two bytes."""
    return path.is_file() and path.read_bytes()[-2:] == b"\xff\xd9"


def _csv(rows: list[tuple]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows(rows)
    return text.getvalue().encode()


def render(settings: Settings, out: Path, *, workers: int = 0, quiet: bool = False) -> dict[str, int]:
    """Render a data set, going on where an earlier run stopped. Returns the pictures in each folder.

    Raises:
        MissingLibrary: anny or numba is not installed.
        OSError: the disk is full; what is whole stays.
    """
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    (out / "labels").mkdir(exist_ok=True)
    _body()  # builds anny's cache once, before the workers would all build it
    numbers = range(settings.first, settings.first + settings.people)
    workers = min(workers or cores(), settings.people)
    if workers == 1:
        for person in track(numbers, what="people", quiet=quiet):
            render_person(settings, person, out)
    else:
        with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_one_thread) as pool:
            waiting = [pool.submit(render_person, settings, person, out) for person in numbers]
            for done in track(as_completed(waiting), what="people", total=len(waiting), quiet=quiet):
                done.result()
    rows = [row for number in numbers for row in _read(out / "labels" / f"{number:04d}.csv")]
    write_whole(out / "labels.csv", _csv(rows))
    counts = {f: sum(r[0].startswith(f) for r in rows) for f in ("bounding_box_train", "query", "bounding_box_test")}
    if not quiet:
        say(f"{out}: " + ", ".join(f"{n} in {f}" for f, n in counts.items()))
    return counts


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def _read(path: Path) -> list[tuple]:
    with path.open(newline="") as file:
        return [tuple(row) for row in list(csv.reader(file))[1:]]
