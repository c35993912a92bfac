"""The Market-1501 protocol: rank 1/5/10 and mAP from similarities.

For each query, gallery pictures of the same person AND the same camera are dropped, and so is junk (person id below
0 in the file name). A query with no match left is not counted. Average precision after Zheng et al., "Scalable Person
Re-identification: A Benchmark", ICCV 2015: the mean, over a query's true matches, of the precision at each.

    Q queries, N gallery rows
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError

RANKS = (1, 5, 10)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What the protocol says of one ranking. Shares are in 0..1; `as_dict` gives percent."""

    rank: dict[int, float]
    """Share of counted queries with a true match among the first k."""
    mean_average_precision: float
    """mAP over the counted queries."""
    queries: int
    """Queries counted."""
    queries_without_match: int
    """Queries left out because no other camera saw the person."""
    dropped_same_camera: int
    """(query, gallery) pairs dropped: same person, same camera."""
    dropped_junk: int
    """Gallery rows dropped for every query: junk detections (person id below 0)."""

    def as_dict(self) -> dict[str, float | int]:
        """JSON types: rank1, rank5, rank10 and mAP in percent, and the counts."""
        percent = {f"rank{k}": round(100 * v, 3) for k, v in self.rank.items()}
        return {
            **percent,
            "mAP": round(100 * self.mean_average_precision, 3),
            "queries": self.queries,
            "queries_without_match": self.queries_without_match,
            "dropped_same_camera": self.dropped_same_camera,
            "dropped_junk": self.dropped_junk,
        }


def market_scores(
    similarity: NDArray,
    query_people: NDArray,
    query_cameras: NDArray,
    gallery_people: NDArray,
    gallery_cameras: NDArray,
) -> Scores:
    """Rank the gallery for each query and score it.

    Args:
        similarity: (Q, N) float, higher is nearer; ties keep the gallery's order.
        query_people: (Q,) int person ids.
        query_cameras: (Q,) int camera ids.
        gallery_people: (N,) int person ids; below 0 is junk, 0 is a distractor that matches nobody.
        gallery_cameras: (N,) int camera ids.

    Raises:
        DataError: shapes differ, similarities are not finite, or no query has a match to find.
    """
    similarity = np.asarray(similarity)
    query_people, query_cameras = np.asarray(query_people), np.asarray(query_cameras)
    gallery_people, gallery_cameras = np.asarray(gallery_people), np.asarray(gallery_cameras)
    wanted = (len(query_people), len(gallery_people))
    if similarity.shape != wanted or len(query_cameras) != wanted[0] or len(gallery_cameras) != wanted[1]:
        raise DataError(
            f"expected similarities {wanted} (queries × gallery) and a person and camera of each, got "
            f"{similarity.shape}"
        )
    if not np.isfinite(similarity).all():
        raise DataError("expected finite similarities, got NaN or infinity: a feature or a mask is not finite")
    junk = gallery_people < 0
    hits = dict.fromkeys(RANKS, 0)
    precisions: list[float] = []
    same_camera = without = 0
    for row in range(wanted[0]):
        person = gallery_people == query_people[row]
        seen_here = person & (gallery_cameras == query_cameras[row]) & ~junk
        same_camera += int(seen_here.sum())
        keep = ~(seen_here | junk)
        if not (person & keep).any():
            without += 1
            continue
        order = np.argsort(-similarity[row, keep], kind="stable")
        places = np.flatnonzero(person[keep][order])
        for k in RANKS:
            hits[k] += int(places[0] < k)
        precisions.append(float(np.mean((np.arange(len(places)) + 1) / (places + 1))))
    if not precisions:
        raise DataError(
            f"expected queries with a match from another camera, but none of {wanted[0]} has one in the gallery. Give "
            "pictures of the same people from two cameras or more"
        )
    return Scores(
        rank={k: n / len(precisions) for k, n in hits.items()},
        mean_average_precision=float(np.mean(precisions)),
        queries=len(precisions),
        queries_without_match=without,
        dropped_same_camera=same_camera,
        dropped_junk=int(junk.sum()),
    )
