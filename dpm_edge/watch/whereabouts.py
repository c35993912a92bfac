"""Where each identity was and when, and what follows from it: nobody is in two places at once.

A stay is one track: a camera, its first and its last moment. Two stays can be of one person unless they overlap in time
(in one camera, or in two whose views do not overlap), or the second begins sooner after the first than one can walk
from camera to camera. Times of ways that were seen often also speak for or against a person who came another time, as
a mixture: whoever waited between two cameras is half as likely as before, never impossible.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dpm_edge.errors import DataError

TOGETHER = 0.5
"""Seconds that two stays in one camera may overlap and yet be one person: a box given twice while a track breaks."""
LEARNED = 5
"""Ways from a camera to another that must be known before their times count."""
MOST_ODDS = math.log(3)
"""What a usual time may speak for a person, as log odds."""
WAITED = math.log(0.5)
"""What an unusual time speaks against a person."""
LOG_RANGE = math.log(86400 / 0.1)
"""Times of strangers: evenly spread over the logarithms from a tenth of a second to a day."""


@dataclass(kw_only=True)
class Stay:
    """One track of one camera."""

    camera: str
    track: str
    start: float
    last: float
    """Seconds, by one clock for all cameras."""
    since: float = 0.0
    """When it was given its identity."""

    def came_after(self, other: Stay) -> bool:
        """Whether it got its identity after the other; of two at one time, one did for everybody who asks."""
        return (self.since, self.camera, self.track) > (other.since, other.camera, other.track)


class Whereabouts:
    """The stays of every identity."""

    def __init__(
        self,
        cameras: Sequence[str] = (),
        travel: Mapping[tuple[str, str], float | tuple[float, float | None]] | None = None,
        overlap: Iterable[tuple[str, str]] = (),
        memory: float = 86400.0,
    ) -> None:
        """Begin without stays; the arguments are those of `Identities`, `memory` the seconds that a stay is known.

        Raises:
            DataError: a pair names a camera that is not among `cameras`, or a time is none.
        """
        self._cameras, self._memory = set(cameras), memory
        self._least: dict[tuple[str, str], float] = {}
        self._most: dict[tuple[str, str], float] = {}
        for way, times in (travel or {}).items():
            least, most = times if isinstance(times, tuple | list) else (times, None)
            most = math.inf if most is None else float(most)
            if not 0 <= least <= most:
                raise DataError(
                    f"expected a way's least time of 0 seconds or more and a most time not below it, got {least} and "
                    f"{most} from {way[0]!r} to {way[1]!r}"
                )
            self._least[self._known(way)], self._most[way] = float(least), most
        self._overlap = {frozenset(self._known(pair)) for pair in overlap}
        self._stays: dict[str, list[Stay]] = {}
        self._kept = 1000  # identities that were left when old ones were dropped
        self._times: dict[tuple[str, str], list[float]] = {}

    def _known(self, pair: tuple[str, str]) -> tuple[str, str]:
        if len(pair) != 2 or (self._cameras and not set(pair) <= self._cameras):
            raise DataError(
                f"expected two cameras of {', '.join(sorted(self._cameras))}, got {pair}. Check their names"
            )
        return pair[0], pair[1]

    def add(self, identity: str, stay: Stay) -> None:
        """An identity has this stay, too. Stays that ended longer ago than the memory are left out."""
        kept = [
            one for one in self._stays.get(identity, []) if one.last >= stay.start - self._memory and one is not stay
        ]
        self._stays[identity] = [*kept, stay]
        if len(self._stays) > 2 * self._kept:
            self._drop_old(stay.start - self._memory)

    def _drop_old(self, before: float) -> None:
        """Know no identity whose stays have all ended before then."""
        self._stays = {name: stays for name, stays in self._stays.items() if any(one.last >= before for one in stays)}
        self._kept = max(len(self._stays), 1000)

    def remove(self, identity: str, stay: Stay) -> None:
        """An identity does not have this stay."""
        self._stays[identity] = [one for one in self._stays.get(identity, []) if one is not stay]

    def rename(self, identity: str, into: str) -> None:
        """All stays of one identity are another's."""
        self._stays[into] = self._stays.get(into, []) + self._stays.pop(identity, [])

    def forget(self, identity: str) -> None:
        """Know no stay of an identity."""
        self._stays.pop(identity, None)

    def stays(self, identity: str) -> list[Stay]:
        """The stays of an identity, by their start."""
        return sorted(self._stays.get(identity, []), key=lambda one: one.start)

    def possible(self, identity: str, stay: Stay) -> bool:
        """Whether an identity can have had this stay beside its others."""
        return all(self.compatible(one, stay) for one in self._stays.get(identity, []) if one is not stay)

    def compatible(self, a: Stay, b: Stay) -> bool:
        """Whether two stays can be one person's."""
        first, second = (a, b) if a.start <= b.start else (b, a)
        gap = second.start - first.last
        if first.camera == second.camera:
            return gap >= -TOGETHER
        if frozenset((first.camera, second.camera)) in self._overlap:
            return True
        return gap >= self._least.get((first.camera, second.camera), 0.0)

    def log_odds(self, identity: str, stay: Stay) -> float:
        """What the time since the identity's last stay speaks for it, between WAITED and MOST_ODDS; 0 if unknown."""
        before = [one for one in self._stays.get(identity, []) if one is not stay and one.last <= stay.start]
        if not before:
            return 0.0
        last = max(before, key=lambda one: one.last)
        way, gap = (last.camera, stay.camera), max(stay.start - last.last, 0.1)
        if gap > self._most.get(way, math.inf):
            return WAITED
        times = self._times.get(way, [])
        if len(times) < LEARNED:
            return 0.0
        logs = np.log(times)
        spread = max(float(logs.std()), 0.2)
        usual = math.exp(-0.5 * ((math.log(gap) - float(logs.mean())) / spread) ** 2) / (
            spread * math.sqrt(2 * math.pi)
        )
        return min(math.log(0.5 + 0.5 * usual * LOG_RANGE), MOST_ODDS)

    def learn(self, identity: str, stay: Stay) -> None:
        """Take the time of the way that led to this stay, whose identity is sure, as usual."""
        before = [one for one in self._stays.get(identity, []) if one is not stay and one.last <= stay.start]
        if before:
            last = max(before, key=lambda one: one.last)
            times = self._times.setdefault((last.camera, stay.camera), [])
            times.append(max(stay.start - last.last, 0.1))
            del times[:-200]
