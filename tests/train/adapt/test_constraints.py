"""What is known about tracks, and the clusters that follow from it: cases worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dpm_edge.errors import DataError
from dpm_edge.train.adapt.constraints import Constraints, constrained, constraints_of

NONE = np.zeros((0, 2), np.int64)


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane."""
    angle = np.deg2rad(degrees)
    return np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)


def pairs(*some: tuple[int, int]) -> np.ndarray:
    return np.array(some, np.int64).reshape(-1, 2)


def test_a_cluster_with_two_tracks_of_one_frame_is_cut_between_them() -> None:
    """Tracks 0 and 2 share a frame; 1 lies nearer to 0, 3 nearer to 2, and all four were one cluster."""
    tracks = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    features = at(0, 2, 10, 12, 60, 62, 50, 52)
    found = constrained(np.zeros(8, np.int64), tracks, features, Constraints(apart=pairs((0, 2))), least=2)
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]


def test_a_chain_of_near_tracks_never_joins_two_that_are_apart() -> None:
    """0 and 1 are the nearest and join; 2 is near to both and apart from 1: it stays alone, though 0 would take it."""
    tracks = np.array([0, 0, 1, 1, 2, 2])
    features = at(0, 1, 6, 7, -9, -10)
    found = constrained(np.zeros(6, np.int64), tracks, features, Constraints(apart=pairs((1, 2))), least=2)
    assert found.tolist() == [0, 0, 0, 0, 1, 1]


def test_what_is_cut_off_and_small_belongs_to_no_cluster() -> None:
    tracks = np.array([0, 0, 0, 1])
    found = constrained(np.zeros(4, np.int64), tracks, at(0, 1, 2, 9), Constraints(apart=pairs((0, 1))), least=2)
    assert found.tolist() == [0, 0, 0, -1]


def test_clusters_that_nothing_contradicts_stay() -> None:
    labels, known = np.array([0, 0, 1, 1, -1]), Constraints(apart=pairs((0, 1)))
    found = constrained(labels, np.array([0, 0, 1, 1, 2]), at(0, 1, 50, 51, 90), known, least=2)
    assert found.tolist() == labels.tolist()


def test_tracks_of_one_person_bring_their_clusters_together() -> None:
    """0 and 1 are in two clusters, 2 in none; an answer says that all are one person. 3 was with 1, and stays so."""
    labels = np.array([0, 0, 1, 1, -1, 1, 2, 2])
    tracks = np.array([0, 0, 1, 1, 2, 3, 4, 4])
    known = Constraints(same=pairs((0, 1), (1, 2)))
    found = constrained(labels, tracks, at(0, 1, 50, 51, 90, 52, 170, 171), known, least=1)
    assert found.tolist() == [0, 0, 0, 0, 0, 0, 1, 1]


def test_a_person_whose_tracks_are_in_no_cluster_becomes_one() -> None:
    labels, known = np.array([-1, -1, -1, 0]), Constraints(same=pairs((0, 1)))
    found = constrained(labels, np.array([0, 1, 2, 3]), at(0, 50, 90, 120), known, least=1)
    assert found.tolist() == [1, 1, -1, 0]


def test_joined_tracks_are_cut_as_one() -> None:
    """0 and 1 are one person by an answer, 2 is apart from 1: it is cut off, although it lies between the two."""
    tracks = np.array([0, 0, 1, 1, 2, 2])
    known = Constraints(same=pairs((0, 1)), apart=pairs((1, 2)))
    found = constrained(np.zeros(6, np.int64), tracks, at(0, 1, 40, 41, 20, 21), known, least=2)
    assert found.tolist() == [0, 0, 0, 0, 1, 1]


def test_frames_and_answers_make_constraints() -> None:
    cameras, tracks = ["a", "a", "a", "b"], np.array([0, 1, 2, 3])
    frames, names = np.array([5, 5, 6, 5]), ["a/0", "a/1", "a/2", "b/3"]
    answers = [("a/0", "b/3", True), ("b/3", "a/2", False), ("a/0", "gone", True)]
    known = constraints_of(cameras, tracks, frames, names, answers)
    assert known.same.tolist() == [[0, 3]]
    assert known.apart.tolist() == [[0, 1], [2, 3]]


def test_an_answer_outweighs_two_boxes_of_one_frame() -> None:
    known = constraints_of(["a", "a"], np.array([0, 1]), np.array([5, 5]), ["a/0", "a/1"], [("a/0", "a/1", True)])
    assert known.same.tolist() == [[0, 1]] and not len(known.apart)


def test_answers_that_contradict_each_other_are_named() -> None:
    answers = [("0", "1", True), ("1", "2", True), ("2", "0", False)]
    with pytest.raises(DataError, match="expected answers that agree, got 2 and 0 as two people"):
        constraints_of(["a"] * 3, np.arange(3), np.full(3, -1), ["0", "1", "2"], answers)


def test_without_constraints_the_clusters_are_returned() -> None:
    labels = np.array([1, 0, -1])
    assert constrained(labels, np.arange(3), at(0, 1, 2), Constraints(), least=1) is labels
