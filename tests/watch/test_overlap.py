"""Overlap of boxes by hand, and pairing against SciPy."""

import numpy as np
import pytest

from dpm_edge.watch.overlap import assign, iou


def test_overlap_of_hand_worked_boxes() -> None:
    a = np.array([[0, 0, 10, 10], [0, 0, 4, 4]], float)
    b = np.array([[5, 0, 15, 10], [20, 20, 30, 30], [1, 1, 1, 9]], float)
    np.testing.assert_allclose(iou(a, b), [[50 / 150, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize(("n", "m"), [(1, 1), (3, 7), (7, 3), (12, 12), (1, 40), (60, 50)])
def test_pairing_costs_as_little_as_scipys(n: int, m: int) -> None:
    optimize = pytest.importorskip("scipy.optimize", reason="SciPy is not installed")
    for seed in range(10):
        cost = np.random.default_rng(seed).normal(size=(n, m))
        cost[cost > 1] = 1.0  # ties, as pairs that may not be
        rows, columns = assign(cost)
        assert len(set(rows.tolist())) == len(set(columns.tolist())) == len(rows) == min(n, m)
        assert (np.diff(rows) > 0).all()
        assert cost[rows, columns].sum() == pytest.approx(cost[optimize.linear_sum_assignment(cost)].sum())


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0)])
def test_pairing_of_nothing_is_empty(shape: tuple[int, int]) -> None:
    rows, columns = assign(np.zeros(shape))
    assert len(rows) == len(columns) == 0
