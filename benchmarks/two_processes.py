"""Two processes with one engine thread each, at once: does each get a core of its own?

    python benchmarks/two_processes.py --engine ENGINE [-o FILE]

ENGINE is an OpenVINO engine directory. With its threads pinned, OpenVINO puts the one thread of every process on the
first core. Calls of BATCH crops in a second, of one process alone and of two at once, pinned and not, in turns; the
machine should have two cores or more, and nothing else to do.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge.bench.worker import WorkerProcess
from dpm_edge.env import cores, machine_card
from dpm_edge.files import write_whole
from dpm_edge.manifest import Manifest
from dpm_edge.telemetry import import_openvino

RESULTS = Path(__file__).parent / "results" / "two-processes.json"
BATCH, SECONDS, TURNS = 8, 3.0, 5
CASES = {"pinned": True, "not pinned": False}


class OneThread:
    """An engine's network with one thread."""

    def __init__(self, folder: Path, pinned: bool) -> None:
        manifest = Manifest.read(folder)
        pre = manifest.spec.preprocessing
        settings = {
            "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1,
            "ENABLE_CPU_PINNING": pinned,
        }  # fmt: skip
        compiled = import_openvino("this benchmark").Core().compile_model(folder / manifest.engine, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._images = np.random.default_rng(0).standard_normal((BATCH, 3, pre.height, pre.width), np.float32)
        self._request.infer({0: self._images})

    def calls_a_second(self, begin: float, seconds: float) -> float:
        """Calls that end within these seconds, from a moment on that other processes know, too."""
        time.sleep(max(0.0, begin - time.time()))
        end, count = time.perf_counter() + seconds, 0
        while time.perf_counter() < end:
            self._request.infer({0: self._images})
            count += 1
        return count / seconds


def at_once(workers: list[WorkerProcess]) -> float:
    """Calls a second of all of them together."""
    begin = time.time() + 0.2
    with ThreadPoolExecutor(len(workers)) as waiting:
        return sum(waiting.map(lambda one: one.call("calls_a_second", begin, SECONDS), workers))


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    load = os.getloadavg()[0]
    for _ in range(TURNS):
        for name, pinned in CASES.items():
            with (
                WorkerProcess(OneThread, said.engine, pinned, name="the first") as first,
                WorkerProcess(OneThread, said.engine, pinned, name="the second") as second,
            ):
                found[name].append((at_once([first]), at_once([first, second])))
    result: dict[str, Any] = {
        "command": "python benchmarks/two_processes.py --engine ENGINE",
        "machine": machine_card(),
        "cores": cores(),
        "load before": round(load, 2),
        "model": Manifest.read(said.engine).fingerprint[:12],
        "crops in a call": BATCH,
    }
    for name, values in found.items():
        one, two = np.median(np.array(values), axis=0)
        result[name] = {
            "one process, calls a second": round(float(one), 2),
            "two processes, calls a second in all": round(float(two), 2),
            "two over one": round(float(np.median([b / a for a, b in values])), 3),
        }
    write_whole(said.out, (json.dumps(result, indent=1) + "\n").encode())
    print(said.out.read_text())


if __name__ == "__main__":
    main()
