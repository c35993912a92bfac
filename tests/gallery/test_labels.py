"""Labels and filters in every form that callers have them: taken, or refused by name; unknown stays unknown."""

from __future__ import annotations

import math
import uuid
from typing import Any

import numpy as np
import pytest
from oracle import rows

from dpm_edge import Gallery
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.search.prototypes import prototypes

UNKNOWN = [None, math.nan, np.float32("nan"), "nan", "", "None"]


class Series:
    """A column of pandas: it is iterated by its values, and indexed by labels that need not begin at 0."""

    def __init__(self, values: list) -> None:
        self._values = values

    def __iter__(self) -> Any:
        return iter(self._values)

    def __getitem__(self, at: int) -> Any:
        raise KeyError(at)


def seen(make: Any) -> Gallery:
    """Six rows: two of ann at gates 1 and 2, two of ben at gates 2 and 3, two of nobody known at no known camera."""
    gallery = make()
    gallery.add(
        rows(6, seed=1),
        people=["ann", "ann", "ben", "ben", None, math.nan],
        cameras=[1, 2, 2, 3, None, "nan"],
        ids=range(6),
    )
    return gallery


@pytest.mark.parametrize("value", UNKNOWN, ids=repr)
def test_unknown_people_and_cameras_are_kept_as_empty_text(value: Any) -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(1), people=[value], cameras=[value], tracks=[value])
    kept = gallery.rows()
    assert (kept.people, kept.cameras, kept.tracks) == ([""], [""], [""])


def test_two_unknown_people_are_never_one(make: Any) -> None:
    gallery = seen(make)
    found = gallery.search(rows(1, seed=1), 6, by="person")
    assert sorted(found.people[0][found.rows[0] >= 0]) == ["ann", "ben"]


@pytest.mark.parametrize("value", UNKNOWN, ids=repr)
def test_an_unknown_camera_leaves_out_no_row(make: Any, value: Any) -> None:
    gallery = seen(make)
    for by, count in (("row", 6), ("person", 2)):
        found = gallery.search(rows(1), 6, exclude_same_camera=True, query_cameras=[value], by=by)
        assert found.found.sum() == count


def test_a_known_camera_leaves_out_its_rows_and_no_unknown_one(make: Any) -> None:
    found = seen(make).search(rows(2), 6, exclude_same_camera=True, query_cameras=[2, None])
    assert sorted(found.rows[0][found.rows[0] >= 0]) == [0, 3, 4, 5] and found.found[1].all()


@pytest.mark.parametrize("value", UNKNOWN, ids=repr)
def test_nobody_known_is_not_forgotten_counted_or_filtered_as_one_person(make: Any, value: Any) -> None:
    gallery = seen(make)
    with pytest.raises(GalleryError, match="got None"):
        gallery.forget(value)
    if value is not None:
        with pytest.raises(GalleryError, match="stand for unknown"):
            gallery.count(person=value)
        with pytest.raises(GalleryError, match="stand for unknown"):
            gallery.search(rows(1), camera=value)
    with pytest.raises(GalleryError, match="stand for unknown"):
        gallery.expire(1, camera=["gate", value])
    with pytest.raises(GalleryError, match="expected a camera"):
        gallery.retain(value, 1)
    assert len(gallery) == 6


COLLECTIONS = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "array": np.array,
    "generator": iter,
    "dict keys": lambda values: dict.fromkeys(values).keys(),
    "series": Series,
}


@pytest.mark.parametrize("kind", COLLECTIONS)
@pytest.mark.parametrize("values", [[1, 3], ["1", "3"], [1.0, 3.0]], ids=str)
def test_any_collection_of_cameras_finds_their_rows(kind: str, values: list) -> None:
    gallery = seen(lambda: Gallery("f", 12))
    found = gallery.search(rows(1), 6, camera=COLLECTIONS[kind](values))
    assert sorted(found.rows[0][found.rows[0] >= 0]) == [0, 3]
    assert gallery.count(camera=COLLECTIONS[kind](values)) == 2
    assert gallery.expire(0, camera=COLLECTIONS[kind](values)) == 0  # their time is unknown


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_any_collection_of_people_is_counted_and_forgotten(kind: str) -> None:
    gallery = seen(lambda: Gallery("f", 12))
    assert gallery.count(person=COLLECTIONS[kind](["ann", "ben"])) == 4
    assert gallery.forget(COLLECTIONS[kind](["ann", "zoe"])) == 2 and gallery.count(person="ann") == 0


@pytest.mark.parametrize("one", [2, "2", 2.0, np.int64(2), np.array(2), np.str_("2")], ids=repr)
def test_one_camera_in_any_form_finds_its_rows(one: Any) -> None:
    assert seen(lambda: Gallery("f", 12)).count(camera=one) == 2


@pytest.mark.parametrize("bad", [{"a": 1}, b"gate", [["a"]], [{"a"}], [b"x"]], ids=repr)
def test_a_camera_that_is_no_name_is_refused_by_name(bad: Any) -> None:
    with pytest.raises(GalleryError, match="expected text or a number in camera"):
        seen(lambda: Gallery("f", 12)).search(rows(1), camera=bad)


