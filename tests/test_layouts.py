"""Every layout of labelled folders, on folders of a few pictures: found by looking, read, or refused by name."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dpm_edge.cli.options import LAYOUTS as OFFERED
from dpm_edge.errors import DataError
from dpm_edge.evaluation import market_scores
from dpm_edge.labels import labels_of, read_people
from dpm_edge.layouts import LAYOUTS, Dataset, find_layout, read_dataset
from dpm_edge.market import LabelledFolder

MARKET = [
    "bounding_box_train/0002_c1s1_000451_03.jpg",
    "bounding_box_train/0002_c3s1_000551_01.jpg",
    "bounding_box_train/0007_c2s1_000100_01.jpg",
    "query/0001_c1s1_001051_00.jpg",
    "bounding_box_test/0001_c2s1_000776_01.jpg",
    "bounding_box_test/0000_c4s1_000776_01.jpg",
    "bounding_box_test/-1_c2s1_000776_03.jpg",
]
DUKE = [
    "bounding_box_train/0001_c2_f0046182.jpg",
    "bounding_box_train/0001_c5_f0046302.jpg",
    "query/0005_c2_f0046985.jpg",
    "bounding_box_test/0005_c1_f0047105.jpg",
]
CUHK03 = [
    "bounding_box_train/0001_c1_1.png",
    "bounding_box_train/0001_c2_6.png",
    "query/0009_c1_1.png",
    "bounding_box_test/0009_c2_7.png",
]
P_DUKE = [
    "train/occluded_body_images/0003/0003_c1_f0001.jpg",
    "train/whole_body_images/0003/0003_c2_f0009.jpg",
    "test/occluded_body_images/0008/0008_c3_f0001.jpg",
    "test/whole_body_images/0008/0008_c4_f0001.jpg",
]
MSMT17 = {
    "train": "0000/0000_000_01_0303morning_0008_0.jpg",
    "val": "0000/0000_001_14_0303noon_0020_1.jpg",
    "query": "0000/0000_000_05_0303morning_0015_0.jpg",
    "gallery": "0000/0000_002_06_0303evening_0015_0.jpg",
}
HALVES = [f"{half}/{person:03d}/{shot}.jpg" for half in ("occluded_body_images", "whole_body_images")
          for person in (1, 2) for shot in (1, 2, 3)]  # fmt: skip
PARTIAL = ["partial_body_images/001_01.jpg", "whole_body_images/001_01.jpg"]
OWN = [f"{part}/{who}/{where}/{shot}.png" for part, people in (("train", ("ann", "bob")), ("test", ("cleo", "dan")))
       for who in people for where in ("door", "yard") for shot in "ab"]  # fmt: skip


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 4, 3), 90, np.uint8))
    return root


def put_msmt17(root: Path) -> Path:
    for part, name in MSMT17.items():
        put(root, f"{'train' if part in ('train', 'val') else 'test'}/{name}")
        (root / f"list_{part}.txt").write_text(f"{name} 0\n")
    return root


def put_any(root: Path, layout: str) -> Path:
    """A folder of that layout."""
    if layout == "msmt17":
        return put_msmt17(root)
    files = {"market": MARKET, "occluded_duke": DUKE, "cuhk03": CUHK03, "p_duke": P_DUKE, "occluded_reid": HALVES}
    return put(root, *files.get(layout, PARTIAL if layout == "partial_reid" else OWN))


def labels(folder: LabelledFolder | None) -> list[tuple[int, int]]:
    assert folder is not None
    return sorted(zip(folder.people.tolist(), folder.cameras.tolist()))


def with_train(root: Path, layout: str = "auto") -> Dataset:
    return read_dataset(root, layout, train=True)


def test_market(tmp_path: Path) -> None:
    people = with_train(put(tmp_path, *MARKET), "market")
    assert labels(people.train) == [(2, 1), (2, 3), (7, 2)]
    assert labels(people.query) == [(1, 1)]
    assert labels(people.gallery) == [(-1, 2), (0, 4), (1, 2)]


def test_occluded_duke(tmp_path: Path) -> None:
    people = with_train(put(tmp_path, *DUKE), "occluded_duke")
    assert labels(people.train) == [(1, 2), (1, 5)] and labels(people.gallery) == [(5, 1)]


def test_cuhk03_unpacked_to_markets_names(tmp_path: Path) -> None:
    people = with_train(put(tmp_path, *CUHK03), "cuhk03")
    assert labels(people.train) == [(1, 1), (1, 2)] and labels(people.query) == [(9, 1)]


def test_msmt17_takes_the_camera_from_the_name_and_counts_test_people_anew(tmp_path: Path) -> None:
    people = with_train(put_msmt17(tmp_path), "msmt17")
    assert labels(people.train) == [(0, 1), (0, 14)]
    assert labels(people.query) == [(0, 5)] and labels(people.gallery) == [(0, 6)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_msmt17_lists_of_every_encoding_keep_the_first_line(encoding: str, tmp_path: Path) -> None:
    root = put_msmt17(tmp_path)
    wanted = read_dataset(root).query.paths
    for path in root.glob("list_*.txt"):
        path.write_text(path.read_text(), encoding=encoding)
    assert read_dataset(root).query.paths == wanted


def test_an_msmt17_list_that_is_no_text_is_named(tmp_path: Path) -> None:
    put_msmt17(tmp_path)
    (tmp_path / "list_query.txt").write_bytes("caf\u00e9/1.jpg 0".encode("latin-1"))
    with pytest.raises(DataError, match=r"expected text in UTF-8, got .*list_query\.txt"):
        read_dataset(tmp_path)


def test_a_line_of_an_msmt17_list_that_names_no_person_is_named(tmp_path: Path) -> None:
    put_msmt17(tmp_path)
    (tmp_path / "list_query.txt").write_text("\nholiday.jpg\n")
    with pytest.raises(DataError, match=r"list_query\.txt, line 2: expected .* got 'holiday\.jpg'"):
        read_dataset(tmp_path)


def test_p_duke_keeps_cameras_and_trains_on_both_halves(tmp_path: Path) -> None:
    people = with_train(put(tmp_path, *P_DUKE), "p_duke")
    assert labels(people.train) == [(3, 1), (3, 2)]
    assert labels(people.query) == [(8, 3)] and labels(people.gallery) == [(8, 4)]


@pytest.mark.parametrize(
    ("layout", "queries"), [("occluded_reid", "occluded_body_images"), ("partial_reid", "partial_body_images")]
)
def test_no_true_match_is_dropped_where_the_set_has_no_cameras(tmp_path: Path, layout: str, queries: str) -> None:
    """The camera-id rule: queries and gallery differ in camera, so the same-camera filter drops nothing."""
    people = with_train(put(tmp_path, *(name.replace("occluded_body_images", queries) for name in HALVES)), layout)
    assert people.train is None and len(people.query) == len(people.gallery) == 6
    same = people.query.people[:, None] == people.gallery.people[None]
    scores = market_scores(
        same.astype(float), people.query.people, people.query.cameras, people.gallery.people, people.gallery.cameras
    )
    assert scores.dropped_same_camera == 0 and scores.queries == 6 and scores.mean_average_precision == 1.0


def test_partial_reid_with_names_instead_of_folders(tmp_path: Path) -> None:
    people = with_train(put(tmp_path, *PARTIAL), "partial_reid")
    assert labels(people.query) == [(2, 1)] and labels(people.gallery) == [(2, 2)]


def test_a_users_own_cameras_need_no_renaming(tmp_path: Path) -> None:
    people = with_train(put(tmp_path, *OWN), "cameras")
    assert labels(people.train) == [(1, 0), (1, 0), (1, 1), (1, 1), (2, 0), (2, 0), (2, 1), (2, 1)]
    assert labels(people.query) == labels(people.gallery) == [(3, 0), (3, 1), (4, 0), (4, 1)]


def test_a_folder_of_people_and_cameras_is_its_own_test_part(tmp_path: Path) -> None:
    put(tmp_path, *OWN)
    whole, alone = read_dataset(tmp_path), read_dataset(tmp_path / "test")
    assert alone.layout == "cameras"
    assert (labels(alone.query), labels(alone.gallery)) == (labels(whole.query), labels(whole.gallery))


def test_one_picture_of_each_person_and_camera_is_query_and_gallery(tmp_path: Path) -> None:
    """Two people, two cameras, four pictures: each query's one match is the other camera's picture."""
    found = read_dataset(put(tmp_path, *(f"test/{who}/{where}/a.jpg" for who in "ab" for where in ("in", "out"))))
    assert found.query.paths == found.gallery.paths and len(found.query) == 4
    q, g = found.query, found.gallery
    same = (q.people[:, None] == g.people[None]).astype(float)
    scores = market_scores(same, q.people, q.cameras, g.people, g.cameras)
    assert (scores.queries, scores.dropped_same_camera, scores.mean_average_precision) == (4, 4, 1.0)


def test_only_the_single_pictures_are_on_both_sides(tmp_path: Path) -> None:
    names = ["test/ann/door/1.jpg", "test/ann/door/2.jpg", "test/ann/yard/1.jpg"]
    found = read_dataset(put(tmp_path, *names))
    below = [[path.relative_to(tmp_path).as_posix() for path in side.paths] for side in (found.query, found.gallery)]
    assert below == [[names[0], names[2]], [names[1], names[2]]]


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_layout_is_found_by_looking(tmp_path: Path, layout: str) -> None:
    found = find_layout(put_any(tmp_path, layout))
    assert found == ("market" if layout in ("occluded_duke", "cuhk03") else layout)  # laid out alike


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_looking_and_naming_read_the_same(tmp_path: Path, layout: str) -> None:
    root = put_any(tmp_path, layout)
    found, named = with_train(root), with_train(root, layout)
    for part in ("query", "gallery"):
        assert labels(getattr(found, part)) == labels(getattr(named, part))
    assert (found.train is None) == (named.train is None)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_an_empty_folder_is_refused_with_its_name(tmp_path: Path, layout: str) -> None:
    with pytest.raises(DataError, match=str(tmp_path)):
        read_dataset(tmp_path, layout)


def test_a_folder_of_no_layout_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    put(tmp_path, "holiday/1.jpg", "work/2.jpg")
    with pytest.raises(DataError, match=r"expected a data set .* which holds holiday, work\. Put .*--layout"):
        read_dataset(tmp_path)


def test_an_unknown_layout_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Did you mean 'market'"):
        read_dataset(tmp_path, "markt")


def test_people_in_both_parts_are_named(tmp_path: Path) -> None:
    put(tmp_path, *MARKET, "query/0002_c5s1_001051_00.jpg", "bounding_box_test/0002_c6s1_1_00.jpg")
    with pytest.raises(DataError, match=r"numbers \[2\], such as the one of .*0002_c5s1_001051_00\.jpg"):
        with_train(tmp_path)


def test_one_camera_alone_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "query/0001_c1s1_1_00.jpg", "bounding_box_test/0001_c1s2_7_01.jpg")
    with pytest.raises(DataError, match="two cameras or more, got one"):
        read_dataset(tmp_path)


def test_training_people_of_one_picture_each_are_refused(tmp_path: Path) -> None:
    put(tmp_path, MARKET[0], *MARKET[2:])
    with pytest.raises(DataError, match="nobody with two"):
        with_train(tmp_path)


def test_a_training_part_that_cannot_be_learned_from_can_be_scored_on(tmp_path: Path) -> None:
    found = read_dataset(put(tmp_path, MARKET[0], *MARKET[2:]))
    assert found.train is None and len(found.query) == 1


def test_a_name_that_is_not_markets_is_named(tmp_path: Path) -> None:
    put(tmp_path, *MARKET, "bounding_box_train/holiday.jpg")
    with pytest.raises(DataError, match="holiday"):
        with_train(tmp_path)


def test_the_commands_offer_every_layout() -> None:
    assert set(OFFERED) == {"auto", *LAYOUTS}


def test_people_and_cameras_by_name_below_all_parts(tmp_path: Path) -> None:
    found = read_people(put(tmp_path, *OWN))
    rows = sorted(zip(found.people, found.cameras))
    assert found.layout == "cameras" and len(found) == 16
    assert rows[:4] == [("ann", "door"), ("ann", "door"), ("ann", "yard"), ("ann", "yard")]
    assert {person for person, _ in rows} == {"ann", "bob", "cleo", "dan"}
    assert found.describe() == "layout cameras: 16 pictures, 4 people, 2 cameras"


def test_distractors_and_junk_are_nobody_known(tmp_path: Path) -> None:
    found = read_people(put(tmp_path, *MARKET) / "bounding_box_test")
    assert sorted(zip(map(str, found.people), found.cameras)) == [("0001", "2"), ("None", "2"), ("None", "4")]
    assert found.describe().endswith("2 of nobody known")


def test_pictures_without_labels_belong_to_nobody(tmp_path: Path) -> None:
    found = read_people(put(tmp_path, "a.jpg", "below/b.jpg"))
    assert found.layout == "none" and found.people == found.cameras == [None, None]


@pytest.mark.parametrize("dates", [("2026-01-02/gate", "2026-01-03/gate"), ("gate/20260102", "gate/20260103")])
def test_an_archive_by_dates_holds_no_people(tmp_path: Path, dates: tuple[str, str]) -> None:
    found = read_people(put(tmp_path, *(f"{date}/{shot}.jpg" for date in dates for shot in "ab")))
    assert found.layout == "none" and found.people == [None] * 4


def test_names_of_markets_among_others_speak_for_themselves(tmp_path: Path) -> None:
    found = read_people(put(tmp_path, "0002_c1s1_000451_03.jpg", "holiday.jpg"))
    assert list(zip(found.people, found.cameras)) == [("0002", "1"), (None, None)]


def test_a_named_layout_refuses_paths_that_do_not_follow_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected paths like PERSON/CAMERA/picture\.jpg .* got .*a\.jpg"):
        read_people(put(tmp_path, "a.jpg"), "cameras")


def test_no_layout_leaves_labels_out(tmp_path: Path) -> None:
    assert read_people(put(tmp_path, *MARKET), "none").people == [None] * len(MARKET)


@pytest.mark.parametrize(
    ("layout", "path", "names"),
    [
        ("msmt17", "msmt/test/0007/0007_000_05_0303morning_0015_0.jpg", ("test/0007", "05")),
        ("p_duke", "p/test/whole_body_images/0008/0008_c4_f0001.jpg", ("0008", "4")),
        ("occluded_reid", "o/occluded_body_images/001/001_02.jpg", ("001", None)),
        ("partial_reid", "p/whole_body_images/012_01.jpg", ("012", None)),
        ("cameras", "people/test/ann/door/1.jpg", ("ann", "door")),
        ("market", "m/query/0003_c2s1_1.jpg", ("0003", "2")),
    ],
)
def test_a_path_alone_says_who_and_where(layout: str, path: str, names: tuple[str, str | None]) -> None:
    assert labels_of([path], layout) == ([names[0]], [names[1]])


def test_paths_of_one_folder_are_read_below_what_they_share() -> None:
    paths = ["/data/people/ann/door/1.jpg", "/data/people/bob/yard/1.jpg"]
    assert labels_of(paths) == (["ann", "bob"], ["door", "yard"])
    assert labels_of(paths, root=Path("/data")) == ([None, None], [None, None])
