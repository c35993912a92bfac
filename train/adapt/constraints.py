"""What is known about tracks before anything is learned: which are one person, and which are two.

Two tracks of one camera that share a frame are two people; a person's answers (`--labels`) tell more. Clusters follow:
those that hold tracks of one person become one, and a cluster that holds tracks of two people is cut up by average
linkage, the nearest tracks joining first and never two that are known to be apart (constrained agglomerative
clustering, Davidson and Ravi, PKDD 2005).

n crops · T tracks · P pairs of tracks
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError
from dpm_edge.track_crops import seen_together

Pair = tuple[str, str]


def _no_pairs() -> NDArray[np.int64]:
    return np.zeros((0, 2), np.int64)


@dataclass(frozen=True)
class Constraints:
    """Pairs of track numbers (P, 2)."""

    same: NDArray[np.int64] = field(default_factory=_no_pairs)
    """One person."""
    apart: NDArray[np.int64] = field(default_factory=_no_pairs)
    """Two people."""

    def __bool__(self) -> bool:
        return bool(len(self.same) or len(self.apart))


def constraints_of(
    cameras: Sequence[Any], tracks: NDArray[np.int64], frames: NDArray[np.int64], names: Sequence[str],
    answers: Sequence[tuple[str, str, bool]],
) -> Constraints:  # fmt: skip
    """Constraints out of frames and answers.

    Where an answer says that two tracks of one frame are one person, the answer counts: a tracker may draw two boxes
    around one person.

    Args:
        cameras, tracks, frames: (n,) of each crop, as `seen_together` takes them.
        names: (n,) name of each crop's track, as answers use it.
        answers: two names and whether they are one person; answers about tracks that are not here are left out.

    Raises:
        DataError: answers contradict each other.
    """
    number = {name: int(track) for name, track in zip(names, tracks)}
    known = [(number[a], number[b], same) for a, b, same in answers if a in number and b in number]
    parts = _Parts(int(tracks.max()) + 1 if len(tracks) else 0)
    for a, b, same in known:
        if same:
            parts.join(a, b)
    for a, b, same in known:
        if not same and parts.of(a) == parts.of(b):
            told = {track: name for name, track in number.items()}
            raise DataError(
                f"expected answers that agree, got {told[a]} and {told[b]} as two people and, by other answers, as "
                "one. Correct the labels file"
            )
    pairs = [(a, b) for a, b in seen_together(cameras, tracks, frames).tolist() if parts.of(a) != parts.of(b)]
    pairs += [(min(a, b), max(a, b)) for a, b, same in known if not same]
    return Constraints(
        same=np.array([(a, b) for a, b, same in known if same], np.int64).reshape(-1, 2),
        apart=np.array(sorted(set(pairs)), np.int64).reshape(-1, 2),
    )


class _Parts:
    """Tracks that are one person, as sets that grow together."""

    def __init__(self, count: int) -> None:
        self._above = list(range(count))

    def of(self, track: int) -> int:
        """The number of the track's set."""
        while self._above[track] != track:
            self._above[track] = self._above[self._above[track]]
            track = self._above[track]
        return track

    def join(self, a: int, b: int) -> None:
        """Make two sets one."""
        a, b = sorted((self.of(a), self.of(b)))
        self._above[b] = a


def constrained(
    labels: NDArray[np.int64], tracks: NDArray[np.int64], features: NDArray[np.float32], known: Constraints, least: int
) -> NDArray[np.int64]:
    """Clusters (n,) that no constraint contradicts, numbered without gaps; −1 for a crop that belongs to none.

    Args:
        labels: (n,) clusters, one for all crops of a track; −1 for none.
        tracks: (n,) number of each crop's track.
        features: (n, D) what the clusters were found among, L2-normalised.
        known: the constraints.
        least: crops that make a cluster; what is cut off and smaller belongs to none.
    """
    if not known:
        return labels
    parts = _Parts(int(tracks.max()) + 1)
    for a, b in known.same.tolist():
        parts.join(a, b)
    person = np.array([parts.of(int(track)) for track in tracks], np.int64)
    made = _joined(labels, person, {parts.of(a) for a in known.same[:, 0].tolist()})
    apart = {(min(pair), max(pair)) for pair in ((parts.of(a), parts.of(b)) for a, b in known.apart.tolist())}
    out = np.full_like(made, -1)
    count = 0
    for cluster in range(int(made.max(initial=-1)) + 1):
        rows = np.flatnonzero(made == cluster)
        for group in _cut(rows, person, features, apart):
            if len(group) >= least:
                out[group] = count
                count += 1
    return out


def _joined(labels: NDArray[np.int64], person: NDArray[np.int64], several: set[int]) -> NDArray[np.int64]:
    """Clusters that share a person become one, and all crops of a person that is in one belong to it.

    Those people of several tracks that are in no cluster become a cluster each, after the others.
    """
    count = int(labels.max(initial=-1)) + 1
    found = _Parts(count + int(person.max(initial=-1)) + 1)
    where: dict[int, int] = {}
    for one, label in zip(person.tolist(), labels.tolist()):
        if label >= 0:
            found.join(where.setdefault(one, label), label)
    for one in several:
        where.setdefault(one, count + one)
    made = np.array([found.of(where[one]) if one in where else -1 for one in person.tolist()], np.int64)
    return np.where(labels >= 0, [found.of(label) if label >= 0 else -1 for label in labels.tolist()], made)


def _cut(
    rows: NDArray[np.int64], person: NDArray[np.int64], features: NDArray[np.float32], apart: set[tuple[int, int]]
) -> list[NDArray[np.int64]]:
    """The rows of one cluster in groups without two people who are apart; one group where there are none."""
    people = np.unique(person[rows])
    forbidden = np.zeros((len(people), len(people)), bool)
    for i, a in enumerate(people.tolist()):
        for j, b in enumerate(people.tolist()):
            forbidden[i, j] = (min(a, b), max(a, b)) in apart
    if not forbidden.any():
        return [rows]
    members = [rows[person[rows] == one] for one in people.tolist()]
    totals = np.stack([features[some].sum(0, dtype=np.float64) for some in members])
    sizes = np.array([len(some) for some in members], np.float64)
    alive = np.ones(len(people), bool)
    while True:
        s = totals @ totals.T / np.outer(sizes, sizes)
        s[forbidden | ~alive[:, None] | ~alive[None] | np.eye(len(people), dtype=bool)] = -np.inf
        i, j = (int(k) for k in np.unravel_index(np.argmax(s), s.shape))
        if np.isneginf(s[i, j]):
            return [some for some, there in zip(members, alive) if there]
        members[i] = np.sort(np.concatenate([members[i], members[j]]))
        totals[i] += totals[j]
        sizes[i] += sizes[j]
        forbidden[i] |= forbidden[j]
        forbidden[:, i] |= forbidden[:, j]
        alive[j] = False
