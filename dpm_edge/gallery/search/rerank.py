"""Searches of several steps: query expansion, re-ranking by neighbourhoods, and people instead of pictures.

Q queries · k places · K candidates · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery.matches import Matches
from dpm_edge.gallery.rows import Rows
from dpm_edge.gallery.search.prototypes import centred_rows, prototypes_of
from dpm_edge.gallery.search.query import Query, embedded, in_centred_space
from dpm_edge.gallery.search.space import enough
from dpm_edge.gallery.stores.store import Store
from dpm_edge.metrics import normalise, similarity
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.frames import FrameQueries

if TYPE_CHECKING:
    from dpm_edge.gallery.guarded import GuardedStore

Places = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids and what orders them, falling; each (Q, k), −1 and −inf where nothing is left."""


def answer(guarded: GuardedStore, queries: Embeddings | FrameQueries, query: Query) -> tuple[Embeddings, Matches]:
    """Search the store under its lock; a frame's people are embedded before, or on the GPU of the rows meanwhile."""
    store = guarded.store
    if query.automatic and store.place:  # a centred copy would be searched on the CPU
        query = replace(query, centre=None)
    apart = query.reranked or query.centre is not None
    if isinstance(queries, FrameQueries) and (apart or not queries.lies_with(store.place)):
        queries, query = embedded(queries, query)
    with guarded.lock:
        if isinstance(queries, FrameQueries):
            queries, query = store.embed(queries, query)
        if query.centre is not None and (not query.automatic or enough(guarded.statistics.counts())):
            statistics = guarded.statistics.for_search()
            query = in_centred_space(query, queries, statistics, guarded.statistics.now().counts)
        found = search(store, query)
        return queries, found if queries.has_masks else replace(found, visibility=None)


def search(store: Store, query: Query) -> Matches:
    """Answer a query: the places in their order, each with the similarity of the query itself with the row found."""
    ids, score = _places(store, query)
    similarity = _similarities(store, query, ids) if query.reranked else score
    labels = store.get(np.unique(ids[ids >= 0]), vectors=False)
    return Matches.of(ids, similarity, labels, score, centred=query.centring is not None)


def _places(store: Store, query: Query) -> Places:
    """Ids (Q, k) and what orders them."""
    moved = query
    if query.expand:
        ids, s = store.search(replace(query, k=query.expand, candidates=max(query.candidates, query.expand)))
        moved = replace(query, features=expand(query.features, _features(store, query, ids), s))
    several = query.neighbours or query.by_person
    ids, score = store.search(replace(moved, k=query.candidates) if several else moved)
    if query.neighbours:
        ids, score = _by_neighbourhoods(store, query, ids, score)
    if query.by_person:
        ids, score = _by_person(store, moved, ids, query.cap)
    return ids[:, : query.k], score[:, : query.k]


def _whole_rows(store: Store, query: Query, ids: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64]]:
    """Whole rows by rising id, centred where the query is, and where each of `ids` stands among them; 0 without one."""
    rows = centred_rows(store.get(np.unique(ids[ids >= 0]), vectors=True), query.centring)
    rows = rows.take(np.argsort(rows.ids))
    return rows, np.where(ids >= 0, np.searchsorted(rows.ids, ids), 0)


def _features(store: Store, query: Query, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """(Q, k, D); zeros where there is no row."""
    rows, at = _whole_rows(store, query, ids)
    if not len(rows):
        return np.zeros((*ids.shape, store.meta["dimension"]), np.float32)
    assert rows.features is not None, "whole rows were read"
    return np.where((ids >= 0)[..., None], rows.features.astype(np.float32)[at], 0)


def _similarities(store: Store, query: Query, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """(Q, k) by the formula in float64; −inf where there is no row."""
    out = np.full(ids.shape, -np.inf, np.float32)
    rows, at = _whole_rows(store, query, ids)
    assert rows.features is not None, "whole rows were read"
    for i, here in enumerate(ids >= 0):
        if here.any():
            out[i, here] = _compare(
                query, i, rows.features[at[i, here]], None if rows.masks is None else rows.masks[at[i, here]]
            )
    return out


def _compare(query: Query, i: int, features: NDArray, masks: NDArray | None) -> NDArray[np.float64]:
    """Similarity of query i with N features, (N,) float64."""
    return similarity(
        query.features[i : i + 1].astype(np.float64),
        features.astype(np.float64),
        metric=query.metric,
        query_masks=query.masks[i : i + 1].astype(np.float64),
        target_masks=None if masks is None else masks.astype(np.float64),
    )[0]


def _by_neighbourhoods(store: Store, query: Query, ids: NDArray, score: NDArray) -> Places:
    """The candidates of each query in a new order. Rows are compared under the metric, plainly without their masks."""
    rows, at = _whole_rows(store, query, ids)
    out_ids, out = ids.copy(), score.copy()
    for i, here in enumerate(ids >= 0):
        if not here.any():
            continue
        these = rows.take(at[i, here])
        assert these.features is not None, "whole rows were read"
        t, m = these.features.astype(np.float32), None if these.masks is None else these.masks.astype(np.float32)
        among = similarity(t, t, metric="plain" if m is None else query.metric, query_masks=m, target_masks=m)
        new = k_reciprocal(score[i : i + 1, here], among, k=query.neighbours)[0]
        order = np.argsort(-new, kind="stable")
        out_ids[i, here], out[i, here] = ids[i, here][order], new[order]
    return out_ids, out


def _by_person(store: Store, query: Query, ids: NDArray[np.int64], cap: int) -> Places:
    """The people among the candidates by their prototypes; a place holds the person's first candidate."""
    labels = store.get(np.unique(ids[ids >= 0]), vectors=False)
    person = dict(zip(labels.ids.tolist(), labels.people))
    out_ids, out = np.full(ids.shape, -1, np.int64), np.full(ids.shape, -np.inf, np.float32)
    own = [None] * len(ids) if query.own_cameras is None else query.own_cameras
    for camera in sorted(set(own), key=str):
        group = [i for i, one in enumerate(own) if one == camera]
        firsts = [_first_of_each([(int(n), person[int(n)]) for n in ids[i] if n >= 0]) for i in group]
        people = sorted({name for first in firsts for name in first})
        if not people:
            continue
        where = replace(query.where, people=tuple(people), not_camera=camera)
        made, names = prototypes_of(store, where, cap, query.centring)
        place = {name: at for at, name in enumerate(names)}
        for i, first in zip(group, firsts):
            known = [name for name in first if name in place]
            at = [place[name] for name in known]
            s = _compare(query, i, made.features[at], made.masks[at])
            order = np.argsort(-s, kind="stable")
            out_ids[i, : len(known)] = [first[known[j]] for j in order]
            out[i, : len(known)] = s[order]
    return out_ids, out


def _first_of_each(found: Sequence[tuple[int, str]]) -> dict[str, int]:
    """Person → the first row of theirs; rows of nobody known are left out."""
    first: dict[str, int] = {}
    for name, who in found:
        if who:
            first.setdefault(who, name)
    return first


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


def k_reciprocal(
    query_gallery: NDArray, gallery_gallery: NDArray, *, k: int = 20, share: float = 0.3
) -> NDArray[np.float32]:
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
