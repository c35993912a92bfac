"""Every data set's folder layout, on folders of a few pictures; and the folders that are refused."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dpm_edge.errors import DataError
from dpm_edge.evaluation import market_scores
from dpm_edge.layouts import LAYOUTS, read_people, visible_shares
from dpm_edge.spec import Preprocessing
from dpm_edge.train.data import decode


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((8, 4, 3), 90, np.uint8))
    return root


def labels(folder):
    return sorted(zip(folder.people.tolist(), folder.cameras.tolist()))


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


def test_market(tmp_path):
    people = read_people("market", put(tmp_path, *MARKET))
    assert labels(people.train) == [(2, 1), (2, 3), (7, 2)]
    assert labels(people.query) == [(1, 1)]
    assert labels(people.gallery) == [(-1, 2), (0, 4), (1, 2)]


def test_occluded_duke(tmp_path):
    people = read_people("occluded_duke", put(tmp_path, *DUKE))
    assert labels(people.train) == [(1, 2), (1, 5)] and labels(people.gallery) == [(5, 1)]


def test_cuhk03_unpacked_to_markets_names(tmp_path):
    names = ["bounding_box_train/0001_c1_1.png", "bounding_box_train/0001_c2_6.png"]
    people = read_people("cuhk03", put(tmp_path, *names, "query/0009_c1_1.png", "bounding_box_test/0009_c2_7.png"))
    assert labels(people.train) == [(1, 1), (1, 2)] and labels(people.query) == [(9, 1)]


def test_msmt17_takes_the_camera_from_the_name_and_counts_test_people_anew(tmp_path):
    train = "0000/0000_000_01_0303morning_0008_0.jpg"
    val = "0000/0000_001_14_0303noon_0020_1.jpg"
    query, gallery = "0000/0000_000_05_0303morning_0015_0.jpg", "0000/0000_002_06_0303evening_0015_0.jpg"
    put(tmp_path, f"train/{train}", f"train/{val}", f"test/{query}", f"test/{gallery}")
    for name, file in (("train", train), ("val", val), ("query", query), ("gallery", gallery)):
        (tmp_path / f"list_{name}.txt").write_text(f"{file} 0\n")
    people = read_people("msmt17", tmp_path)
    assert labels(people.train) == [(0, 1), (0, 14)]
    assert labels(people.query) == [(0, 5)] and labels(people.gallery) == [(0, 6)]


def test_p_duke_keeps_cameras_and_trains_on_both_halves(tmp_path):
    put(
        tmp_path,
        "train/occluded_body_images/0003/0003_c1_f0001.jpg",
        "train/whole_body_images/0003/0003_c2_f0009.jpg",
        "test/occluded_body_images/0008/0008_c3_f0001.jpg",
        "test/whole_body_images/0008/0008_c4_f0001.jpg",
    )
    people = read_people("p_duke", tmp_path)
    assert labels(people.train) == [(3, 1), (3, 2)]
    assert labels(people.query) == [(8, 3)] and labels(people.gallery) == [(8, 4)]


@pytest.mark.parametrize(
    ("layout", "queries"), [("occluded_reid", "occluded_body_images"), ("partial_reid", "partial_body_images")]
)
def test_no_true_match_is_dropped_where_the_set_has_no_cameras(tmp_path, layout, queries):
    """The camera-id rule: queries and gallery differ in camera, so the same-camera filter drops nothing."""
    names = [f"{half}/{person:03d}/{shot}.tif.jpg" for half in (queries, "whole_body_images")
             for person in (1, 2) for shot in (1, 2, 3)]  # fmt: skip
    people = read_people(layout, put(tmp_path, *names))
    assert people.train is None and len(people.query) == len(people.gallery) == 6
    same = people.query.people[:, None] == people.gallery.people[None]
    scores = market_scores(
        same.astype(float), people.query.people, people.query.cameras, people.gallery.people, people.gallery.cameras
    )
    assert scores.dropped_same_camera == 0 and scores.queries == 6 and scores.mean_average_precision == 1.0
    with pytest.raises(DataError, match="has a match"):  # what one camera id for all would have done
        market_scores(same.astype(float), people.query.people, np.ones(6), people.gallery.people, np.ones(6))


def test_partial_reid_with_names_instead_of_folders(tmp_path):
    people = read_people(
        "partial_reid", put(tmp_path, "partial_body_images/001_01.jpg", "whole_body_images/001_01.jpg")
    )
    assert labels(people.query) == [(2, 1)] and labels(people.gallery) == [(2, 2)]


def test_a_users_own_cameras_need_no_renaming(tmp_path):
    names = [f"train/{who}/{where}/{shot}.png" for who in ("ann", "bob") for where in ("door", "yard") for shot in "ab"]
    tests = [f"test/{who}/{where}/{shot}.png" for who in ("cleo", "dan") for where in ("door", "yard") for shot in "ab"]
    people = read_people("cameras", put(tmp_path, *names, *tests))
    assert labels(people.train) == [(1, 0), (1, 0), (1, 1), (1, 1), (2, 0), (2, 0), (2, 1), (2, 1)]
    assert labels(people.query) == labels(people.gallery) == [(3, 0), (3, 1), (4, 0), (4, 1)]


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_an_empty_folder_is_refused_with_what_is_wanted(tmp_path, layout):
    with pytest.raises(DataError, match=str(tmp_path)):
        read_people(layout, tmp_path)


def test_what_cannot_be_trained_on_is_refused(tmp_path):
    with pytest.raises(DataError, match="market"):
        read_people("markt", tmp_path)
    both = put(tmp_path / "both", *MARKET, "query/0002_c5s1_001051_00.jpg", "bounding_box_test/0002_c6s1_1_00.jpg")
    with pytest.raises(DataError, match=r"people \[2\] are in both train and query"):
        read_people("market", both)
    one = put(tmp_path / "one", *MARKET[:3], "query/0001_c1s1_1_00.jpg", "bounding_box_test/0001_c1s2_7_01.jpg")
    with pytest.raises(DataError, match="one camera"):
        read_people("market", one)
    single = put(tmp_path / "single", MARKET[0], *MARKET[2:])
    with pytest.raises(DataError, match="no training person has two pictures"):
        read_people("market", single)
    strange = put(tmp_path / "strange", *MARKET, "bounding_box_train/holiday.jpg")
    with pytest.raises(DataError, match="holiday"):
        read_people("market", strange)


def test_an_unreadable_picture_is_left_out_and_named(tmp_path, capsys):
    root = put(tmp_path, *MARKET)
    (root / MARKET[1]).write_bytes(b"")
    folder = read_people("market", root).train
    pictures = decode(folder, Preprocessing(height=32, width=16), quiet=True)
    assert pictures.names == ["0002_c1s1_000451_03.jpg", "0007_c2s1_000100_01.jpg"]
    assert pictures.people.tolist() == [2, 7] and pictures.pixels.shape == (2, 3, 32, 16)
    assert "0002_c3s1_000551_01.jpg" in capsys.readouterr().err


def test_visible_shares_come_from_the_labels(tmp_path):
    folder = read_people("market", put(tmp_path, *MARKET)).train
    table = tmp_path / "labels.csv"
    table.write_text("file,visible\n" + "".join(f"{p.name},0.{i + 1}\n" for i, p in enumerate(folder.paths)))
    assert visible_shares(folder, table).tolist() == [0.1, 0.2, 0.3]
    table.write_text("file,visible\n")
    with pytest.raises(DataError, match="no row for 3 pictures"):
        visible_shares(folder, table)
