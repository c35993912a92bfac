"""What was measured, as the numbers of the JSON: a cell of calls, a point of frames, the most that was sustained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dpm_edge.bench import ladder
from dpm_edge.bench.cameras import Load, Seen
from dpm_edge.bench.figures import percentile, spread
from dpm_edge.bench.load import Calls
from dpm_edge.bench.settings import Settings

LATE_SHARE = 0.01
"""Share of the frames that may be later than the deadline, or refused."""


def cell(batch: int, streams: int, calls: Sequence[tuple[Calls, float | None]]) -> dict[str, Any]:
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


def tried(points: Sequence[dict[str, Any]], cameras: int) -> list[tuple[float, bool]]:
    """(share, whether it was sustained) of each run with so many cameras."""
    return [(point["share"], point["sustained"]) for point in points if point["cameras"] == cameras]


def point(load: Load, seen: Seen, joules: float | None, settings: Settings) -> dict[str, Any]:
    """One end-to-end run."""
    frames = len(seen.latencies) + seen.refused
    late = seen.refused + sum(1 for latency in seen.latencies if latency * 1e3 > settings.deadline_ms)
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
        share = ladder.sustained(tried(points, cameras))
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
