"""Tracks that are given take the place of the detector and the tracker."""

from __future__ import annotations

import numpy as np

from dpm_edge.watch.given_tracks import GivenTracks

FRAME = np.zeros((10, 10, 3), np.uint8)


def step(given: GivenTracks, seconds: float, **people: list[float]) -> list[tuple[int, str, list[float]]]:
    given.place(list(people), list(people.values()))
    boxes, scores = given.detect(FRAME)
    assert boxes.shape == (len(scores), 4) and (scores == 1).all()
    return [(one.id, one.name, one.box.tolist()) for one in given.update(boxes, scores, seconds)]


def test_each_id_keeps_its_number_and_has_the_box_of_the_frame() -> None:
    given = GivenTracks()
    assert step(given, 0.0, a=[0, 0, 2, 4], b=[5, 0, 7, 4]) == [(1, "a", [0, 0, 2, 4]), (2, "b", [5, 0, 7, 4])]
    assert step(given, 0.1, b=[6, 0, 8, 4]) == [(2, "b", [6, 0, 8, 4])]
    assert given.ended == []


def test_an_id_that_is_away_for_long_has_ended_and_comes_back_as_a_new_track() -> None:
    given = GivenTracks(memory=1.0)
    step(given, 0.0, a=[0, 0, 2, 4])
    assert step(given, 1.0) == [] and given.ended == []
    assert step(given, 1.1) == [] and [one.id for one in given.ended] == [1]
    assert step(given, 1.2, a=[0, 0, 2, 4]) == [(2, "a", [0, 0, 2, 4])] and given.ended == []
    assert given.names == {1: "a", 2: "a"}


def test_boxes_that_are_empty_or_not_finite_are_left_out() -> None:
    given = GivenTracks()
    people = {"a": [0.0, 0, 2, 4], "b": [0, 0, float("nan"), 4], "c": [3, 0, 3, 4], "d": [3, 5, 6, 4]}
    assert [one[1] for one in step(given, 0.0, **people)] == ["a"]
