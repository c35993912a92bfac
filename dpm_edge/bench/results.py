"""What was measured, as the numbers of the JSON: percentiles, a cell of calls, a point of frames, the largest load that
was sustained, and the ratios between two engines.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dpm_edge.bench.cameras import CameraLoad, CameraTimes
from dpm_edge.bench.load import ClosedLoop, largest_sustained

PERCENTILES = (50, 90, 99)
LATE_SHARE = 0.01
"""Share of the frames that may be later than the deadline, or refused."""


def percentile(values: ArrayLike, p: float) -> float:
    """The least value that at least p % of the values do not exceed: one that was measured, never one in between.

    Raises:
        ValueError: there is no value.
    """
    array = np.asarray(values, np.float64)
    if not array.size:
        raise ValueError("expected one value or more to take a percentile of, got none")
    return float(np.percentile(array, p, method="inverted_cdf"))


def spread(seconds: ArrayLike) -> dict[str, float]:
    """How many durations there were, and their percentiles and mean in milliseconds.

    Of fewer than 100 durations the 99th percentile is the longest one.
    """
    ms = np.asarray(seconds, np.float64) * 1e3
    rest = {f"p{p}_ms": round(percentile(ms, p), 3) for p in PERCENTILES}
    return {"count": int(ms.size), **rest, "mean_ms": round(float(ms.mean()), 3)}


def engine_only_cell(batch: int, streams: int, calls: Sequence[tuple[ClosedLoop, float | None]]) -> dict[str, Any]:
    """One batch size and number of streams, engine only."""
    latencies = np.concatenate([part.latencies for part, _ in calls])
    joules = [j for _, j in calls if j is not None]
    return {
        "batch": batch,
        "streams": streams,
        **spread(latencies),
        "crops_per_second": round(batch * float(np.mean([part.rate for part, _ in calls])), 2),
        "joules_per_crop": round(sum(joules) / (batch * len(latencies)), 4) if joules else None,
    }


def tried_loads(points: Sequence[dict[str, Any]], cameras: int) -> list[tuple[float, bool]]:
    """(share, whether it was sustained) of each run with so many cameras."""
    return [(point["share"], point["sustained"]) for point in points if point["cameras"] == cameras]


def end_to_end_point(
    load: CameraLoad, seen: CameraTimes, joules: float | None, *, deadline_ms: float
) -> dict[str, Any]:
    """One end-to-end run."""
    frames = len(seen.latencies) + seen.refused
    late = seen.refused + sum(1 for latency in seen.latencies if latency * 1e3 > deadline_ms)
    found: dict[str, Any] = {
        "cameras": load.cameras,
        "people_per_frame": round(load.people, 4),
        "offered_crops_per_second": round(load.crops_per_second, 2),
        "frames": frames,
        "refused": seen.refused,
        "late": late,
        "sustained": frames > 0 and late <= LATE_SHARE * frames,
        "ids": seen.people,
        "ids_right": seen.right,
    }
    if seen.latencies:
        found |= spread(seen.latencies)
        found["parts_p50_ms"] = {
            name: round(percentile(getattr(seen, name), 50) * 1e3, 3) for name in ("late", "cut", "engine", "search")
        }
        found["mean_batch"] = round(float(np.mean(seen.batches)), 2)
    if joules is not None and seen.batches:
        found["joules_per_crop"] = round(joules / sum(seen.batches), 4)
    return found


def sustained(points: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The largest load that each number of cameras sustained; people and crops are 0 where the least was too much."""
    found = []
    for cameras in dict.fromkeys(point["cameras"] for point in points):
        share = largest_sustained(tried_loads(points, cameras))
        best = next((p for p in points if p["cameras"] == cameras and p["share"] == share), None)
        found.append(
            {
                "cameras": cameras,
                "people_per_frame": best["people_per_frame"] if best else 0.0,
                "crops_per_second": best["offered_crops_per_second"] if best else 0.0,
                "p99_ms": best["p99_ms"] if best else None,
            }
        )
    return found


def ratios(engines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each rival's figures over the first engine's: throughput and sustained load (more is better), p50 (less is)."""
    first, *rivals = engines
    return [
        {
            "name": rival["name"],
            "of": first["name"],
            "engine_only": [
                {
                    "batch": mine["batch"],
                    "streams": mine["streams"],
                    "crops_per_second": _over(its["crops_per_second"], mine["crops_per_second"]),
                    "p50_ms": _over(its["p50_ms"], mine["p50_ms"]),
                }
                for mine, its in zip(first["engine_only"], rival["engine_only"])
            ],
            "sustained": [
                {
                    "cameras": mine["cameras"],
                    "people_per_frame": _over(its["people_per_frame"], mine["people_per_frame"]),
                }
                for mine, its in zip(first["sustained"], rival["sustained"])
            ],
        }
        for rival in rivals
    ]


def _over(its: float, mine: float) -> float | None:
    """A ratio of three digits; None where there is nothing to divide by."""
    return float(f"{its / mine:.3g}") if mine else None
