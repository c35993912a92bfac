"""How fast dpm-s runs on this CPU: INT8 and fp32 engines against the same network in eager torch, the same threads.

    python benchmarks/cpu_engines.py --crops DIR [--checkpoint FILE] [--labelled DIR]
        writes benchmarks/results/cpu-engines.json, about four minutes on two cores

The physics first: INT8 is faster where the CPU multiplies int8 in one instruction (VNNI, AMX: four times the products
of fp32 per cycle). With AVX2 alone three instructions do 32 products, against two for 16 in fp32: 1.33 times at the
very most. The results say which of these instructions the CPU has.

Each rival lives in a process of its own, so that no library's spinning threads slow another; rounds take turns, and
medians are compared. A call is preprocessed crops in, features and masks out; `embed` takes boxes in a frame, and so
adds everything around the call.
Without --checkpoint the weights are random: times are the same, and nothing is said about accuracy.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge import Engine
from dpm_edge.bench.cameras import compose
from dpm_edge.bench.load import closed_loop
from dpm_edge.bench.results import spread
from dpm_edge.bench.worker import WorkerProcess
from dpm_edge.env import machine_card
from dpm_edge.images import find_images, preprocess, read_image
from dpm_edge.manifest import Manifest
from dpm_edge.progress import track
from dpm_edge.runtime.backends import open_backend
from dpm_edge.spec import PRESETS

RESULTS = Path(__file__).parent / "results" / "cpu-engines.json"
ENGINES = (("openvino", "int8"), ("openvino", "fp32"), ("onnxruntime", "int8"), ("onnxruntime", "fp32"))
INT8_INSTRUCTIONS = ("avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm")
BATCHES = (1, 8)
WARM_UP = 2
WANTED_RATIO = 4.0
WANTED_SHARE = 0.10


class Rival:
    """One way to run the network; lives in a process of its own."""

    def __init__(self, kind: str, path: Path, threads: int, crops: list[np.ndarray]) -> None:
        """kind: "torch" (a checkpoint), "call" (an engine's library alone) or "embed" (boxes in a frame)."""
        if kind == "embed":
            engine, scene = Engine.load(path, threads=threads), compose(crops)
            self._calls = {n: partial(engine.embed, scene.frame, scene.boxes[:n]) for n in BATCHES}
        else:
            call = (torch_call if kind == "torch" else library_call)(path, threads)
            self._calls = {n: partial(call, preprocess(crops[:n], PRESETS["dpm-s"].preprocessing)) for n in BATCHES}

    def once(self, batch: int) -> float:
        """Seconds of one call."""
        return float(closed_loop(self._calls[batch], streams=1, seconds=0).latencies[0])

    def peak_memory(self) -> int:
        """MiB of the process at its highest."""
        return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def torch_call(checkpoint: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """The network in eager torch, float32, on preprocessed crops."""
    import torch

    from dpm_edge.model.checkpoint import load

    torch.set_num_threads(threads)
    net = load(checkpoint)

    def call(inputs: np.ndarray) -> None:
        with torch.inference_mode():
            net(torch.from_numpy(inputs))

    return call


def library_call(folder: Path, threads: int) -> Callable[[np.ndarray], Any]:
    """The engine's library alone, on preprocessed crops."""
    manifest = Manifest.read(folder)
    backend = open_backend(manifest, folder, "CPU", threads)

    def call(inputs: np.ndarray) -> None:
        out = np.empty((2, len(inputs), manifest.spec.dimension), np.float32)
        backend.run(len(inputs), lambda buffer: np.copyto(buffer, inputs), out[0], out[1])

    return call


def measure(
    rivals: dict[str, tuple[str, Path]], crops: list[np.ndarray], threads: int, rounds: int
) -> tuple[dict[tuple[str, int], list[float]], dict[str, int]]:
    """Seconds of every rival's calls by (rival, batch), taken in turns, and every process's peak memory in MiB."""
    taken: dict[tuple[str, int], list[float]] = {(name, batch): [] for batch in BATCHES for name in rivals}
    with ExitStack() as stack:
        processes = {
            name: stack.enter_context(WorkerProcess(Rival, kind, path, threads, crops, name=name))
            for name, (kind, path) in rivals.items()
        }
        for turn in track(range(rounds + WARM_UP), what="rounds"):
            for (name, batch), times in taken.items():
                seconds = processes[name].call("once", batch)
                if turn >= WARM_UP:
                    times.append(seconds)
        return taken, {name: process.call("peak_memory") for name, process in processes.items()}


def summary(times: list[float], batch: int) -> dict[str, float]:
    """Percentiles and the best in milliseconds, and crops per second at the median."""
    found = spread(times)
    per_second = round(1e3 * batch / found["p50_ms"], 2)
    return {**found, "best_ms": round(min(times) * 1e3, 3), "crops_per_second": per_second}


def int8_instructions() -> list[str]:
    """Those of the CPU's flags that multiply int8 in one instruction."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    return [flag for flag in INT8_INSTRUCTIONS if flag in text.split()]


def main() -> None:
    """Build the engines, measure, write the results; the last line of stdout is the JSON's `targets`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=Path, required=True, help="folder of real crops to calibrate and time on")
    parser.add_argument("--checkpoint", type=Path, help="a trained dpm-s; random weights without it")
    parser.add_argument("--labelled", type=Path, help="Market-1501 layout, for the mAP that INT8 loses")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()

    from dpm_edge.build import build
    from dpm_edge.build.export import export
    from dpm_edge.model.checkpoint import load

    crops = [read_image(path) for path in find_images(arguments.crops)[:8]]
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = arguments.checkpoint or random_checkpoint(Path(scratch) / "random")
        portable = Path(scratch) / "dpm-s.onnx"
        export(load(checkpoint), portable)
        rivals, accuracy = {"torch fp32": ("torch", checkpoint)}, {}
        for backend, precision in ENGINES:
            folder = Path(scratch) / f"{backend}-{precision}"
            manifest = build(
                portable,
                folder,
                backend=backend,
                precision=precision,
                calibrate=arguments.crops,
                labelled=arguments.labelled if precision == "int8" else None,
                force=True,
            )
            rivals[f"{backend} {precision}"] = ("call", folder)
            rivals[f"{backend} {precision}, embed"] = ("embed", folder)
            accuracy[f"{backend} {precision}"] = manifest.verification
        load_before = os.getloadavg()[0]
        taken, memory = measure(rivals, crops, arguments.threads, arguments.rounds)
    table = {name: {f"batch {batch}": summary(taken[name, batch], batch) for batch in BATCHES} for name in rivals}
    best = "openvino int8"
    ratio = np.median(taken["torch fp32", 1]) / np.median(taken[best, 1])
    share = 1 - np.median(taken[best, 8]) / np.median(taken[f"{best}, embed", 8])
    targets = {
        "int8_speedup_batch_1": {"wanted_at_least": WANTED_RATIO, "measured": round(float(ratio), 2)},
        "share_around_the_call_batch_8": {"wanted_below": WANTED_SHARE, "measured": round(float(share), 4)},
        "peak_memory_mib": {"wanted_below": 500, "measured": memory[f"{best}, embed"]},
        "map_points_lost": {"wanted_at_most": 0.5, "measured": accuracy[best].get("labelled", {}).get("map_lost")},
    }
    results = {
        "question": "dpm-s on a CPU: INT8 engine against eager torch fp32, same threads",
        "command": "python benchmarks/cpu_engines.py --crops DIR [--checkpoint FILE] [--labelled DIR]",
        "machine": machine_card(),
        "int8_instructions": int8_instructions(),
        "load_average_before": round(load_before, 2),
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "weights": "trained" if arguments.checkpoint else "random",
        "targets": targets,
        "milliseconds": table,
        "peak_memory_mib": memory,
        "accuracy": accuracy if arguments.checkpoint else None,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(targets))


def random_checkpoint(path: Path) -> Path:
    """dpm-s with random weights, seed 0."""
    import torch

    from dpm_edge.model import checkpoint
    from dpm_edge.model.network import DPM

    torch.manual_seed(0)
    return checkpoint.save(DPM(PRESETS["dpm-s"]), path)


if __name__ == "__main__":
    main()
