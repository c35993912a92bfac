"""Prototypes, expansion and re-ranking, on pictures of people of whom a random share is seen."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from oracle import people

from dpm_edge import Gallery
from dpm_edge.gallery.search.prototypes import prototypes
from dpm_edge.gallery.search.rerank import expand, k_reciprocal


def test_a_prototype_is_nearer_to_the_truth_than_its_pictures_and_than_their_plain_mean() -> None:
    some, person, truth = people()
    made, names = prototypes(some, [f"{p:02d}" for p in person])
    assert names == [f"{p:02d}" for p in range(12)] and made.rows.tolist() == [6] * 12
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    near = (made.features * unit).sum(1)
    plain = np.stack([some.features[person == p].mean(0) for p in range(12)])
    plain = (plain / np.linalg.norm(plain, axis=1, keepdims=True) * unit).sum(1)
    assert (near > (some.features * unit[person]).sum(1).reshape(12, 6).max(1)).all() and near.mean() > plain.mean()
    capped, _ = prototypes(some, [f"{p:02d}" for p in person], ["a"] * 36 + ["b"] * 36, cap=2)
    assert capped.rows.tolist() == [2] * 12


def mean_precision(s: np.ndarray, q: np.ndarray, t: np.ndarray) -> float:
    hits = t[np.argsort(-s, axis=1)] == q[:, None]
    return float(np.mean([(np.cumsum(h)[h] / (np.flatnonzero(h) + 1)).mean() for h in hits]))


def clusters() -> tuple:
    """Queries and rows of twenty people, who is on each, and the similarities of queries and rows."""
    some, person, _ = people(1, count=20, each=8)
    at = np.arange(0, 160, 8)
    rest = np.setdiff1d(np.arange(160), at)
    q, t = some.features[at], some.features[rest]
    return q, t, person[at], person[rest], q @ t.T


def test_neighbourhoods_raise_the_mean_precision_of_pictures_in_clusters() -> None:
    _, t, who, whose, s = clusters()
    assert mean_precision(k_reciprocal(s, t @ t.T, k=7), who, whose) > mean_precision(s, who, whose) + 0.01


def test_neighbourhoods_without_weight_leave_the_similarities() -> None:
    _, t, _, _, s = clusters()
    np.testing.assert_array_equal(k_reciprocal(s, t @ t.T, k=7, share=1.0), s.astype(np.float32))


def test_expansion_raises_the_mean_precision_of_pictures_in_clusters() -> None:
    q, t, who, whose, s = clusters()
    best = np.argsort(-s, axis=1)[:, :4]
    moved = expand(q, t[best], np.take_along_axis(s, best, 1))
    assert mean_precision(moved @ t.T, who, whose) > mean_precision(s, who, whose) + 0.01


@pytest.mark.parametrize(("share", "d"), [(0.15, 48), (0.25, 48), (0.5, 48), (0.15, 768)])
def test_dividing_by_a_small_overlap_hands_no_match_to_strangers(share: float, d: int) -> None:
    """Binary masks that share two or three dimensions, where a stranger may reach 1 by chance: no worse than masked."""
    some, person, _ = people(2, count=60, each=4, d=d, share=share)
    binary = dataclasses.replace(some, masks=(some.masks > 0.5).astype(np.float32))
    asked = np.arange(0, 240, 4)
    held = np.setdiff1d(np.arange(240), asked)
    gallery = Gallery("f", d)
    gallery.add(binary.take(held), people=person[held])
    right = {}
    for metric in ("masked", "mutual"):
        found = gallery.search(binary.take(asked), 1, metric=metric).people[:, 0]
        right[metric] = float((found == person[asked].astype(str)).mean())
    assert right["mutual"] >= right["masked"], right
