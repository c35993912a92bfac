"""Memory and time of grouping many crops, as each round of `dpm-edge adapt` does it: neighbours, distances, clusters.

    python benchmarks/adapt_memory.py [--crops N ...] [--dimensions D] [-o FILE]

Made-up features of CROPS_OF_ONE crops of each person around a direction of their own, so far apart that clusters are
found and crops are left over. Each size is measured in a process of its own; `peak MB` is that process's largest
resident memory less what it had before. Crops in memory come on top: their pixels, 3·H·W bytes each.
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
from sklearn.cluster import DBSCAN

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.train.adapt import clusters
from dpm_edge.train.adapt.rounds import Plan

RESULTS = Path(__file__).parent / "results" / "adapt-memory.json"
CROPS_OF_ONE, SPREAD = 25, 0.9


def peak() -> float:
    """Megabytes of resident memory that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def features(crops: int, dimensions: int) -> np.ndarray:
    """(N, D) float32, L2-normalised."""
    rng = np.random.default_rng(0)
    people = rng.standard_normal((-(-crops // CROPS_OF_ONE), dimensions), np.float32)
    made = np.repeat(people, CROPS_OF_ONE, axis=0)[:crops]
    made += SPREAD * rng.standard_normal(made.shape, np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def measure(crops: int, dimensions: int) -> dict[str, Any]:
    """Seconds and peak of each part."""
    plan, some = Plan(), features(crops, dimensions)
    before, found = peak(), {}

    def part(name: str, result: Any, began: float) -> Any:
        found[name] = {"seconds": round(time.perf_counter() - began, 1), "peak MB": round(peak() - before)}
        print(name, found[name], file=sys.stderr, flush=True)
        return result

    now = time.perf_counter
    began = now()
    ids, similarity = part("neighbours", clusters.nearest(some, plan.neighbours), began)
    began = now()
    weights = part(
        "reciprocal neighbours", clusters.reciprocal_weights(ids, similarity, some, plan.query_neighbours), began
    )
    began = now()
    distances = part("distances", clusters.jaccard_neighbours(weights, plan.eps), began)
    began = now()
    fit = DBSCAN(eps=plan.eps, min_samples=plan.least, metric="precomputed").fit(distances)
    labels = part("clusters", fit.labels_, began)
    return {
        "crops": crops, "features MB": round(some.nbytes / 2**20), "parts": found,
        "seconds": round(sum(one["seconds"] for one in found.values()), 1),
        "peak MB": max(one["peak MB"] for one in found.values()),
        "pairs of neighbours": int(distances.nnz), "clusters": int(labels.max()) + 1,
        "clustered": round(float((labels >= 0).mean()), 3),
    }  # fmt: skip


def main() -> None:
    """Measure each size, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, nargs="+", default=[12_500, 25_000, 50_000])
    parser.add_argument("--dimensions", type=int, default=192, help="192 of dpm-n")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    if said.here:
        print(json.dumps(measure(said.crops[0], said.dimensions)))
        return
    sizes = []
    for crops in said.crops:
        arguments = [sys.executable, __file__, "--here", "--crops", crops, "--dimensions", said.dimensions]
        done = subprocess.run([str(one) for one in arguments], stdout=subprocess.PIPE, check=True)
        sizes.append(json.loads(done.stdout))
    result = {
        "command": "python benchmarks/adapt_memory.py", "machine": machine_card(), "dimensions": said.dimensions,
        "crops of one person": CROPS_OF_ONE, "sizes": sizes,
    }  # fmt: skip
    write_whole(said.out, (json.dumps(result, indent=1) + "\n").encode())
    print(said.out.read_text())


if __name__ == "__main__":
    main()
