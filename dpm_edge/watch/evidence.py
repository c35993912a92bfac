"""What crops say about who somebody is: one query out of a track's crops, and odds out of a similarity.

How high a similarity must be to mean one person depends on the model and on the site. People who are in one picture at
one time are surely two, so their similarities say what strangers score here; a similarity counts by how many of their
standard deviations it lies above their mean. Strangers are taken as Student's t, and one person's pairs as normal
around a higher mean. These numbers were measured on 81 real people of Market-1501, whom no model that ships
has seen, at six cameras, and tested on 80 others, as sites of 6 to 30 people (benchmarks/identity_odds.py). What
strangers score before any was seen is known of our models alone: with another project's network nobody is recognised
before FIRST_WEIGHT pairs of people were seen together, unless the gallery keeps a calibration.

n crops · D feature dimensions
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.gallery import Gallery
from dpm_edge.gallery.search.prototypes import prototypes
from dpm_edge.metrics import similarity
from dpm_edge.runtime.embeddings import Embeddings

CANDIDATES = 30
"""People of the gallery that a track is compared with: the most alike ones."""
LEAST_TO_CENTRE = 100
"""Rows in the gallery from which on features are centred per camera."""
POOLED_CROPS = 64
"""Crops of a track that make up its query: the best ones."""
BEST_CROPS = 8
"""Those of them that go into the gallery when the track ends."""
PLAIN_ODDS, CENTRED_ODDS = (2.75, 1.2, 100), (3.4, 1.2, 15)
"""Not centred and centred per camera: mean and spread of one person's pairs, in standard deviations of strangers, and
the strangers' degrees of freedom. Within 0.006 of the least log loss in benchmarks/identity_odds.py."""
FIRST_STRANGERS = {False: (0.25, 0.16), True: (0.0, 0.17)}
"""Mean and spread of strangers' similarities before any was seen, not centred and centred per camera."""
FIRST_WEIGHT = 20
"""Pairs that those first values count as."""
MOST_PAIRS = 300
SUREST = 1e-9
"""A calibration's probabilities are taken as this far from 0 and 1 at least."""


@dataclass
class Crops:
    """The best crops of a track so far."""

    features: list[NDArray[np.float32]] = field(default_factory=list)
    masks: list[NDArray[np.float32]] = field(default_factory=list)
    visibility: list[float] = field(default_factory=list)
    quality: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    count: int = 0
    """Usable crops so far, kept or not."""
    has_visibility: bool = True
    """Whether the model says what is in sight; where it does not, `visibility` holds ones."""

    def add(
        self, feature: NDArray[np.float32], mask: NDArray[np.float32], visibility: float | None, quality: float,
        seconds: float,
    ) -> None:  # fmt: skip
        """Keep a crop if it is among the best; visibility: None of a model without it."""
        self.count += 1
        self.has_visibility = visibility is not None
        columns = self.features, self.masks, self.visibility, self.quality, self.seconds
        seen = 1.0 if visibility is None else visibility
        for column, value in zip(columns, (feature, mask, seen, quality, seconds)):
            column.append(value)  # type: ignore[attr-defined]
        if len(self.features) > POOLED_CROPS:
            worst = int(np.argmin(np.array(self.visibility) * np.array(self.quality)))
            for column in columns:
                del column[worst]  # type: ignore[attr-defined]

    def embeddings(self, fingerprint: str) -> Embeddings:
        """The kept crops."""
        return Embeddings(
            features=np.stack(self.features),
            masks=np.stack(self.masks),
            visibility=np.array(self.visibility) if self.has_visibility else None,
            rows=np.arange(len(self.features)),
            fingerprint=fingerprint,
        )

    def best(self) -> Crops:
        """The few best of them, in order of time."""
        order = np.argsort(-np.array(self.visibility) * np.array(self.quality), kind="stable")
        chosen = sorted(order[:BEST_CROPS].tolist())
        return Crops(
            features=[self.features[i] for i in chosen],
            masks=[self.masks[i] for i in chosen],
            visibility=[self.visibility[i] for i in chosen],
            quality=[self.quality[i] for i in chosen],
            seconds=[self.seconds[i] for i in chosen],
            count=self.count,
            has_visibility=self.has_visibility,
        )

    def query(self, fingerprint: str) -> Embeddings:
        """One row: each dimension averaged over the crops that show it, weighted by visibility and quality."""
        crops = self.embeddings(fingerprint)
        weighted = Embeddings(
            features=crops.features,
            masks=crops.masks,
            visibility=crops.weight * np.array(self.quality, np.float32),
            rows=crops.rows,
            fingerprint=fingerprint,
        )
        pooled, _ = prototypes(weighted, ["track"] * len(crops), cap=POOLED_CROPS)
        return Embeddings(
            features=pooled.features,
            masks=pooled.masks,
            visibility=np.array([max(self.visibility)]) if self.has_visibility else None,
            rows=pooled.rows,
            fingerprint=fingerprint,
        )


