"""Which loads to try: upward in quarters of what the engine did alone, then halving between sustained and not."""

from __future__ import annotations

from collections.abc import Sequence

STEP = 0.25
LEAST = STEP / 2
"""Where this share is too much, no smaller one is tried: one crop alone takes too long."""


def next_load(tried: Sequence[tuple[float, bool]]) -> float | None:
    """The next load to run, as a share of the engine's own rate; None where there is nothing left to find out.

    Args:
        tried: (load, whether it was sustained) of each run so far, in any order.
    """
    failed = min((load for load, good in tried if not good), default=None)
    if failed is None:
        return max((load for load, _ in tried), default=0.0) + STEP
    return None if failed <= LEAST else ((sustained(tried) or 0.0) + failed) / 2


def sustained(tried: Sequence[tuple[float, bool]]) -> float | None:
    """The largest load that was run and sustained, with none below it that was not; None where there is none.

    What failed once is not relied on, even where more was sustained another time.
    """
    failed = min((load for load, good in tried if not good), default=float("inf"))
    return max((load for load, good in tried if good and load < failed), default=None)
