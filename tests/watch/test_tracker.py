"""The tracker on hand-made walks, whose ids are known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from dpm_edge.errors import DataError
from dpm_edge.watch.tracker import Tracker

RATE = 10.0
SIZE = (640, 480)


def person(x: float, y: float = 200.0, height: float = 100.0) -> list[float]:
    """The box of a person whose centre is at x, y."""
    return [x - height / 5, y - height / 2, x + height / 5, y + height / 2]


def followed(
    frames: list[list[list[float]]], score: float = 0.9, frame_size: tuple[int, int] | None = SIZE
) -> list[dict[int, float]]:
    """Run a tracker; for each frame the centre x of every confirmed track by its id."""
    tracker = Tracker(frame_rate=RATE, frame_size=frame_size)
    return [
        {t.id: float(t.box[0] + t.box[2]) / 2 for t in tracker.update(boxes, [score] * len(boxes), i / RATE)}
        for i, boxes in enumerate(frames)
    ]


def test_one_walk_keeps_one_id() -> None:
    seen = followed([[person(100 + 5 * i)] for i in range(50)])
    assert seen[-1] == {1: pytest.approx(345)}
    assert {id for frame in seen for id in frame} == {1}


def test_a_track_is_confirmed_by_its_fourth_box_in_a_row_at_ten_frames_a_second() -> None:
    seen = followed([[person(100)]] * 6)
    assert [len(frame) for frame in seen] == [0, 0, 0, 1, 1, 1]


def test_a_box_of_one_frame_becomes_no_track() -> None:
    frames = [[person(100)] + ([person(400)] if i == 5 else []) for i in range(20)]
    assert {id for frame in followed(frames) for id in frame} == {1}


def test_people_who_pass_each_other_keep_their_ids() -> None:
    frames = [[person(100 + 10 * i, 200), person(500 - 10 * i, 215)] for i in range(40)]
    seen = followed(frames)
    assert seen[-1] == {1: pytest.approx(490), 2: pytest.approx(110)}


def test_a_person_hidden_for_a_second_comes_back_under_the_same_id() -> None:
    frames = [[person(100 + 8 * i)] if not 20 <= i < 30 else [] for i in range(50)]
    seen = followed(frames)
    assert not any(seen[20:30])
    assert set(seen[30]) == {1} and {id for frame in seen for id in frame} == {1}


def test_a_person_hidden_for_longer_than_the_memory_gets_a_new_id() -> None:
    frames = [[person(300)] if not 20 <= i < 45 else [] for i in range(60)]
    seen = followed(frames)
    assert set(seen[19]) == {1} and set(seen[-1]) == {2}


def test_somebody_who_left_is_not_continued_by_who_enters_later_at_the_edge() -> None:
    leaves = [[person(560 + 10 * i)] for i in range(7)]
    enters = [[person(620 - 6 * i)] for i in range(20)]
    seen = followed(leaves + [[]] * 13 + enters)
    assert set(seen[6]) == {1} and set(seen[-1]) == {2}


def test_the_pictures_edge_is_learned_from_the_boxes() -> None:
    leaves = [[[540 + 10 * i, 150, min(580 + 10 * i, 640), 250]] for i in range(9)]
    enters = [[[600 - 6 * i, 150, 640 - 6 * i, 250]] for i in range(20)]
    seen = followed(leaves + [[]] * 13 + enters, frame_size=None)
    assert set(seen[8]) == {1} and set(seen[-1]) == {2}


def test_a_faint_box_continues_a_track_and_begins_none() -> None:
    tracker = Tracker(frame_rate=RATE)
    for i in range(30):
        score = 0.9 if i < 10 else 0.3
        found = tracker.update([person(100 + 3 * i), person(500)], [score, 0.3], i / RATE)
    assert [track.id for track in found] == [1]
    assert found[0].hits == 30 and found[0].age == pytest.approx(2.9)
    assert found[0].score == pytest.approx(0.3) and found[0].row == 0


def test_the_frame_rate_does_not_change_who_is_who() -> None:
    for rate in (4.0, 10.0, 30.0):
        tracker = Tracker(frame_rate=rate, frame_size=SIZE)
        ids: set[int] = set()
        for i in range(int(6 * rate)):
            s = i / rate
            boxes = [person(60 + 70 * s, 200), person(580 - 70 * s, 230)]
            if 2 <= s < 3:  # the second is hidden for a second
                boxes = boxes[:1]
            ids |= {track.id for track in tracker.update(boxes, [0.9] * len(boxes), s)}
        assert ids == {1, 2}


def test_ended_tracks_are_told_once() -> None:
    tracker = Tracker(frame_rate=RATE, memory=0.5)
    told = []
    for i in range(40):
        tracker.update([person(300)] if i < 10 else np.zeros((0, 4)), [0.9] if i < 10 else [], i / RATE)
        told += [(i, track.id, track.last) for track in tracker.ended]
    assert told == [(15, 1, pytest.approx(0.9))]
    assert tracker.tracks == []


def test_finish_ends_every_confirmed_track() -> None:
    tracker = Tracker(frame_rate=RATE)
    for i in range(10):
        tracker.update([person(300)] + ([person(100)] if i == 9 else []), [0.9] * (2 if i == 9 else 1), i / RATE)
    assert [track.id for track in tracker.finish()] == [1]
    assert tracker.tracks == []


def test_frames_without_a_time_follow_at_the_frame_rate() -> None:
    tracker = Tracker(frame_rate=RATE)
    for _ in range(11):
        found = tracker.update([person(300)], [0.9])
    assert found[0].age == pytest.approx(1.0)


def test_two_hundred_people_keep_their_ids() -> None:
    places = np.array([[60 * i, 90 * j] for i in range(20) for j in range(10)], float)
    tracker = Tracker(frame_rate=RATE)
    for i in range(8):
        shift = np.array([4.0 * i, 2.0 * i])
        boxes = np.concatenate([places + shift, places + shift + [30, 80]], axis=1)
        found = tracker.update(boxes, np.full(200, 0.9), i / RATE)
    assert [(track.id, track.row) for track in found] == [(i + 1, i) for i in range(200)]


def boxes_of(*rows: list[float]) -> NDArray[np.float64]:
    """An array of boxes."""
    return np.array(rows, float)


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        (np.zeros((3, 5)), [0.5] * 3, r"expected \(m, 4\) boxes"),
        (boxes_of(person(1)), [0.5, 0.6], "a score for each of 1 boxes"),
        (boxes_of([0, 0, float("nan"), 1]), [0.5], "NaN"),
        (boxes_of([10, 10, 5, 50]), [0.5], "x0 < x1"),
        (["people"], [0.5], "no numbers"),
    ],
)
def test_bad_boxes_are_refused_and_change_nothing(boxes: object, scores: list[float], message: str) -> None:
    tracker = Tracker(frame_rate=RATE)
    for i in range(5):
        tracker.update([person(100)], [0.9], i / RATE)
    with pytest.raises(DataError, match=message):
        tracker.update(boxes, scores, 0.5)  # type: ignore[arg-type]
    assert [track.hits for track in tracker.update([person(100)], [0.9], 0.5)] == [6]


@pytest.mark.parametrize("seconds", [0.3, 0.4, float("nan")])
def test_a_clock_that_does_not_rise_is_refused(seconds: float) -> None:
    tracker = Tracker(frame_rate=RATE)
    for i in range(5):
        tracker.update([person(100)], [0.9], i / RATE)
    with pytest.raises(DataError, match="never goes back"):
        tracker.update([person(100)], [0.9], seconds)


@pytest.mark.parametrize(
    "arguments", [{"frame_rate": 0}, {"faint": 0.6, "confident": 0.5}, {"memory": 0}, {"new": 1.5}]
)
def test_arguments_out_of_range_are_refused(arguments: dict) -> None:
    with pytest.raises(DataError, match="expected"):
        Tracker(**arguments)
