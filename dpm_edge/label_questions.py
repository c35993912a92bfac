"""Which two tracks to ask about next: pairs where the model is unsure, and of which nothing else tells the answer.

T tracks · D dimensions
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from dpm_edge.track_answers import Answer

NEIGHBOURS = 8
"""Nearest tracks of each track that may be asked about."""
LEARN_FROM = 5
"""Answers of each kind from which on the border between them is where they say."""


def first_border(features: NDArray[np.float32], tracks: NDArray[np.int64], apart: Iterable[tuple[int, int]]) -> float:
    """Guess at which similarity one person and two are equally likely: between the medians of both kinds.

    One person: the first and the last crop of a track. Two: the first crops of two tracks that are apart, or, where
    nothing is known to be, of any two tracks.

    Args:
        features: (n, D) of crops in the order of their frames, L2-normalised.
        tracks: (n,) number of each crop's track.
        apart: pairs of tracks that are two people.
    """
    ends = {int(track): np.flatnonzero(tracks == track)[[0, -1]] for track in np.unique(tracks)}
    same = [features[a] @ features[b] for a, b in ends.values() if a != b]
    pairs = [(a, b) for a, b in apart if a in ends and b in ends] or list(itertools.combinations(list(ends)[:200], 2))
    two = [features[ends[a][0]] @ features[ends[b][0]] for a, b in pairs]
    return float(np.mean([np.median(some) for some in (same, two) if some] or [0.0]))


class Questions:
    """Pairs of tracks, the least sure first; answers are kept in the order they came in."""

    def __init__(
        self, features: NDArray[np.float32], names: list[str], apart: Iterable[tuple[int, int]], border: float
    ) -> None:
        """Begin without an answer.

        Args:
            features: (T, D) mean feature of each track, centred per camera, L2-normalised.
            names: (T,) CAMERA/TRACK.
            apart: pairs that are two people for sure, and never asked about.
            border: similarity at which one person and two are equally likely, before anybody has answered.
        """
        self.names = names
        self.answers: list[Answer] = []
        self._number = {name: i for i, name in enumerate(names)}
        self._known_apart = {(min(pair), max(pair)) for pair in apart}
        self._border, self._unsure = border, set[tuple[int, int]]()
        self._s = np.asarray(features, np.float64) @ np.asarray(features, np.float64).T
        self._pairs = self._candidates()
        self._people: list[int] = []
        self._apart: set[tuple[int, int]] = set()
        self._derive()

    def __len__(self) -> int:
        """Count the questions that are left."""
        return sum(not self._follows(a, b) for a, b in self._pairs)

    def answer(self, one: str, other: str, same: bool | None) -> bool:
        """Take an answer, None for "cannot tell"; whether the tracks are known and the answer fits the others."""
        if one not in self._number or other not in self._number or one == other:
            return False
        a, b = sorted((self._number[one], self._number[other]))
        if same is None:
            self._unsure.add((a, b))
            return True
        told = self._told(a, b)
        if told is not None:
            return told == same  # said already, or it follows
        self.answers.append((one, other, same))
        self._derive()
        return True

    def undo(self) -> Answer | None:
        """Take the last answer back."""
        if not self.answers:
            return None
        last = self.answers.pop()
        self._derive()
        return last

    def next(self) -> tuple[int, int] | None:
        """Return the pair of tracks that is nearest to the border; None where every one is told."""
        border = self._learned_border()
        left = [pair for pair in self._pairs if not self._follows(*pair)]
        return min(left, key=lambda pair: abs(self._s[pair] - border)) if left else None

    def _candidates(self) -> list[tuple[int, int]]:
        s = self._s.copy()
        np.fill_diagonal(s, -np.inf)
        k = min(NEIGHBOURS, len(s) - 1)
        if k < 1:
            return []
        near = np.argpartition(-s, k - 1, axis=1)[:, :k]
        pairs = {(min(i, int(j)), max(i, int(j))) for i, row in enumerate(near) for j in row}
        return sorted(pairs - self._known_apart)

    def _learned_border(self) -> float:
        """Between the means of both kinds of answers, once there are some of both."""
        said = [(self._s[self._number[a], self._number[b]], same) for a, b, same in self.answers if a in self._number
                and b in self._number]  # fmt: skip
        kinds = [[s for s, same in said if same == kind] for kind in (True, False)]
        if min(map(len, kinds)) < LEARN_FROM:
            return self._border
        return float(np.mean([np.mean(kind) for kind in kinds]))

    def _derive(self) -> None:
        """Find out who is one person and who are two, by all answers: the lowest track of a person stands for it."""
        people = list(range(len(self.names)))

        def of(track: int) -> int:
            while people[track] != track:
                track = people[track]
            return track

        known = [
            (self._number[a], self._number[b], same)
            for a, b, same in self.answers
            if a in self._number and b in self._number
        ]
        for a, b, same in known:
            if same:
                low, high = sorted((of(a), of(b)))
                people[high] = low
        self._people = [of(track) for track in range(len(people))]
        two = self._known_apart | {(a, b) for a, b, same in known if not same}
        self._apart = {tuple(sorted((self._people[a], self._people[b]))) for a, b in two}  # type: ignore[misc]

    def _told(self, a: int, b: int) -> bool | None:
        """Whether two tracks are one person, by the answers so far; None where they do not tell."""
        one, other = sorted((self._people[a], self._people[b]))
        return True if one == other else False if (one, other) in self._apart else None

    def _follows(self, a: int, b: int) -> bool:
        return (a, b) in self._unsure or self._told(a, b) is not None
