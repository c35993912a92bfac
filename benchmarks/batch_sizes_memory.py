"""Memory of an OpenVINO engine that meets every batch size from 1 to 64 once, as a scene with 1 to 64 people brings.

    nice python benchmarks/batch_sizes_memory.py ENGINE -o benchmarks/results/batch_sizes_memory.json

Each case is a process of its own, and its figure is the peak of its resident memory. "rising" and "shuffled" are all
sizes once; "kept" is "rising" without giving freed memory back after a new largest size, as it was before. Speed:
in one process, two engines take turns, one of which gives memory back; processor time, so that other work on the
machine counts little, and the least of a size's calls.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge import Engine
from dpm_edge.env import machine_card
from dpm_edge.progress import say
from dpm_edge.runtime.backends import openvino

MOST = 64
CASES = ("largest alone", "rising", "shuffled", "kept")
TIMED = (1, 2, 4, 8, 16, 32, 64)


def sizes(case: str) -> list[int]:
    """The batch sizes of a case, in their order."""
    if case == "largest alone":
        return [MOST, MOST]
    rising = np.arange(1, MOST + 1)
    return (np.random.default_rng(0).permutation(rising) if case == "shuffled" else rising).tolist()


def peak(folder: Path, case: str) -> float:
    """Peak resident memory of this process, MB, after the case."""
    if case == "kept":
        openvino.release_memory = lambda compiled: None
    crops = [np.zeros((64, 32, 3), np.uint8)] * MOST
    with Engine.load(folder, threads=1) as engine:
        for n in sizes(case):
            engine.embed(crops[:n])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def speeds(folder: Path, rounds: int) -> dict[int, float]:
    """Batch size → least processor time with memory given back, over the least without."""
    give_back = openvino.release_memory
    crops = [np.zeros((64, 32, 3), np.uint8)] * MOST
    times: dict[tuple[int, str], list[float]] = {(n, name): [] for n in TIMED for name in ("now", "before")}
    with Engine.load(folder, threads=1) as now, Engine.load(folder, threads=1) as before:
        for number in range(rounds + 1):
            for n in TIMED:
                for name, engine in (("now", now), ("before", before))[:: 1 if number % 2 else -1]:
                    openvino.release_memory = give_back if name == "now" else (lambda compiled: None)
                    start = time.process_time()
                    engine.embed(crops[:n])
                    if number:  # the first round makes each size ready
                        times[n, name].append(time.process_time() - start)
    openvino.release_memory = give_back
    return {n: min(times[n, "now"]) / min(times[n, "before"]) for n in TIMED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", type=Path, help="engine directory of backend openvino")
    parser.add_argument("-o", "--out", type=Path, help="where the JSON goes")
    parser.add_argument("--rounds", type=int, default=5, help="timed calls of each size")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(peak(args.engine, args.case))
        return
    megabytes = {}
    for case in CASES:
        child = [sys.executable, __file__, str(args.engine), "--case", case]
        megabytes[case] = round(float(subprocess.run(child, capture_output=True, text=True, check=True).stdout), 1)
        say(f"{case}: {megabytes[case]} MB")
    alone = megabytes["largest alone"]
    result: dict[str, Any] = {
        "engine": "openvino",
        "sizes": f"1 to {MOST}",
        "peak_megabytes": megabytes,
        "peak_over_largest_alone": {case: round(megabytes[case] / alone, 3) for case in CASES},
        "time_now_over_before": {str(n): round(ratio, 3) for n, ratio in speeds(args.engine, args.rounds).items()},
        "rounds": args.rounds,
        "machine": machine_card(),
    }
    text = json.dumps(result, indent=2)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