class Strangers:
    """Pairs of tracks that are surely two people."""

    def __init__(self, metric: str, ours: bool | None = None) -> None:
        """Know none. ours: whether the model is one of ours; None: where its features have masks."""
        self._metric, self.ours = metric, ours
        self._pairs: deque[tuple[Embeddings, str, Embeddings, str]] = deque(maxlen=MOST_PAIRS)

    def __len__(self) -> int:
        return len(self._pairs)

    def add(self, one: Embeddings, camera: str, other: Embeddings, other_camera: str) -> None:
        """Two queries of one row, each with its camera."""
        self._pairs.append((one, camera, other, other_camera))

    def enough(self, ours: bool) -> bool:
        """Whether it is known what strangers score; ours: of a model whose first values are known."""
        return ours or len(self._pairs) >= FIRST_WEIGHT

    def mean_and_spread(self, statistics: CameraStatistics | None, *, ours: bool = True) -> tuple[float, float]:
        """Of their similarities, centred with these statistics or not; the first values count as FIRST_WEIGHT pairs."""
        first_mean, first_spread = FIRST_STRANGERS[statistics is not None]
        first = FIRST_WEIGHT if ours else 0
        if not self._pairs:
            return first_mean, first_spread
        q = np.concatenate([one.features for one, _, _, _ in self._pairs])
        t = np.concatenate([other.features for _, _, other, _ in self._pairs])
        masks = np.concatenate([pair[0].masks for pair in self._pairs])
        if statistics is not None:
            q = statistics.centre(q, [pair[1] for pair in self._pairs])
            t = statistics.centre(t, [pair[3] for pair in self._pairs])
        scores = np.array(
            [
                similarity(q[i : i + 1], t[i : i + 1], metric=self._metric, query_masks=masks[i : i + 1])[0, 0]
                for i in range(len(q))
            ]
        )
        n = len(scores)
        mean = (first * first_mean + scores.sum()) / (first + n)
        square = (first * (first_spread**2 + (first_mean - mean) ** 2) + ((scores - mean) ** 2).sum()) / (first + n)
        return float(mean), max(float(square) ** 0.5, 0.02)


def log_odds(score: ArrayLike, mean: float, spread: float, *, centred: bool = False) -> Any:
    """log P(score | one person) / P(score | strangers) of scores, for strangers of that mean and spread."""
    same_mean, same_spread, freedom = CENTRED_ODDS if centred else PLAIN_ODDS
    z = (np.asarray(score, np.float64) - mean) / spread
    same = -0.5 * (np.minimum(z - same_mean, 0) / same_spread) ** 2 - math.log(same_spread * math.sqrt(2 * math.pi))
    norm = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - 0.5 * math.log(freedom * math.pi)
    return same - (norm - (freedom + 1) / 2 * np.log1p(np.maximum(z, -same_mean) ** 2 / freedom))


def odds_by_looks(
    gallery: Gallery, query: Embeddings, camera: str, metric: str, strangers: Strangers
) -> dict[str, float]:
    """Log odds, by looks, of each of the people in the gallery who are most alike a query of one row."""
    if not len(gallery):
        return {}
    statistics = gallery.camera_statistics()
    centre = sum(statistics.counts.values()) >= LEAST_TO_CENTRE
    matches = gallery.search(
        query, CANDIDATES, metric=metric, by="person", centre=centre, query_cameras=[camera] if centre else None
    )
    ours, found = query.has_masks if strangers.ours is None else strangers.ours, {}
    mean, spread = strangers.mean_and_spread(statistics if centre else None, ours=ours)
    for one in matches.of_query(0):
        if one.person:
            if not math.isnan(one.probability):  # by a calibration that the gallery keeps
                p = min(max(one.probability, SUREST), 1 - SUREST)
                found[one.person] = math.log(p / (1 - p))
            elif strangers.enough(ours):
                found[one.person] = float(log_odds(one.score, mean, spread, centred=centre))
    return found
