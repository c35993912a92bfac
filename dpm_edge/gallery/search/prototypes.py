"""From pictures to people: one prototype a person, and re-ranking by neighbourhoods.

N rows · D feature dimensions · Q queries · C people
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery.labels import column, label_column
from dpm_edge.metrics import normalise
from dpm_edge.runtime.embeddings import Embeddings


def prototypes(
    embeddings: Embeddings, people: Sequence[str], cameras: Sequence[str] | None = None, *, cap: int = 8
) -> tuple[Embeddings, list[str]]:
    """One row a person: every feature dimension averaged over those pictures that show it.

    Each picture weighs by its visibility (times a quality, if the caller has one) and, dimension by dimension, by its
    mask; the prototype's mask is the mean mask. Of each person and camera the `cap` of the highest weight count, so
    that a camera where somebody stood for an hour does not drown the others. Pictures of nobody known ("", None, NaN)
    are nobody's: they are left out.

    Returns:
        C rows, whose `rows` count the pictures that each one holds, and their names, sorted.

    Raises:
        GalleryError: people or cameras are not one for each row.
    """
    n = len(embeddings)
    names = label_column(column(people, n, "people"), n, "people")
    places = label_column(cameras, n, "cameras")
    chosen = np.array([i for i in clearest(names, places, embeddings.visibility, cap) if names[i]], np.int64)
    owner = np.array([names[i] for i in chosen], object)
    features, masks, visibility, counts = [], [], [], []
    persons = sorted(set(names) - {""})
    for person in persons:
        here = chosen[owner == person]
        weight = np.maximum(embeddings.visibility[here], 1e-3)[:, None]
        gate = weight * np.maximum(embeddings.masks[here], 1e-6)
        features.append((gate * embeddings.features[here]).sum(0) / gate.sum(0))
        masks.append((weight * embeddings.masks[here]).sum(0) / weight.sum())
        visibility.append(float(embeddings.visibility[here].max()))
        counts.append(len(here))
    shape = (len(persons), embeddings.dimension)
    made = Embeddings(
        features=normalise(np.array(features, np.float32).reshape(shape)),
        masks=np.array(masks, np.float32).reshape(shape),
        visibility=np.array(visibility),
        rows=np.array(counts, np.int64),
        fingerprint=embeddings.fingerprint,
    )
    return made, persons


def clearest(
    people: Sequence[str], cameras: Sequence[str], weights: NDArray[np.float32], cap: int
) -> NDArray[np.int64]:
    """Which of N pictures are among the `cap` of the highest weight of their person and camera: rising indices."""
    taken: dict[tuple[str, str], int] = {}
    chosen = []
    for i in np.argsort(-np.asarray(weights), kind="stable"):
        key = people[i], cameras[i]
        taken[key] = taken.get(key, 0) + 1
        if taken[key] <= cap:
            chosen.append(int(i))
    return np.array(sorted(chosen), np.int64)


def expand(features: NDArray, found: NDArray, similarity: NDArray, *, power: float = 3.0) -> NDArray[np.float32]:
    """Queries moved toward what they found (average query expansion with weights similarity^power).

    Args:
        features: (Q, D), L2-normalised.
        found: (Q, k, D) features of their first places.
        similarity: (Q, k) of those places; places below 0 do not count.
        power: how much more the near ones weigh.

    Returns:
        (Q, D) float32, L2-normalised. The queries' masks stay theirs: what was hidden stays hidden.
    """
    weight = np.maximum(np.asarray(similarity, np.float32), 0) ** power
    return normalise(features + np.einsum("qk,qkd->qd", weight, np.asarray(found, np.float32))).astype(np.float32)


def rerank(query_gallery: NDArray, gallery_gallery: NDArray, *, k: int = 20, share: float = 0.3) -> NDArray[np.float32]:
    """Similarities mixed with how far the neighbourhoods of query and row agree (k-reciprocal, Zhong et al. 2017).

    A query's neighbourhood is its first k rows that would count it among their own first k; a row's likewise. Agreement
    is the Jaccard index of the two, weighted by similarity.

    Args:
        query_gallery: (Q, N) similarities.
        gallery_gallery: (N, N) similarities among the rows.
        k: size of a neighbourhood.
        share: weight of the old similarity, 0..1.

    Returns:
        (Q, N) float32, higher is nearer. For galleries of some thousand rows: it takes (Q + N)·N floats.
    """
    q, n = query_gallery.shape
    k = min(k, n)
    near_rows = _encode(gallery_gallery, gallery_gallery, k)
    near_queries = _encode(query_gallery, gallery_gallery, k)
    agreement = np.zeros((q, n), np.float32)
    for i in range(q):
        at = np.flatnonzero(near_queries[i])
        least = np.minimum(near_rows[:, at], near_queries[i, at]).sum(1)
        agreement[i] = least / np.maximum(near_rows.sum(1) + near_queries[i].sum() - least, 1e-12)
    return (share * query_gallery + (1 - share) * agreement).astype(np.float32)


def _encode(s: NDArray, among: NDArray, k: int) -> NDArray[np.float32]:
    """(M, N) for similarities s (M, N): weights over each one's reciprocal neighbours, summing to 1."""
    kth = np.sort(among, axis=1)[:, -k]
    firsts = np.sort(s, axis=1)[:, -k][:, None]
    mutual = (s >= firsts) & (s >= kth[None])
    weight = np.where(mutual, np.exp(s - s.max(axis=1, keepdims=True)), 0).astype(np.float32)
    return weight / np.maximum(weight.sum(1, keepdims=True), 1e-12)
