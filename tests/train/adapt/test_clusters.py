"""Clusters: neighbours, encoding and distances against dense float64 code; DBSCAN on people who are known."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra train is not installed")

from dpm_edge.train.adapt import clusters


def blobs(
    people: int, each: int, dimension: int = 32, noise: float = 0.25, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    centres = draw.normal(size=(people, dimension))
    labels = np.repeat(np.arange(people), each)
    features = (
        centres[labels]
        + noise * draw.normal(size=(len(labels), dimension)) * np.linalg.norm(centres, axis=1).mean() / 8
    )
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels


@pytest.mark.parametrize("n", [1, 7, 129, 1030])
def test_nearest_is_what_a_full_sort_gives(n: int) -> None:
    features, _ = blobs(n, 1, seed=n)
    ids, s = clusters.nearest(features, 5)
    full = features.astype(np.float64) @ features.T.astype(np.float64)
    np.fill_diagonal(full, np.inf)
    wanted = np.argsort(-full, axis=1, kind="stable")[:, :5]
    np.testing.assert_array_equal(ids, wanted)
    np.testing.assert_allclose(s[:, 1:], np.take_along_axis(full, wanted, 1)[:, 1:], atol=1e-5)


def dense_encoding(features: np.ndarray, k: int, k_query: int) -> np.ndarray:
    """The same by the paper's definition, dense and slow."""
    s = features.astype(np.float64) @ features.T.astype(np.float64)
    np.fill_diagonal(s, np.inf)
    order = np.argsort(-s, axis=1, kind="stable")
    np.fill_diagonal(s, 1.0)
    n = len(s)

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i, :k] if i in order[j, :k]}

    v = np.zeros((n, n))
    for i in range(n):
        own = reciprocal(i, k)
        joined = set(own)
        for j in own:
            candidate = reciprocal(j, max(2, round(k / 2) + 1))
            if len(own & candidate) > 2 / 3 * len(candidate):
                joined |= candidate
        at = sorted(joined)
        v[i, at] = np.exp(s[i, at] - 1)
        v[i] /= v[i].sum()
    return np.stack([v[order[i, :k_query]].mean(0) for i in range(n)])


def test_the_encoding_is_that_of_dense_code() -> None:
    features, _ = blobs(9, 7, noise=1.0)
    ids, s = clusters.nearest(features, 10)
    encoded = clusters.reciprocal_weights(ids, s, features, 4).toarray()
    np.testing.assert_allclose(encoded, dense_encoding(features, 10, 4), atol=1e-6)


def test_distances_are_those_of_the_jaccard_formula() -> None:
    features, _ = blobs(9, 7, noise=1.0)
    v = dense_encoding(features, 10, 4)
    wanted = 1 - np.minimum(v[:, None], v[None]).sum(2) / np.maximum(v[:, None], v[None]).sum(2)
    ids, s = clusters.nearest(features, 10)
    sparse = clusters.jaccard_neighbours(clusters.reciprocal_weights(ids, s, features, 4), 0.7)
    made = sparse.toarray()
    stored = np.zeros_like(made, bool)
    pairs = sparse.tocoo()  # a distance of 0 is stored, too
    stored[pairs.row, pairs.col] = True
    np.testing.assert_allclose(made[stored], np.where(np.eye(len(v)), 0, wanted)[stored], atol=1e-5)
    assert (wanted[~stored] > 0.7 - 1e-5).all(), "a near pair was left out"


def test_people_who_lie_apart_become_one_cluster_each() -> None:
    features, labels = blobs(12, 9)
    found = clusters.cluster(features, k=12, k_query=3, eps=0.6)
    assert len(set(found.tolist()) - {-1}) == 12
    for person in range(12):
        here = found[labels == person]
        assert len(set(here[here >= 0].tolist())) == 1


def test_a_lone_crop_belongs_to_no_cluster() -> None:
    features, _ = blobs(6, 8)
    lone, _ = blobs(1, 1, seed=99)
    assert clusters.cluster(np.concatenate([features, lone]), k=6, k_query=2, eps=0.6)[-1] == -1


def test_a_track_is_one_person() -> None:
    labels = np.array([0, 0, 3, -1, 3, 3, -1, -1, -1, 3])
    tracks = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
    # track 0: three of four are clustered, most in 0; track 1: 3; track 2: one of four is clustered: none
    assert clusters.of_tracks(labels, tracks).tolist() == [0, 0, 0, 0, 1, 1, -1, -1, -1, -1]
