"""Searching: the options of a search, turned into what a store is asked, and what its answer means.

Q queries · k places · K candidates · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from dpm_edge.errors import GalleryError, nearest
from dpm_edge.gallery.calibration import Calibration
from dpm_edge.gallery.held import Held
from dpm_edge.gallery.labels import label_column, names_to_find
from dpm_edge.gallery.matches import Matches
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.search.rerank import Steps, search_in_steps
from dpm_edge.gallery.stores.store import Asked
from dpm_edge.gallery.times import moment
from dpm_edge.metrics import METRICS, normalise
from dpm_edge.runtime.embeddings import Embeddings

CANDIDATES_PER_PLACE, LEAST_CANDIDATES = 10, 100
"""K = max(k · 10, 100) re-ranked candidates, unless `check_recall` has chosen another factor."""
BY = ("row", "person")


class Searching(Held):
    """What `Gallery` answers."""

    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        metric: str = "masked",
        camera: Any = None,
        since: Any = None,
        until: Any = None,
        min_visibility: float | None = None,
        exclude_same_camera: bool = False,
        query_cameras: Iterable[Any] | None = None,
        candidates: int | None = None,
        calibration: Calibration | None = None,
        prior: float = 0.5,
        expand: int = 0,
        neighbours: int = 0,
        by: str = "row",
        cap: int = 8,
    ) -> Matches:
        """The k nearest rows of each query: exactly in memory, exactly among the candidates elsewhere.

        Args:
            queries: Q rows of this gallery's model.
            k: places; more than there are rows leaves places empty.
            metric: "plain", "masked" (the query's mask acts) or "mutual" (both masks act).
            camera: find only rows of this camera, or of these when it is a collection.
            since: find only rows from then on: Unix seconds, an aware datetime, datetime64 (UTC) or ISO 8601 text.
            until: find only rows before.
            min_visibility: find only rows at least this visible.
            exclude_same_camera: never find a row of the query's own camera; wants `query_cameras`.
            query_cameras: Q names or numbers; a query of an unknown camera ("", None, NaN) leaves out nothing.
            candidates: rows that stores other than memory re-rank, and that `neighbours` and `by` choose from.
            calibration: adds a probability and a decision to each place; the kept one (`use_calibration`) without.
            prior: share of such pairs that is one person before anything is seen, in 0..1, for the probability.
            expand: move each query toward its first so many rows, and search again (query expansion).
            neighbours: order the candidates by how far neighbourhoods of this size agree (k-reciprocal re-ranking).
            by: "row", or "person": k people, ordered by one prototype each, made of the rows that fit; a place then
                holds the person's nearest row.
            cap: pictures of one person and camera in a prototype at most.

        Raises:
            GalleryError: the queries are another model's, k is below 1, the metric is unknown or wants masks that are
                not kept, cameras are missing, or the calibration is of another model or metric.
        """
        self._check_fingerprint(queries.fingerprint, queries.dimension)
        self._check_search(queries, k, metric, exclude_same_camera, query_cameras)
        if by not in BY or (by == "person" and neighbours):
            raise GalleryError(
                f"by={by!r} with neighbours={neighbours}; by='row', or by='person' without neighbours, is wanted"
            )
        steps = Steps(expand=expand, neighbours=neighbours, people=by == "person", cap=cap)
        factor = self._store.meta.get("candidates_per_place", CANDIDATES_PER_PLACE)
        known = self._calibration(calibration, metric)
        asked = Asked(
            features=normalise(queries.features.astype(np.float64)).astype(np.float32),
            masks=queries.masks,
            k=k,
            metric=metric,
            where=Where(
                cameras=names_to_find(camera, "camera"),
                since=moment(since, "since"),
                until=moment(until, "until"),
                min_visibility=min_visibility,
            ),
            own_cameras=None
            if not exclude_same_camera or query_cameras is None
            else label_column(query_cameras, len(queries), "query_cameras"),
            candidates=candidates or max(factor * k, LEAST_CANDIDATES),
        )
        with self._lock:
            if steps.one:
                ids, score = self._store.search(asked)
                s = score
            else:
                (ids, score), s = search_in_steps(self._store, asked, steps)
            labels = self._store.get(np.unique(ids[ids >= 0]), vectors=False)
        found = Matches.of(ids, s, labels, score)
        if known is None:
            return found
        seen = np.broadcast_to(queries.visibility[:, None], ids.shape)
        finite = np.where(found.found, s, 0)
        return replace(
            found,
            probability=np.where(found.found, known.probability(finite, seen, prior=prior), np.nan),
            decision=np.where(found.found, known.decide(finite, seen), ""),
        )

    def use_calibration(self, calibration: Calibration | None) -> None:
        """Keep a calibration with the gallery: every later search under its metric carries probabilities. None: none.

        Raises:
            GalleryError: it is of another model.
        """
        if calibration is not None and calibration.fingerprint != self.fingerprint:
            raise GalleryError(
                f"this calibration is of model {calibration.fingerprint[:12]}; this gallery holds model "
                f"{self.fingerprint[:12]}. Calibrate that model: dpm-edge calibrate"
            )
        self.describe(calibration=None if calibration is None else asdict(calibration))

    def _calibration(self, given: Calibration | None, metric: str) -> Calibration | None:
        """What is given, or what is kept for this metric."""
        if given is None:
            kept = self._store.meta.get("calibration")
            known = Calibration.of(kept) if kept else None
            return known if known is not None and known.metric == metric else None
        if given.fingerprint != self.fingerprint or given.metric != metric:
            raise GalleryError(
                f"this calibration is of model {given.fingerprint[:12]} and metric {given.metric!r}; "
                f"{self.fingerprint[:12]} and {metric!r} are wanted. Calibrate again: dpm-edge calibrate"
            )
        return given

    def _check_search(
        self, queries: Embeddings, k: int, metric: str, exclude: bool, cameras: Iterable[Any] | None
    ) -> None:
        if metric not in METRICS:
            raise GalleryError(f"metric {metric!r} is unknown.{nearest(metric, METRICS)}")
        if metric == "mutual" and not self._store.meta["masks"]:
            raise GalleryError(
                "metric 'mutual' wants the rows' masks, and this gallery was created without (masks=False)"
            )
        if k < 1:
            raise GalleryError(f"k is {k}; 1 or more is wanted")
        if exclude and cameras is None:
            raise GalleryError(f"expected {len(queries)} query_cameras for exclude_same_camera, got none")
