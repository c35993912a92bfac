"""Tracks of one camera decided together: each gets at most one identity, and no identity two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dpm_edge.watch.live_track import LiveTrack
from dpm_edge.watch.overlap import assign

KEEP = 1.0
"""Log odds by which a track's identity is preferred to a change that others bring about."""


def decide_together(tracks: Sequence[LiveTrack], asked: LiveTrack) -> list[tuple[LiveTrack, dict[str, float]]]:
    """Give each of the tracks of one camera at most one identity, and none to two, so that all is most probable.

    Args:
        tracks: with their odds; `asked` is one of them.
        asked: the track that was looked at: what it was taken for so far does not count.

    Returns:
        The tracks that need a new conclusion, each with the odds of the candidates that no other track has.
    """
    names = sorted({identity for one in tracks for identity in one.odds})
    worth = np.full((len(tracks), len(names) + len(tracks)), -1e3)
    for i, one in enumerate(tracks):
        held = one.identity if one is not asked else None
        scale = math.log(max(one.compared, 1))
        for identity, odds in one.odds.items():
            worth[i, names.index(identity)] = odds - scale + KEEP * (identity == held)
        worth[i, len(names) + i] = KEEP * (held is not None and held == one.own)
    _, columns = assign(-worth)
    taken = {int(column): i for i, column in enumerate(columns)}
    changed = []
    for i, one in enumerate(tracks):
        chosen = names[columns[i]] if columns[i] < len(names) else None
        if one is not asked and chosen == (None if one.identity == one.own else one.identity):
            continue  # nothing changed for it
        changed.append((one, {n: o for n, o in one.odds.items() if taken.get(names.index(n), i) == i}))
    return changed


def probabilities(odds: dict[str, float], compared: int) -> tuple[tuple[tuple[str, float], ...], float]:
    """Candidates with their probabilities, best first, and the probability of none of them.

    P_i = (L_i / n) / (1 + Σ_j L_j / n) for odds L_i of candidate i: half of all tracks are expected to be new. n counts
    everybody who was compared, those too who cannot be it because they are elsewhere: that others are excluded makes
    it no likelier that somebody comes back.
    """
    n = max(compared, 1)
    weight = {identity: math.exp(min(one, 50)) / n for identity, one in odds.items()}
    total = 1 + sum(weight.values())
    ranked = sorted(((n, w / total) for n, w in weight.items()), key=lambda pair: (-pair[1], pair[0]))
    return tuple(ranked), 1 / total
