"""Cameras of rows are read once, and never those of a row that was there before."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from oracle import rows

from dpm_edge import Gallery
from dpm_edge.gallery.stores import row_cameras
from dpm_edge.gallery.stores.row_cameras import RowCameras


class Medium:
    """Rows whose camera is their number in tens, and what was read of them."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def read(self, ids: list[int]) -> Iterator[tuple[int, str]]:
        self.asked.append(sorted(ids))
        return ((row, str(row // 10)) for row in ids)


def test_each_row_is_read_once() -> None:
    medium = Medium()
    known = RowCameras(medium.read)
    for ids in ([3, 14, 3], [14, 25], [3, 25]):
        known.learn(ids)
        assert known.of(ids) == [str(row // 10) for row in ids]
    assert medium.asked == [[3, 14], [25]]


def test_removed_rows_are_read_again() -> None:
    medium = Medium()
    known = RowCameras(medium.read)
    known.learn([3, 14])
    known.drop([3, 99])
    known.learn([3, 14])
    known.drop()
    known.learn([14])
    assert medium.asked == [[3, 14], [3], [14]]


def test_no_more_rows_than_the_limit_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_cameras, "MOST", 4)
    medium = Medium()
    known = RowCameras(medium.read)
    known.learn([1, 2, 3])
    known.learn([2, 11])
    assert known.of([2, 11]) == ["0", "1"]
    known.learn([2, 12, 13])
    assert known.of([2, 12, 13]) == ["0", "1", "1"] and medium.asked == [[1, 2, 3], [11], [2, 12, 13]]


def test_an_id_that_comes_again_with_another_camera_is_centred_by_that(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="qdrant-edge-py is not installed")
    some, asked = rows(60, seed=1), rows(2, seed=2)
    cameras = ["a", "b", "c"] * 20
    turned = [*cameras[:30], *(["c"] * 30)]
    options = {"centre": True, "query_cameras": ["a", "b"]}
    with Gallery.create(tmp_path / "g", "f", 12) as gallery, Gallery("f", 12) as memory:
        gallery.add(some, people=[""] * 60, cameras=cameras, ids=range(60))
        gallery.search(asked, 60, **options)
        gallery.delete(range(30, 60))
        gallery.add(some.take(slice(30, 60)), people=[""] * 30, cameras=["c"] * 30, ids=range(30, 60))
        memory.add(some, people=[""] * 60, cameras=turned, ids=range(60))
        got, wanted = gallery.search(asked, 60, **options), memory.search(asked, 60, **options)
    # features are kept in half precision in a folder
    assert abs(got.similarity - wanted.similarity).max() < 2e-3
