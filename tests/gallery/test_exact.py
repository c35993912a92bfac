"""The exact search against a full sort of the float64 formula, on both of its paths and in every dtype."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from oracle import scores

from dpm_edge.gallery.search import exact
from dpm_edge.metrics import normalise

PATHS = ("loops", "products, compiled", "products, numpy")


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every search of the test takes this path."""
    monkeypatch.setattr(exact, "COMPILE_FROM", 0)
    monkeypatch.setattr(exact, "FEW", 10**9 if request.param == "loops" else 0)
    monkeypatch.setattr(exact, "GALLERY_TILE", 64)
    monkeypatch.setattr(exact, "QUERY_TILE", 4)
    if request.param == "products, numpy":
        monkeypatch.setattr(exact, "compiled", lambda: False)
    return request.param


def stored(t: np.ndarray, masks: np.ndarray, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values and masks in a dtype, and the masks that those stand for."""
    if dtype == "int8":
        codes = np.rint(masks * 127).astype(np.int8)
        return exact.quantise(t)[0], codes, codes / 127
    return t.astype(dtype), masks.astype(dtype), masks.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
@pytest.mark.parametrize(("queries", "n", "d"), [(1, 1, 1), (1, 1023, 129), (2, 129, 7), (7, 333, 24), (3, 65, 768)])
def test_rows_are_those_of_the_full_sort(path: str, dtype: str, queries: int, n: int, d: int) -> None:
    rng = np.random.default_rng(n)
    values, masks, meant = stored(rng.standard_normal((n, d)), rng.random((n, d)), dtype)
    q, m = exact.unit(rng.standard_normal((queries, d))), rng.random((queries, d)).astype(np.float32)
    hidden, group = rng.random(n) < 0.5, rng.integers(0, 3, n).astype(np.int32)
    own = rng.integers(0, 3, queries).astype(np.int32)
    vectors = exact.Vectors(values, masks)
    for metric, hide, grouped in product(("plain", "masked", "mutual"), (None, hidden), (None, group)):
        got, s = exact.top_k(
            q,
            vectors,
            9,
            metric=metric,
            query_masks=m,
            hidden=hide,
            group=grouped,
            own=None if grouped is None else own,
        )
        truth = scores(q, m, values, meant, metric)
        if hide is not None:
            truth[:, hide] = -np.inf
        if grouped is not None:
            truth[own[:, None] == group] = -np.inf
        order = np.argsort(-truth, axis=1, kind="stable")[:, :9]
        best = np.take_along_axis(truth, order, axis=1)
        wanted = np.full((queries, 9), -1)
        wanted[:, : order.shape[1]] = np.where(np.isneginf(best), -1, order)
        np.testing.assert_array_equal(got, wanted, err_msg=f"{metric} {path}")
        np.testing.assert_allclose(s[:, : order.shape[1]], best, atol=1e-6)


def test_rows_that_float32_cannot_tell_apart_come_in_float64s_order(path: str) -> None:
    rng = np.random.default_rng(0)
    base = rng.standard_normal(64)
    t = (base + 1e-5 * rng.standard_normal((500, 64))).astype(np.float32)
    q, m = normalise(rng.standard_normal((2, 64))), rng.random((2, 64))
    got, _ = exact.top_k(q, exact.Vectors(t), 20, query_masks=m)
    np.testing.assert_array_equal(got, np.argsort(-scores(q, m, t, None, "masked"), axis=1, kind="stable")[:, :20])


def test_ties_go_to_the_lower_id(path: str) -> None:
    t = np.repeat(np.eye(3, dtype=np.float32), 100, axis=0)
    ids = np.random.default_rng(1).permutation(300)
    got, _ = exact.top_k(np.eye(3), exact.Vectors(t), 5, metric="plain", ids=ids)
    for axis in range(3):
        assert ids[got[axis]].tolist() == sorted(ids[axis * 100 : axis * 100 + 100])[:5]


ONES = np.full((1, 8), 8**-0.5)


def with_a_zero_row() -> exact.Vectors:
    t = np.random.default_rng(2).standard_normal((40, 8)).astype(np.float32)
    t[7] = 0
    return exact.Vectors(t)


def test_a_zero_mask_is_similar_to_nothing_and_keeps_the_order_of_the_rows(path: str) -> None:
    got, s = exact.top_k(ONES, with_a_zero_row(), 40, query_masks=np.zeros((1, 8)))
    assert got[0].tolist() == list(range(40)) and (s == 0).all()


def test_a_zero_row_is_similar_to_nothing(path: str) -> None:
    _, s = exact.top_k(ONES, with_a_zero_row(), 40, metric="plain")
    assert np.isfinite(s).all() and (s == 0).sum() == 1


def test_no_place_is_filled_where_every_row_is_hidden(path: str) -> None:
    got, s = exact.top_k(ONES, with_a_zero_row(), 3, metric="plain", hidden=np.ones(40, bool))
    assert (got == -1).all() and np.isneginf(s).all()


def test_codes_are_half_a_step_off_at_most() -> None:
    values = np.random.default_rng(3).standard_normal((5, 100))
    codes, scale = exact.quantise(values)
    assert np.abs(codes * scale[:, None] - values).max() <= 0.5001 * scale.max()
    assert exact.quantise(np.zeros((1, 3)))[0].tolist() == [[0, 0, 0]]
