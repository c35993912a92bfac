"""Pairs of crops of which tracks alone tell whether they are one person, to calibrate with where nobody has labelled.

Two crops of one track are one person; crops of two tracks of one camera that share a frame are two. What that cannot
show: one person seen by two cameras, or on another day. Similarities of one person are therefore higher here than
between cameras, and true-match rates too good. Strangers are known as well as by labels: on a video whose people are
known, they reached these thresholds at 1.0 to 1.4 times the rate that was asked for
(benchmarks/results/track-calibration.json).

n crops · P pairs
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError
from dpm_edge.metrics import similarity
from dpm_edge.runtime.embeddings import Embeddings

CROPS = 20
"""Crops of a track that are compared, evenly spread over it."""
LEAST_TOGETHER, LEAST_TRACKS = 20, 10
"""Fewer pairs of tracks seen together, or tracks of three crops and more, decide nothing."""
MOST_TOGETHER = 1000
"""Pairs of tracks that are compared; of more, so many are drawn."""


def pairs_of_tracks(
    embeddings: Embeddings, tracks: NDArray[np.int64], together: NDArray[np.int64], *, metric: str, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.float32] | None]:
    """Similarity, whether it is one person, and the query's visibility (None without) of P pairs, each both ways.

    Of one track the first third is compared with the last, so that two neighbouring frames are no pair.

    Args:
        embeddings: n crops, those of a track in the order of their frames.
        tracks: (n,) number of each crop's track.
        together: (T, 2) pairs of tracks that are two people, as `seen_together` finds them.
        metric: "plain", "masked" or "mutual".
        seed: of the draw, where there are more than MOST_TOGETHER pairs of tracks.

    Raises:
        DataError: there are too few.
    """
    rows = {int(track): _spread(np.flatnonzero(tracks == track)) for track in np.unique(tracks)}
    glimpses = [(some[: len(some) // 3], some[-(len(some) // 3) :]) for some in rows.values() if len(some) >= 3]
    apart = [(rows[int(a)], rows[int(b)]) for a, b in together if int(a) in rows and int(b) in rows]
    if len(glimpses) < LEAST_TRACKS or len(apart) < LEAST_TOGETHER:
        raise DataError(
            f"expected {LEAST_TRACKS} tracks of three crops or more, and {LEAST_TOGETHER} pairs of tracks that share a "
            f"frame, got {len(glimpses)} and {len(apart)}. Give a longer video or a busier hour; crops of a folder "
            "must be named frame-N.jpg"
        )
    draw = np.random.default_rng(seed)
    if len(apart) > MOST_TOGETHER:
        apart = [apart[i] for i in np.sort(draw.choice(len(apart), MOST_TOGETHER, replace=False))]
    parts: list[tuple[NDArray, bool, NDArray]] = []
    both: list[tuple[bool, NDArray, NDArray]] = [(True, one, other) for one, other in glimpses]
    both += [(False, one, other) for one, other in apart]
    for same, one, other in both:
        for q, t in ((one, other), (other, one)):
            s = similarity(
                embeddings.features[q].astype(np.float64), embeddings.features[t].astype(np.float64),
                metric=metric, query_masks=embeddings.masks[q], target_masks=embeddings.masks[t],
            )  # fmt: skip
            parts.append((s.ravel(), same, np.repeat(embeddings.weight[q], len(t))))
    return (
        np.concatenate([s for s, _, _ in parts]),
        np.concatenate([np.full(len(s), same) for s, same, _ in parts]),
        None if embeddings.visibility is None else np.concatenate([visibility for _, _, visibility in parts]),
    )


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """CROPS of the rows at most, evenly spread."""
    return rows[np.linspace(0, len(rows) - 1, min(CROPS, len(rows))).round().astype(np.int64)]
