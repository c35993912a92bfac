"""From features to groups of crops that are probably one person: k-reciprocal Jaccard distance, then DBSCAN.

Sources: k-reciprocal encoding, Zhong et al., CVPR 2017 (arXiv 1701.08398); clusters of it as labels: SpCL (arXiv
2006.02713), cluster contrast (arXiv 2103.11568). Nothing here is n × n: only near neighbours are kept.

n features · D dimensions · k neighbours
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from numpy.typing import NDArray
from sklearn.cluster import DBSCAN

BLOCK = 1024
"""Rows of similarities that exist at a time."""


def nearest(features: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The k nearest rows of each row by cosine, itself first: (n, k) numbers and similarities, falling.

    features: (n, D), L2-normalised.
    """
    n = len(features)
    k = min(k, n)
    ids, s = np.empty((n, k), np.int64), np.empty((n, k), np.float32)
    for start in range(0, n, BLOCK):
        block = features[start : start + BLOCK] @ features.T
        block[np.arange(len(block)), np.arange(start, start + len(block))] = np.inf  # itself, whatever rounds
        part = np.argpartition(-block, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(block, part, 1), axis=1, kind="stable")
        ids[start : start + BLOCK] = np.take_along_axis(part, order, 1)
        s[start : start + BLOCK] = np.take_along_axis(block, ids[start : start + BLOCK], 1)
    s[:, 0] = 1.0
    return ids, s


def reciprocal_weights(
    ids: NDArray[np.int64], similarity: NDArray[np.float32], features: NDArray[np.float32], k_query: int
) -> sparse.csr_matrix:
    """V (n, n) sparse: row i weighs the reciprocal neighbours of i by exp(−distance), summing to 1.

    A neighbour counts if i is among its own k; the reciprocal neighbours of such a neighbour, at half the k, join where
    two thirds of them are i's already. Rows are then averaged over their `k_query` nearest (local query expansion).
    """
    n, k = ids.shape
    sets = _reciprocal_sets(ids, k)
    halves = _reciprocal_sets(ids, max(2, round(k / 2) + 1))
    rows, columns, values = [], [], []
    for i in range(n):
        own = set(sets[i])
        joined = set(own)
        for j in sets[i]:
            candidate = halves[j]
            if len(own.intersection(candidate)) * 3 > 2 * len(candidate):
                joined.update(candidate)
        members = np.fromiter(sorted(joined), np.int64, len(joined))
        weight = np.exp(features[members] @ features[i] - 1.0)
        rows.append(np.full(len(members), i))
        columns.append(members)
        values.append(weight / weight.sum())
    encoded = sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n), dtype=np.float32
    )
    if k_query > 1:
        near = ids[:, :k_query]
        mean = sparse.csr_matrix(
            (
                np.full(near.size, 1.0 / near.shape[1], np.float32),
                near.ravel(),
                np.arange(0, near.size + 1, near.shape[1]),
            ),
            shape=(n, n),
        )
        encoded = (mean @ encoded).tocsr()
    return encoded


def _reciprocal_sets(ids: NDArray[np.int64], k: int) -> list[list[int]]:
    """For each row its first k neighbours that count it among their own first k."""
    near = ids[:, :k]
    known = [set(row) for row in near.tolist()]
    return [[j for j in row if i in known[j]] for i, row in enumerate(near.tolist())]


def jaccard_neighbours(encoded: sparse.csr_matrix, most: float) -> sparse.csr_matrix:
    """Sparse distances 1 − Σ min(V_i, V_j) / Σ max(V_i, V_j) of all pairs that are at most `most` apart.

    The diagonal is stored as 0. V's rows sum to 1, so Σ max = 2 − Σ min.
    """
    n = encoded.shape[0]
    by_column = encoded.tocsc()
    starts, lengths = by_column.indptr[:-1].astype(np.int64), np.diff(by_column.indptr).astype(np.int64)
    rows, columns, values = [], [], []
    for i in range(n):
        own = slice(encoded.indptr[i], encoded.indptr[i + 1])
        length = lengths[encoded.indices[own]]
        before = np.cumsum(length) - length  # where each column's entries begin among those of all own columns
        at = np.repeat(starts[encoded.indices[own]] - before, length) + np.arange(length.sum())
        least = np.minimum(by_column.data[at], np.repeat(encoded.data[own], length))
        shared = np.bincount(by_column.indices[at], least, minlength=n)
        others = np.flatnonzero(shared)
        distance = 1 - shared[others] / (2 - shared[others])
        keep = (distance <= most) | (others == i)
        rows.append(np.full(keep.sum(), i))
        columns.append(others[keep])
        values.append(np.where(others[keep] == i, 0, np.maximum(distance[keep], 0)))
    return sparse.csr_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(n, n), dtype=np.float32
    )


def cluster(features: NDArray[np.float32], *, k: int, k_query: int, eps: float, least: int = 4) -> NDArray[np.int64]:
    """Group features (n, D), L2-normalised: (n,) number of the cluster, −1 for a crop that belongs to none.

    Args:
        features: centred by camera, so that a cluster is a person and not a camera.
        k: neighbours that are looked at.
        k_query: nearest rows over which the encoding is averaged.
        eps: largest Jaccard distance between neighbours of one cluster, 0..1.
        least: members that make a cluster.
    """
    ids, similarity = nearest(features, k)
    distances = jaccard_neighbours(reciprocal_weights(ids, similarity, features, k_query), eps)
    found = DBSCAN(eps=eps, min_samples=least, metric="precomputed").fit(distances)
    return found.labels_.astype(np.int64)


def of_tracks(labels: NDArray[np.int64], tracks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels (n,) of crops, one for each track: the cluster of most of its clustered crops, if half are clustered."""
    made = np.full_like(labels, -1)
    for track in np.unique(tracks):
        here = tracks == track
        known = labels[here][labels[here] >= 0]
        if len(known) * 2 >= here.sum() and len(known):
            values, counts = np.unique(known, return_counts=True)
            made[here] = values[np.argmax(counts)]
    values, numbered = np.unique(made, return_inverse=True)
    return numbered.astype(np.int64) - int(values[0] == -1)
