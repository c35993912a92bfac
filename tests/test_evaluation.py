"""The Market-1501 protocol: a case worked by hand, and average precision written a second way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpm_edge.errors import DataError
from dpm_edge.evaluation import market_scores


def test_case_worked_by_hand() -> None:
    """Query: person 1, camera 1. Gallery, best first: own camera (dropped), junk (dropped), person 2, person 1,
    distractor, person 1. Matches at places 2 and 4 of what is left: AP = (1/2 + 2/4) / 2 = 0.5."""
    similarity = np.array([[0.9, 0.8, 0.7, 0.6, 0.5, 0.4]])
    people = np.array([1, -1, 2, 1, 0, 1])
    cameras = np.array([1, 2, 1, 2, 3, 3])
    scores = market_scores(similarity, np.array([1]), np.array([1]), people, cameras)
    assert scores.mean_average_precision == pytest.approx(0.5)
    assert scores.rank == {1: 0.0, 5: 1.0, 10: 1.0}
    assert (scores.queries, scores.queries_without_match) == (1, 0)
    assert (scores.dropped_same_camera, scores.dropped_junk) == (1, 1)
    assert scores.as_dict()["mAP"] == 50.0 and scores.as_dict()["rank1"] == 0.0


def test_queries_without_a_match_do_not_count() -> None:
    similarity = np.array([[0.9, 0.1], [0.9, 0.1], [0.2, 0.8]])
    people, cameras = np.array([1, 2]), np.array([2, 2])
    scores = market_scores(similarity, np.array([1, 7, 2]), np.array([1, 1, 2]), people, cameras)
    assert (scores.queries, scores.queries_without_match, scores.dropped_same_camera) == (1, 2, 1)
    assert scores.mean_average_precision == 1.0


def test_other_people_of_the_querys_camera_stay() -> None:
    similarity = np.array([[0.9, 0.5]])
    scores = market_scores(similarity, np.array([1]), np.array([1]), np.array([2, 1]), np.array([1, 2]))
    assert scores.rank[1] == 0.0 and scores.mean_average_precision == pytest.approx(0.5)


def test_ties_keep_the_gallerys_order() -> None:
    same = np.zeros((1, 3))
    first = market_scores(same, np.array([1]), np.array([1]), np.array([1, 2, 2]), np.array([2, 2, 2]))
    last = market_scores(same, np.array([1]), np.array([1]), np.array([2, 2, 1]), np.array([2, 2, 2]))
    assert first.rank[1] == 1.0 and last.rank[1] == 0.0 and last.mean_average_precision == pytest.approx(1 / 3)


def independent(similarity: np.ndarray, qp: list, qc: list, gp: list, gc: list) -> tuple[float, float]:
    """mAP as precision at each true match found by walking down the list; Rank-1 likewise. Plain Python."""
    precisions, first = [], []
    for i in range(len(qp)):
        keep = [j for j in range(len(gp)) if gp[j] >= 0 and not (gp[j] == qp[i] and gc[j] == qc[i])]
        keep.sort(key=lambda j: (-similarity[i, j], j))
        found, sums = 0, 0.0
        for place, j in enumerate(keep, start=1):
            if gp[j] == qp[i]:
                found += 1
                sums += found / place
        if found:
            precisions.append(sums / found)
            first.append(gp[keep[0]] == qp[i])
    return (sum(precisions) / len(precisions), sum(first) / len(first)) if precisions else (-1.0, -1.0)


@given(seed=st.integers(0, 100_000), queries=st.integers(1, 8), gallery=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_scores_are_those_of_a_walk_down_the_list(seed: int, queries: int, gallery: int) -> None:
    rng = np.random.default_rng(seed)
    qp, gp = rng.integers(1, 5, queries), rng.integers(-1, 5, gallery)
    qc, gc = rng.integers(1, 4, queries), rng.integers(1, 4, gallery)
    similarity = rng.integers(0, 6, (queries, gallery)) / 5
    wanted, rank1 = independent(similarity, qp.tolist(), qc.tolist(), gp.tolist(), gc.tolist())
    if wanted < 0:
        with pytest.raises(DataError, match="none of"):
            market_scores(similarity, qp, qc, gp, gc)
        return
    scores = market_scores(similarity, qp, qc, gp, gc)
    assert scores.mean_average_precision == pytest.approx(wanted)
    assert scores.rank[1] == pytest.approx(rank1)
    assert scores.rank[1] <= scores.rank[5] <= scores.rank[10]


def test_shapes_and_values_that_cannot_be_are_refused() -> None:
    one = np.array([1])
    with pytest.raises(DataError, match="queries × gallery"):
        market_scores(np.zeros((1, 2)), one, one, one, one)
    with pytest.raises(DataError, match="NaN"):
        market_scores(np.array([[np.nan]]), one, one, one, one + 1)
