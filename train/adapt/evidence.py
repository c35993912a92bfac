"""Whether a model got better at a site, judged without labels, on tracks that it was not adapted on.

A track is one person. Its first third and its last third are two glimpses with a gap between: the last third must be
found by the first among those of all other held-out tracks of all cameras (`found again`, mAP, in percent). Tracks of
the same camera look alike for reasons that are not the person, so this says less than labels would; but a model that
has fallen apart shows at once. Where no tracks are known, each held-out crop and its own covered copy stand in for the
two glimpses, and the report calls that weak.

n crops · T tracks · D dimensions
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from dpm_edge.metrics import normalise

LEAST_TRACKS = 20
"""Fewer held-out tracks decide nothing."""
DRAWS = 200
"""Bootstrap draws behind an interval."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Before against after on the same held-out glimpses."""

    kind: str
    """"tracks", or "covered copies" where no tracks are known."""
    pairs: int
    before: float
    """Mean average precision in percent of finding the second glimpse by the first."""
    after: float
    gain: float
    low: float
    """2.5 % quantile of the gain over bootstrap draws of the pairs."""
    high: float
    across_before: float
    """Percent of pairs whose two glimpses have the same nearest track in another camera."""
    across_after: float

    @property
    def worse(self) -> bool:
        """The gain is below zero, and so is all of its interval."""
        return self.high < 0

    @property
    def sure(self) -> bool:
        """All of the gain's interval is above zero."""
        return self.low > 0

    def as_dict(self) -> dict:
        """JSON."""
        return {**asdict(self), "worse": self.worse, "sure": self.sure}


def glimpses(tracks: NDArray[np.int64]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """For each track of three crops or more the rows of its first and of its last third, in the order of the rows."""
    made = []
    for track in np.unique(tracks):
        rows = np.flatnonzero(tracks == track)
        third = len(rows) // 3
        if third:
            made.append((rows[:third], rows[-third:]))
    return made


def average_precision(first: NDArray, second: NDArray) -> NDArray[np.float64]:
    """For each of T pairs, 1 / rank of its second glimpse among all second glimpses. first, second (T, D)."""
    s = first @ second.T
    own = np.diag(s)[:, None]
    return 1.0 / ((s > own).sum(1) + (s == own).sum(1)).astype(np.float64)


def same_across(first: NDArray, second: NDArray, cameras: NDArray) -> NDArray[np.float64]:
    """For each of T pairs 1 where both glimpses have the same nearest track in other cameras, else 0."""
    other = cameras[:, None] != cameras[None]
    mean = normalise(first + second)
    a, b = (np.where(other, glimpse @ mean.T, -np.inf) for glimpse in (first, second))
    return (a.argmax(1) == b.argmax(1)).astype(np.float64)


def compare(
    before: tuple[NDArray, NDArray], after: tuple[NDArray, NDArray], cameras: NDArray, *, kind: str, seed: int
) -> Evidence | None:
    """Evidence from both models' features of the glimpses, two (T, D) each; None for fewer than LEAST_TRACKS."""
    if len(cameras) < LEAST_TRACKS:
        return None
    ap = [average_precision(*pair) for pair in (before, after)]
    across = [same_across(*pair, cameras) for pair in (before, after)]
    gain = 100 * (ap[1] - ap[0])
    draw = np.random.default_rng(seed)
    means = gain[draw.integers(0, len(gain), (DRAWS, len(gain)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Evidence(
        kind=kind,
        pairs=len(cameras),
        before=float(100 * ap[0].mean()),
        after=float(100 * ap[1].mean()),
        gain=float(gain.mean()),
        low=float(low),
        high=float(high),
        across_before=float(100 * across[0].mean()),
        across_after=float(100 * across[1].mean()),
    )