@pytest.mark.parametrize("kind", ["list", "tuple", "array", "generator", "dict keys", "series"])
@pytest.mark.parametrize("column", ["people", "cameras", "tracks"])
def test_any_ordered_collection_labels_the_rows(kind: str, column: str) -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(3), **{"people": ["a", "b", "c"], column: COLLECTIONS[kind](["x", "y", "z"])})
    assert getattr(gallery.rows(), column) == ["x", "y", "z"]


@pytest.mark.parametrize(
    "bad",
    ["abc", {"a", "b", "c"}, {"a": 1, "b": 2, "c": 3}, 3, b"abc", ["a", "b"]],
    ids=["text", "set", "dict", "number", "bytes", "two for three"],
)
@pytest.mark.parametrize("column", ["people", "cameras", "tracks"])
def test_labels_without_an_order_or_of_another_length_add_nothing(column: str, bad: Any) -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(GalleryError, match=f"expected .*3 {column}"):
        gallery.add(rows(3), **{"people": ["a", "b", "c"], column: bad})
    assert len(gallery) == 0


def test_query_cameras_of_another_length_are_refused() -> None:
    with pytest.raises(GalleryError, match="expected 1 query_cameras, one for each row, got 2"):
        Gallery("f", 12).search(rows(1), exclude_same_camera=True, query_cameras=["a", "b"])


@pytest.mark.parametrize(
    ("boxes", "says"),
    [
        ([[1, 2, 3], [1, 2, 3, 4]], "Pass four numbers"),
        ([[1, 2, 3]] * 2, r"got \(2, 3\)"),
        ([1, 2, 3, 4], r"got \(4,\)"),
        ([["a", 1, 2, 3]] * 2, "Pass four numbers"),
        (np.full((2, 4), np.inf), "got infinity"),
        (7, "got 7"),
    ],
)
def test_boxes_of_a_wrong_form_add_nothing(boxes: Any, says: str) -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(GalleryError, match=rf"expected \(2, 4\) boxes.*{says}"):
        gallery.add(rows(2), people=["a", "b"], boxes=boxes)
    assert len(gallery) == 0


def test_a_box_that_is_none_is_unknown() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(2), people=["a", "b"], boxes=[None, (1, 2, 3, 4)])
    np.testing.assert_array_equal(gallery.rows().boxes, [[np.nan] * 4, [1, 2, 3, 4]])


def test_payloads_from_a_generator_with_none_are_kept() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(2), people=["a", "b"], payloads=(one for one in ({"x": 1}, None)))
    assert gallery.rows().payloads == [{"x": 1}, {}]


@pytest.mark.parametrize("bad", [{"x": 1}, [{"x": 1}], [{"x": 1}, "text"], [{"x": math.nan}, {}], [{"x": {1}}, {}]])
def test_payloads_of_a_wrong_form_add_nothing(bad: Any) -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(GalleryError, match="expected"):
        gallery.add(rows(2), people=["a", "b"], payloads=bad)
    assert len(gallery) == 0


@pytest.mark.parametrize("kind", COLLECTIONS)
def test_any_collection_of_ids_is_read_and_deleted(kind: str) -> None:
    gallery = seen(lambda: Gallery("f", 12))
    assert sorted(gallery.rows(COLLECTIONS[kind]([1, 3])).ids) == [1, 3]
    assert gallery.delete(COLLECTIONS[kind]([1, 3])) == 2


@pytest.mark.parametrize(
    "bad", [[1.7], ["1"], [uuid.UUID(int=7)], [-1], [2**63], np.array([True, False]), 1, [None], [math.nan]], ids=repr
)
def test_ids_that_are_no_whole_numbers_change_nothing(bad: Any) -> None:
    gallery = seen(lambda: Gallery("f", 12))
    for call in (gallery.delete, gallery.rows, lambda ids: gallery.add(rows(1), people=["a"], ids=ids)):
        with pytest.raises(GalleryError, match=r"expected .*ids"):
            call(bad)
    assert len(gallery) == 6


@pytest.mark.parametrize("unknown", UNKNOWN, ids=repr)
def test_prototypes_leave_out_pictures_of_nobody_known(unknown: Any) -> None:
    some = rows(4, seed=2)
    made, people = prototypes(some, ["ann", unknown, "ann", unknown], ["1", "1", None, "2"])
    alone, _ = prototypes(some.take([0, 2]), ["ann", "ann"], ["1", ""])
    assert people == ["ann"] and made.rows.tolist() == [2]
    np.testing.assert_array_equal(made.features, alone.features)


@pytest.mark.parametrize("column", ["people", "cameras", "tracks"])
def test_a_label_that_utf8_cannot_hold_adds_nothing(column: str) -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(GalleryError, match=f"expected {column} that UTF-8 can hold"):
        gallery.add(rows(1), **{"people": ["a"], column: ["caf\udce9"]})
    assert len(gallery) == 0
