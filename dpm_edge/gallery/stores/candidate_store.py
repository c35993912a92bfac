"""The two-stage search of stores that hold an index: candidates by inner product, then the exact metric.

Q queries · D feature dimensions · k places · K candidates
"""

from __future__ import annotations

import math
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.search import exact
from dpm_edge.gallery.search.query import Query
from dpm_edge.gallery.stores.store import Store, vectors_of

CERTAIN = 0.3
"""Share of K candidates that are those of the highest centred products for sure. With 0.2 of the usual 100 no row of
the first ten was missed on 1,218 real rows of six cameras, under every metric."""
ROUNDING = 1e-3
"""By how much inner products of half-precision features may be off."""


class Candidates(NamedTuple):
    """Rows that an index gave for one vector, the highest inner product first."""

    ids: NDArray[np.int64]
    """(K,)."""
    features: NDArray
    """(K, D)."""
    masks: NDArray | None
    """(K, D), where they were asked for."""
    cameras: list[str]
    """(K,), where they were asked for; else empty."""


class CandidateStore(Store):
    """A store with an inner-product index: K candidates by ⟨m⊙q, g⟩, then the exact metric with the query's mask.

    Why that suffices: ‖m⊙g‖ varies far less over g than ⟨m⊙q, g⟩ does. How far is measured: `Gallery.check_recall`.
    """

    most_candidates = sys.maxsize
    """Rows that the medium gives for one vector at most."""

    @abstractmethod
    def candidates(
        self, vectors_QD: NDArray[np.float32], count: int, where: Where, *, masks: bool, cameras: bool = False
    ) -> Sequence[Candidates]:
        """For each vector, up to `count` rows with the highest inner products; their masks and cameras if asked for."""

    def search(self, query: Query) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """As `Store.search`, exact among the candidates."""
        count = len(query.features)
        ids = np.full((count, query.k), -1, np.int64)
        best = np.full((count, query.k), -np.inf, np.float32)
        own = np.array([""] * count if query.own_cameras is None else query.own_cameras, object)
        for camera in sorted(set(own)):
            where = query.where if query.own_cameras is None else replace(query.where, not_camera=camera)
            group = np.flatnonzero(own == camera)
            q = query.features[group] * (1 if query.metric == "plain" else query.masks[group])
            if query.centring is None:
                found = self.candidates(q, query.candidates, where, masks=query.metric == "mutual")
            else:
                found = self._centred_candidates(q, query, where)
            for i, (ids_K, features, masks, _) in zip(group, found):
                rows, s = exact.top_k(
                    query.features[i : i + 1],
                    exact.Vectors(features, masks),
                    query.k,
                    metric=query.metric,
                    query_masks=query.masks[i : i + 1],
                    ids=ids_K,
                )
                ids[i], best[i] = np.where(rows[0] >= 0, ids_K[rows[0]] if len(ids_K) else -1, -1), s[0]
        return ids, best

    def _centred_candidates(self, vectors_QD: NDArray[np.float32], query: Query, where: Where) -> list[Candidates]:
        """As `candidates`, with centred features, and sure to hold the CERTAIN share of K highest centred products.

        ⟨q, f − μ_c⟩ and ⟨q, f⟩ differ by the same number for every row f of camera c. So no row that the medium did not
        give is above (its least product − ⟨q, μ_c⟩); cameras where that may be enough are asked for rows of their own.
        """
        statistics = query.centring
        assert statistics is not None, "the caller checks"
        masks, count = query.metric == "mutual", query.candidates
        found = list(self.candidates(vectors_QD, count, where, masks=masks, cameras=True))
        parts = self._cameras_to_find(query, where)
        sure = min(max(query.k, math.ceil(CERTAIN * count)), self.most_candidates)
        asks: dict[int, list[int]] = {}
        if len(parts) > 1:
            names = sorted({*(part or "" for part in parts), *(camera for one in found for camera in one.cameras)})
            places = {camera: at for at, camera in enumerate(names)}
            off_QC = vectors_QD @ statistics.means(names).T
            of_parts = [places[part or ""] for part in parts]
            for i, one in enumerate(found):
                if len(one.ids) < min(count, self.most_candidates):  # it is every row that fits
                    continue
                raw = one.features @ vectors_QD[i]
                centred = np.sort(raw - off_QC[i, [places[camera] for camera in one.cameras]])
                most = raw.min() - off_QC[i, of_parts]
                for part in np.flatnonzero(most > centred[-min(sure, len(raw))] - ROUNDING).tolist():
                    asks.setdefault(part, []).append(i)
        for part, ask in sorted(asks.items()):
            camera = parts[part]
            only = {"outside": tuple(query.row_cameras)} if camera is None else {"cameras": (camera,)}
            answers = self.candidates(vectors_QD[ask], sure, replace(where, **only), masks=masks, cameras=True)
            for i, more in zip(ask, answers):
                found[i] = _joined(found[i], more)
        return [one._replace(features=statistics.directions(one.features, one.cameras)) for one in found]

    def _cameras_to_find(self, query: Query, where: Where) -> list[str | None]:
        """Each camera that may be found; None for those that another writer may know."""
        wanted = [one for one in query.row_cameras if where.cameras is None or one in where.cameras]
        cameras: list[str | None] = [one for one in wanted if not one or one != where.not_camera]
        return cameras if self.one_writer or where.cameras is not None else [*cameras, None]


def _joined(one: Candidates, more: Candidates) -> Candidates:
    """Both, each row once."""
    new = np.flatnonzero(~np.isin(more.ids, one.ids))
    return Candidates(
        ids=np.concatenate([one.ids, more.ids[new]]),
        features=np.concatenate([one.features, more.features[new]]),
        masks=None if one.masks is None or more.masks is None else np.concatenate([one.masks, more.masks[new]]),
        cameras=[*one.cameras, *(more.cameras[i] for i in new)],
    )


def candidates_of(points: list[Any], dimension: int, *, masks: bool, cameras: bool) -> Candidates:
    """Points (id, payload, vector) as candidates."""
    return Candidates(
        ids=np.array([point.id for point in points], np.int64),
        features=vectors_of(points, "feature", dimension),
        masks=vectors_of(points, "mask", dimension) if masks else None,
        cameras=[(point.payload or {}).get("camera", "") for point in points] if cameras else [],
    )
