"""What a training step on a CPU costs when the C library keeps freed memory, and when it gives it back each time.

    python benchmarks/training/freed_memory.py [--steps N] [--rounds N] [--threads N] [-o FILE]

Steps of `dpm-edge adapt` on random pictures, a batch as Plan has it, of both models that ship; each case in processes
of its own, in turns, so that other work on the machine touches both alike. Medians of processor time, which other work
lengthens less than it does the clock; page faults are those that need no disk.
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

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole

RESULTS = Path(__file__).resolve().parents[1] / "results" / "freed-memory.json"
CASES, MODELS = ("given back", "kept"), ("dpm-n", "dpm-t")
WARM = 2


def steps(case: str, model: str, count: int, threads: int) -> dict[str, Any]:
    """Processor seconds and page faults of each step in this process."""
    import torch

    from dpm_edge.model import checkpoint
    from dpm_edge.train.adapt import rounds
    from dpm_edge.train.adapt.contrast import ClusterMemory
    from dpm_edge.train.adapt.crops import Crops
    from dpm_edge.train.allocator import keep_freed_memory
    from dpm_edge.train.data import Pictures

    if case == "kept" and not keep_freed_memory():
        raise SystemExit("expected glibc and no MALLOC_* settings in the environment")
    torch.set_num_threads(threads)
    plan = rounds.Plan()
    batch = plan.people * plan.pictures
    net = checkpoint.load(Path(model))
    pre, draw = net.spec.preprocessing, np.random.default_rng(0)
    pixels = torch.from_numpy(draw.integers(0, 256, (2 * batch, 3, pre.height, pre.width), dtype=np.uint8))
    number = torch.arange(2 * batch)
    crops = Crops(Pictures(pixels, number, number % 2, [str(i) for i in range(2 * batch)]), ["a", "b"], False)
    features = torch.nn.functional.normalize(torch.randn(2 * batch, net.spec.dimension), dim=1)
    clusters = number // plan.pictures
    memory = ClusterMemory(features, clusters, momentum=plan.momentum, temperature=plan.temperature)
    known = rounds.Round(clusters, features, torch.zeros(2, net.spec.dimension), None)
    state = rounds._start(net, plan)
    state.net.train()
    found = []
    for step in range(WARM + count):
        rows = torch.arange(batch) + batch * (step % 2)
        faults, spent = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.process_time()
        rounds._step(state, known.batch(crops, rows, plan, draw), memory, plan)
        usage = resource.getrusage(resource.RUSAGE_SELF)
        found.append((time.process_time() - spent, usage.ru_minflt - faults))
    return {"steps": found[WARM:], "peak MB": usage.ru_maxrss / 1024}


def in_a_process(case: str, model: str, count: int, threads: int) -> dict[str, Any]:
    """What `steps` gives in a process of its own."""
    arguments = ["--case", case, "--model", model, "--steps", str(count), "--threads", str(threads)]
    done = subprocess.run([sys.executable, __file__, *arguments], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def summary(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each case, and the ratio of their processor seconds."""
    found: dict[str, Any] = {}
    for case, some in runs.items():
        middle = np.median([step for one in some for step in one["steps"]], axis=0)
        found[case] = {
            "processor seconds a step": round(float(middle[0]), 3),
            "page faults a step": int(middle[1]),
            "peak MB": round(max(one["peak MB"] for one in some)),
        }
    kept, given = (found[case]["processor seconds a step"] for case in ("kept", "given back"))
    return {**found, "processor seconds, kept over given back": round(kept / given, 3)}


def main() -> None:
    """Run the cases in turns, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each case")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", action="append", help="one that ships, or a checkpoint; several may come")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    if said.case:
        print(json.dumps(steps(said.case, said.model[0], said.steps, said.threads)))
        return
    result: dict[str, Any] = {
        "command": "python benchmarks/training/freed_memory.py", "machine": machine_card(), "threads": said.threads,
    }  # fmt: skip
    for model in said.model or MODELS:
        runs: dict[str, list[dict[str, Any]]] = {case: [] for case in CASES}
        for _ in range(said.rounds):
            for case in CASES:
                runs[case].append(in_a_process(case, model, said.steps, said.threads))
        result[model] = {"steps of each case": said.steps * said.rounds, **summary(runs)}
    write_whole(said.out, (json.dumps(result, indent=1) + "\n").encode())
    print(said.out.read_text())


if __name__ == "__main__":
    main()
