"""Searches of several steps: query expansion, re-ranking by neighbourhoods, and people instead of pictures.

Q queries · k places · K candidates · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery.rows import Rows
from dpm_edge.gallery.search.prototypes import clearest, expand, prototypes, rerank
from dpm_edge.gallery.stores.store import Asked, Store
from dpm_edge.metrics import similarity
from dpm_edge.runtime.embeddings import Embeddings

Places = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Ids and what orders them, falling; each (Q, k), −1 and −inf where nothing is left."""


@dataclass(frozen=True, kw_only=True)
class Steps:
    """Which steps; see `Gallery.search`."""

    expand: int = 0
    neighbours: int = 0
    people: bool = False
    cap: int = 8

    @property
    def one(self) -> bool:
        """Nothing but the store's own search."""
        return not (self.expand or self.neighbours or self.people)


def search_in_steps(store: Store, asked: Asked, steps: Steps) -> tuple[Places, NDArray[np.float32]]:
    """Places, and the similarity (Q, k) of each query itself with each row found, whatever orders them."""
    looking = asked
    if steps.expand:
        ids, s = store.search(replace(asked, k=steps.expand))
        moved = expand(asked.features, _features(store, ids), s)
        looking = replace(asked, features=moved)
    several = steps.neighbours or steps.people
    ids, score = store.search(replace(looking, k=max(asked.candidates, asked.k) if several else asked.k))
    if steps.neighbours:
        ids, score = _by_neighbourhoods(store, asked.metric, ids, score, steps.neighbours)
    if steps.people:
        ids, score = _by_person(store, looking, ids, steps.cap)
    ids, score = ids[:, : asked.k], score[:, : asked.k]
    return (ids, score), _similarities(store, asked, ids)


def _held(store: Store, ids: NDArray[np.int64]) -> tuple[Rows, NDArray[np.int64]]:
    """Whole rows by rising id, and where each of `ids` stands among them; 0 where there is none."""
    rows = store.get(np.unique(ids[ids >= 0]), vectors=True)
    rows = rows.take(np.argsort(rows.ids))
    return rows, np.where(ids >= 0, np.searchsorted(rows.ids, ids), 0)


def _features(store: Store, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """(Q, k, D); zeros where there is no row."""
    rows, at = _held(store, ids)
    if not len(rows):
        return np.zeros((*ids.shape, store.meta["dimension"]), np.float32)
    assert rows.features is not None, "whole rows were asked for"
    return np.where((ids >= 0)[..., None], rows.features.astype(np.float32)[at], 0)


def _similarities(store: Store, asked: Asked, ids: NDArray[np.int64]) -> NDArray[np.float32]:
    """(Q, k) by the formula in float64; −inf where there is no row."""
    out = np.full(ids.shape, -np.inf, np.float32)
    rows, at = _held(store, ids)
    assert rows.features is not None, "whole rows were asked for"
    for i, here in enumerate(ids >= 0):
        if here.any():
            out[i, here] = _compare(
                asked, i, rows.features[at[i, here]], None if rows.masks is None else rows.masks[at[i, here]]
            )
    return out


def _compare(asked: Asked, i: int, features: NDArray, masks: NDArray | None) -> NDArray[np.float64]:
    """Similarity of query i with N features, (N,) float64."""
    return similarity(
        asked.features[i : i + 1].astype(np.float64),
        features.astype(np.float64),
        metric=asked.metric,
        query_masks=asked.masks[i : i + 1].astype(np.float64),
        target_masks=None if masks is None else masks.astype(np.float64),
    )[0]


def _by_neighbourhoods(store: Store, metric: str, ids: NDArray, score: NDArray, k: int) -> Places:
    """The candidates of each query in a new order. Rows are compared under the metric, plainly without their masks."""
    rows, at = _held(store, ids)
    out_ids, out = ids.copy(), score.copy()
    for i, here in enumerate(ids >= 0):
        if not here.any():
            continue
        these = rows.take(at[i, here])
        assert these.features is not None, "whole rows were asked for"
        t, m = these.features.astype(np.float32), None if these.masks is None else these.masks.astype(np.float32)
        among = similarity(t, t, metric="plain" if m is None else metric, query_masks=m, target_masks=m)
        new = rerank(score[i : i + 1, here], among, k=k)[0]
        order = np.argsort(-new, kind="stable")
        out_ids[i, here], out[i, here] = ids[i, here][order], new[order]
    return out_ids, out


def _by_person(store: Store, asked: Asked, ids: NDArray[np.int64], cap: int) -> Places:
    """The people among the candidates by their prototypes; a place holds the person's first candidate."""
    labels = store.get(np.unique(ids[ids >= 0]), vectors=False)
    person = dict(zip(labels.ids.tolist(), labels.people))
    out_ids, out = np.full(ids.shape, -1, np.int64), np.full(ids.shape, -np.inf, np.float32)
    own = [None] * len(ids) if asked.own_cameras is None else asked.own_cameras
    for camera in sorted(set(own), key=str):
        group = [i for i, one in enumerate(own) if one == camera]
        firsts = [_first_of_each([(int(n), person[int(n)]) for n in ids[i] if n >= 0]) for i in group]
        people = sorted({name for first in firsts for name in first})
        if not people:
            continue
        where = replace(asked.where, people=tuple(people), not_camera=camera)
        made, names = _prototypes(store, where, cap)
        place = {name: at for at, name in enumerate(names)}
        for i, first in zip(group, firsts):
            known = [name for name in first if name in place]
            at = [place[name] for name in known]
            s = _compare(asked, i, made.features[at], made.masks[at])
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


def _prototypes(store: Store, where: Any, cap: int) -> tuple[Embeddings, list[str]]:
    """One row a person out of every row that fits; never more than `cap` of a person and camera are held at once."""
    held: Rows | None = None
    for part in store.scan(where, vectors=True):
        held = part if held is None else Rows.join([held, part])
        held = held.take(clearest(held.people, held.cameras, _weights(held), cap))
    assert held is not None and held.features is not None, "people of rows that were just found"
    whole = Embeddings(
        features=held.features,
        masks=np.ones_like(held.features) if held.masks is None else held.masks,
        visibility=_weights(held),
        rows=np.arange(len(held)),
        fingerprint=store.meta["fingerprint"],
    )
    return prototypes(whole, held.people, held.cameras, cap=cap)


def _weights(rows: Rows) -> NDArray[np.float32]:
    """Visibility times what the owner's payload says as "quality", a number above 0; 1 where it says nothing."""
    said = [one.get("quality", 1.0) for one in rows.payloads]
    return rows.visibility * np.array([q if isinstance(q, int | float) and q > 0 else 1.0 for q in said], np.float32)
