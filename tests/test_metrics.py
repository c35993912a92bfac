"""The metric against a float64 loop written straight from the formula, in numpy and in torch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dpm_edge.errors import SpecError
from dpm_edge.metrics import METRICS, clip_for_arccos, normalise, similarity

TOLERANCE = {"float64": 1e-12, "float32": 2e-6}


def by_loop(q: NDArray, t: NDArray, qm: NDArray, tm: NDArray, metric: str) -> NDArray[np.float64]:
    """One pair and one dimension at a time; nothing where nothing is left."""
    s = np.zeros((len(q), len(t)))
    for i in range(len(q)):
        for j in range(len(t)):
            q_norm = math.sqrt(math.fsum(float(v) ** 2 for v in q[i])) or 1.0
            t_norm = math.sqrt(math.fsum(float(v) ** 2 for v in t[j])) or 1.0
            over = under = 0.0
            for d in range(q.shape[1]):
                m = 1.0 if metric == "plain" else float(qm[i, d])
                m *= float(tm[j, d]) if metric == "mutual" else 1.0
                over += q[i, d] / q_norm * m * t[j, d] / t_norm
                under += (m * t[j, d] / t_norm) ** 2
            s[i, j] = over / math.sqrt(under) if under > 1e-11 else 0.0
    return s


def case(b: int, n: int, d: int, seed: int = 0, masks: str = "soft") -> tuple[NDArray, ...]:
    rng = np.random.default_rng(seed)
    q, t = 3 * rng.standard_normal((b, d)), 0.2 * rng.standard_normal((n, d))
    qm, tm = rng.random((b, d)), rng.random((n, d))
    if masks == "binary":
        qm, tm = (qm > 0.5).astype(float), (tm > 0.5).astype(float)
    if masks == "zero":
        qm[0] = 0
        tm[-1] = 0
    return q, t, qm, tm


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("masks", ["soft", "binary", "zero"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 9, 129)])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_similarity_is_the_formula(
    metric: str, masks: str, shape: tuple[int, int, int], dtype: str, library: str
) -> None:
    arrays = [a.astype(dtype) for a in case(*shape, masks=masks)]
    wanted = by_loop(*arrays, metric)
    given_: list[Any] = arrays
    if library == "torch":
        torch = pytest.importorskip("torch", reason="torch is the extra `build`")
        given_ = [torch.from_numpy(a) for a in arrays]
    q, t, qm, tm = given_
    got = np.asarray(similarity(q, t, metric=metric, query_masks=qm, target_masks=tm))
    assert got.dtype == dtype
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE[dtype])


@pytest.mark.parametrize("library", ["numpy", "torch"])
def test_zero_feature_and_zero_mask_are_similar_to_nothing(library: str) -> None:
    q, t, qm, tm = case(2, 3, 8)
    q[0], t[1], qm[1] = 0, 0, 0
    arrays: list[Any] = [q, t, qm, tm]
    if library == "torch":
        torch = pytest.importorskip("torch", reason="torch is the extra `build`")
        arrays = [torch.from_numpy(a) for a in arrays]
    for metric in METRICS:
        s = np.asarray(similarity(arrays[0], arrays[1], metric=metric, query_masks=arrays[2], target_masks=arrays[3]))
        assert np.isfinite(s).all() and (s[0] == 0).all() and (s[:, 1] == 0).all()
        if metric != "plain":
            assert (s[1] == 0).all()


@given(seed=st.integers(0, 10_000), gate=st.floats(0.05, 1.0))
@settings(max_examples=50, deadline=None)
def test_constant_mask_is_the_plain_metric_and_nothing_leaves_its_range(seed: int, gate: float) -> None:
    q, t, qm, tm = case(3, 4, 16, seed)
    plain = similarity(q, t, metric="plain")
    same = np.full_like(qm, gate)
    np.testing.assert_allclose(similarity(q, t, metric="masked", query_masks=same), plain, atol=1e-9)
    for metric in METRICS:
        s = similarity(q, t, metric=metric, query_masks=qm, target_masks=tm)
        assert (np.abs(s) <= 1 + 1e-9).all()


@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 100))
@settings(max_examples=50, deadline=None)
def test_neither_length_nor_strength_matters(seed: int, scale: float) -> None:
    q, t, qm, tm = case(3, 4, 16, seed)
    for metric in METRICS:
        s = similarity(q, t, metric=metric, query_masks=qm, target_masks=tm)
        scaled = similarity(q * scale, t / scale, metric=metric, query_masks=qm * 0.5, target_masks=tm)
        np.testing.assert_allclose(scaled, s, atol=1e-9)


def test_gradient_flows_through_a_zero_mask() -> None:
    torch = pytest.importorskip("torch", reason="torch is the extra `build`")
    q, t, qm, tm = (torch.from_numpy(a).requires_grad_() for a in case(2, 3, 8, masks="zero"))
    s = similarity(q, t, metric="mutual", query_masks=qm, target_masks=tm)
    clip_for_arccos(s).arccos().sum().backward()
    assert all(torch.isfinite(x.grad).all() for x in (q, t, qm, tm))


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"metric": "maskd"}, "Did you mean 'masked'"),
        ({"metric": "masked", "query_masks": None}, "query_masks of shape .*got nothing"),
        ({"metric": "mutual", "target_masks": None}, "target_masks"),
        ({"metric": "mutual", "target_masks": np.ones((2, 2))}, r"got \(2, 2\)"),
        ({"t_ND": np.ones((3, 9))}, "queries"),
        ({"q_BD": np.ones(8)}, "queries"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], names: str) -> None:
    q, t, qm, tm = case(2, 3, 8)
    arguments = {"q_BD": q, "t_ND": t, "metric": "mutual", "query_masks": qm, "target_masks": tm, **change}
    with pytest.raises(SpecError, match=names):
        similarity(arguments.pop("q_BD"), arguments.pop("t_ND"), **arguments)


def _shots(rng: np.random.Generator, people: NDArray, each: int, hidden: float) -> tuple[NDArray, ...]:
    """Noisy pictures of people whose four parts (24 dimensions each) are hidden by chance; binary masks."""
    who = np.repeat(np.arange(len(people)), each)
    seen = rng.random((len(who), 4)) > hidden
    seen[np.arange(len(who)), rng.integers(0, 4, len(who))] = True
    mask = np.repeat(seen, 24, axis=1).astype(float)
    person = people[who] + 1.2 * rng.standard_normal((len(who), 96))
    return who, np.where(mask > 0, person, rng.standard_normal((len(who), 96))), mask


def _rank1(score: Any, hidden: float) -> float:
    """Percent of queries whose nearest target is the same person, over five worlds of 80 people."""
    right = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        people = rng.standard_normal((80, 96))
        q_who, q, qm = _shots(rng, people, 1, 0.5)
        t_who, t, tm = _shots(rng, people, 4, hidden)
        right.append(t_who[score(q, t, qm, tm).argmax(axis=1)] == q_who)
    return 100 * float(np.mean(right))


@pytest.mark.parametrize("hidden", [0.0, 0.3, 0.6])
def test_mutual_with_binary_masks_and_structured_overlap_is_no_worse_than_plain(hidden: float) -> None:
    """The danger of masks on both sides: pairs that have almost nothing in common must not win."""

    def metric(name: str) -> Any:
        return lambda q, t, qm, tm: similarity(q, t, metric=name, query_masks=qm, target_masks=tm)

    def both_normalised(q: NDArray, t: NDArray, qm: NDArray, tm: NDArray) -> NDArray:
        q, t = normalise(q) * qm, normalise(t) * tm
        return (q @ t.T) / np.sqrt(np.maximum((q * q) @ (tm * tm).T * ((qm * qm) @ (t * t).T), 1e-12))

    plain, mutual = _rank1(metric("plain"), hidden), _rank1(metric("mutual"), hidden)
    assert mutual >= plain - 1.0
    if hidden == 0.3:
        assert _rank1(both_normalised, hidden) < mutual - 5, "this world no longer shows the danger it is here for"
