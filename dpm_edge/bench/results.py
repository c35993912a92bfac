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


BUSY = 0.15
"""Share of the cores' time that others may use before the report says that the machine was not quiet."""


def text(results: dict[str, Any]) -> str:
    """The whole report."""
    machine, engines = results["machine"], results["engines"]
    head = f"{engines[0]['model']} on {machine['cpu']}, {machine['cores']} cores, {machine['date']}"
    shares = {row["name"]: row for row in results["ratios"]}
    parts = [
        [head],
        _engine_only(engines, shares),
        _end_to_end(engines, shares, results["settings"]),
        _machine(results),
    ]
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def best_point(engine: dict[str, Any], cameras: int) -> dict[str, Any] | None:
    """The end-to-end run in which an engine sustained the most with so many cameras; None where it sustained none."""
    most = next(row for row in engine["sustained"] if row["cameras"] == cameras)
    found = (p for p in engine["end_to_end"] if p["cameras"] == cameras and p["sustained"])
    return next((p for p in found if p["people_per_frame"] == most["people_per_frame"]), None)


def _engine_only(engines: Sequence[dict[str, Any]], shares: dict[str, Any]) -> list[str]:
    rows = [["batch", "streams", "engine", "p50", "p90", "p99", "calls", "crops/s", "× first", "J/crop"]]
    for i, cell in enumerate(engines[0]["engine_only"]):
        for one in engines:
            mine, share = one["engine_only"][i], shares.get(one["name"])
            rows.append(
                [
                    str(cell["batch"]),
                    str(cell["streams"]),
                    one["name"],
                    *(_number(mine[f"p{p}_ms"]) for p in (50, 90, 99)),
                    str(mine["count"]),
                    _number(mine["crops_per_second"]),
                    _number(share["engine_only"][i]["crops_per_second"]) if share else "",
                    _number(mine["joules_per_crop"]),
                ]
            )
    return ["engine only: crops cut out already; ms a call", *_table(rows, left="engine")]


def _end_to_end(engines: Sequence[dict[str, Any]], shares: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    rows = [["cameras", "engine", "people/frame", "crops/s", "p50", "p90", "p99", "frames", "engine p50", "× first"]]
    for i, cell in enumerate(engines[0]["sustained"]):
        for one in engines:
            mine, share, run = one["sustained"][i], shares.get(one["name"]), best_point(one, cell["cameras"])
            rows.append(
                [
                    str(cell["cameras"]),
                    one["name"],
                    _number(mine["people_per_frame"]) if run else "none",
                    _number(mine["crops_per_second"]) if run else "",
                    *(_number(run[f"p{p}_ms"]) if run else "" for p in (50, 90, 99)),
                    str(run["frames"]) if run else "",
                    _number(run["parts_p50_ms"]["engine"]) if run else "",
                    _number(share["sustained"][i]["people_per_frame"]) if share else "",
                ]
            )
    batches = ", ".join(f"{one['name']} {one['batcher']['max_batch']}" for one in engines)
    return [
        f"end to end: frame in, ids out; {settings['fps']:g} frames a second from each camera, "
        f"gallery of {settings['gallery']} rows; ms a frame",
        f"the most people that were tried with the ids of 99 in 100 frames within {settings['deadline_ms']:g} ms "
        f"(batcher: {settings['max_wait_ms']:g} ms, crops at most: {batches})",
        *_table(rows, left="engine"),
    ]


def _machine(results: dict[str, Any]) -> list[str]:
    """Memory, energy, clocks, heat and other load."""
    conditions = results["conditions"]
    lines = []
    for one in results["engines"]:
        memory = one["memory"]
        gpu = f", on the GPU {memory['gpu_mb']:g}" if memory["gpu_mb"] is not None else ""
        resident, highest = (_number(memory[key]) or "not readable" for key in ("resident_mb", "highest_mb"))
        lines.append(f"memory, MB      {one['name']} on {one['device']}: {resident} resident, {highest} at most{gpu}")
    lines.append(f"energy          {conditions['energy']}")
    names = {
        "cpu_mhz": "cores, MHz",
        "governor": "governor",
        "celsius": "temperature",
        "times_slowed_by_heat": "slowed by heat",
        "power_mode": "power mode",
        "gpu": "GPU",
        "load_average": "load average",
    }
    for key, name in names.items():
        before, after = (_short(conditions[when][key]) for when in ("before", "after"))
        lines.append(f"{name:<15} {before}" + (f" before, {after} after" if before != after else ""))
    others = conditions["others_working"]
    if isinstance(others, float) and others > BUSY:
        lines.append(f"NOT QUIET       other programs used {others:.0%} of the cores before the start; measure again")
    working, stolen = conditions["cores_working"], conditions["cores_stolen"]
    if isinstance(working, float):
        lines.append(f"cores' time     {working:.0%} worked, {stolen:.0%} stolen by other virtual machines")
    return lines


def _table(rows: list[list[str]], *, left: str) -> list[str]:
    """Columns of equal width, numbers to the right; columns that hold nothing are left out."""
    kept = [column for column in zip(*rows) if any(column[1:])]
    aligned = []
    for column in kept:
        width = max(len(cell) for cell in column)
        aligned.append([cell.ljust(width) if column[0] == left else cell.rjust(width) for cell in column])
    return ["  " + "  ".join(row).rstrip() for row in zip(*aligned)]


def _number(value: float | None) -> str:
    """Three digits; nothing for None."""
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _short(value: Any) -> str:
    """A sensor's answer in a line."""
    if isinstance(value, list):
        low, high = min(value), max(value)
        return f"{low:g}" if low == high else f"{low:g} to {high:g}"
    if isinstance(value, dict):
        return ", ".join(
            f"{name} {reading:g}" if isinstance(reading, float) else f"{name} {reading}"
            for name, reading in value.items()
        )
    return str(value)
