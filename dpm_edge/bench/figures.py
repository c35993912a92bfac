"""Many durations in a few numbers."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

PERCENTILES = (50, 90, 99)


def percentile(values: ArrayLike, p: float) -> float:
    """The least value that at least p % of the values do not exceed: one that was measured, never one in between.

    Raises:
        ValueError: there is no value.
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("no value to take a percentile of; one or more is wanted")
    return float(np.percentile(array, p, method="inverted_cdf"))


def spread(seconds: ArrayLike) -> dict[str, float]:
    """How many durations there were, and their percentiles and mean in milliseconds.

    Of fewer than 100 durations the 99th percentile is the longest one.
    """
    ms = np.asarray(seconds, np.float64) * 1e3
    rest = {f"p{p}_ms": round(percentile(ms, p), 3) for p in PERCENTILES}
    return {"count": int(ms.size), **rest, "mean_ms": round(float(ms.mean()), 3)}
