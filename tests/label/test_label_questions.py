"""Which pairs are asked about, and what follows from answers: tracks in the plane, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dpm_edge.label_questions import Questions, first_border


def at(*degrees: float) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def names(count: int) -> list[str]:
    return [f"cam/{i}" for i in range(count)]


def test_the_pair_nearest_to_the_border_is_asked_first() -> None:
    """Angles 0, 10, 40, 90: cosines of 10, 40, 30, 90, 80 and 50 degrees; the border is the cosine of 48."""
    asked = Questions(at(0, 10, 40, 90), names(4), [], float(np.cos(np.deg2rad(48))))
    order = []
    while (pair := asked.next()) is not None:
        order.append(pair)
        asked.answer(*(asked.names[i] for i in pair), None)
    assert order == [(2, 3), (0, 2), (1, 2), (0, 1), (1, 3), (0, 3)]
    assert not asked.answers and len(asked) == 0


def test_what_follows_from_answers_is_not_asked() -> None:
    asked = Questions(at(0, 1, 2, 3), names(4), [], 1.0)
    assert asked.answer("cam/0", "cam/1", True) and asked.answer("cam/1", "cam/2", False)
    assert not asked.answer("cam/0", "cam/2", True)  # contradicts both
    assert asked.answer("cam/0", "cam/2", False)  # agrees, and is no new answer
    assert len(asked.answers) == 2
    left = set()
    while (pair := asked.next()) is not None:
        left.add(pair)
        asked.answer(*(asked.names[i] for i in pair), None)
    assert left == {(0, 3), (1, 3), (2, 3)}


def test_tracks_that_were_seen_together_are_never_asked_about_and_tell_more() -> None:
    asked = Questions(at(0, 1, 2), names(3), [(0, 1)], 1.0)
    assert asked.answer("cam/0", "cam/2", True)
    assert asked.next() is None  # 2 is 0, and 0 is not 1


def test_an_answer_is_taken_back() -> None:
    asked = Questions(at(0, 1), names(2), [], 1.0)
    asked.answer("cam/0", "cam/1", True)
    assert asked.next() is None and asked.undo() == ("cam/0", "cam/1", True)
    assert asked.next() == (0, 1) and asked.undo() is None


def test_the_border_moves_to_where_answers_say() -> None:
    """Five pairs 10 degrees apart are one person, five 40 apart two: then a pair 25 apart comes before one of 38."""
    features = np.zeros((24, 24), np.float32)
    gaps = [10] * 5 + [40] * 5 + [25, 38]
    for i, gap in enumerate(gaps):  # a plane for each pair
        features[2 * i, 2 * i] = 1
        features[2 * i + 1, 2 * i : 2 * i + 2] = np.cos(np.deg2rad(gap)), np.sin(np.deg2rad(gap))
    asked = Questions(features, names(24), [], float(np.cos(np.deg2rad(38))))
    assert asked.next() == (22, 23)
    for i in range(10):
        asked.answer(f"cam/{2 * i}", f"cam/{2 * i + 1}", gaps[i] == 10)
    assert asked.next() == (20, 21)


@pytest.mark.parametrize(("apart", "two"), [([(0, 1)], 30.0), ([], None)])
def test_the_first_border_lies_between_the_medians_of_both_kinds(apart: list, two: float | None) -> None:
    features, tracks = at(0, 10, 30, 40, 90, 100), np.array([0, 0, 1, 1, 2, 2])
    others = [30.0] if two else [30.0, 60.0, 90.0]
    want = (np.cos(np.deg2rad(10)) + np.median(np.cos(np.deg2rad(others)))) / 2
    assert first_border(features, tracks, apart) == pytest.approx(want, abs=1e-6)


def test_a_single_track_leaves_nothing_to_ask() -> None:
    assert Questions(at(0), names(1), [], 0.5).next() is None
