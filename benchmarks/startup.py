"""How long starting takes, and how much memory an embedding process holds.

    python benchmarks/startup.py --engine ENGINE_DIR        writes benchmarks/results/startup.json, under a minute

Each start is a process of its own, timed from outside: the interpreter is in the figure, and stands beside it. The
engine (for the record: dpm-s, int8, OpenVINO) embeds 200 crops in a process that imports nothing but the runtime; its
memory is what the kernel says, at its highest and at the end.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from dpm_edge.env import machine_card
from dpm_edge.manifest import Manifest

RESULTS = Path(__file__).parent / "results" / "startup.json"
WANTED = {"import_s": 0.2, "help_s": 0.5, "resident_mb": 500}
RUNS = 15
EMBED = """
import resource, sys
import numpy as np
from dpm_edge import Engine
crops = list(np.random.default_rng(0).integers(0, 256, (8, 180, 80, 3), np.uint8))
with Engine.load(sys.argv[1], threads=2) as engine:
    for _ in range(20):
        engine.embed(crops)
    for crop in crops * 5:
        engine.embed([crop])
    pages = int(open("/proc/self/statm").read().split()[1])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6, pages * resource.getpagesize() / 1e6)
"""


def start_of(*arguments: str) -> dict[str, float]:
    """Seconds that a Python process takes from start to end: least and median."""
    took = []
    for _ in range(RUNS):
        start = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        took.append(time.perf_counter() - start)
    return {"least": round(min(took), 4), "median": round(statistics.median(took), 4)}


def memory_of(engine: Path) -> dict[str, object]:
    """Resident megabytes of a process that embeds with an engine."""
    done = subprocess.run([sys.executable, "-c", EMBED, str(engine)], check=True, capture_output=True, text=True)
    highest, end = (float(value) for value in done.stdout.split())
    manifest = Manifest.read(engine)
    return {
        "model": manifest.spec.name,
        "backend": manifest.backend,
        "precision": manifest.precision,
        "highest_mb": round(highest, 1),
        "at_the_end_mb": round(end, 1),
    }


def main() -> None:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", type=Path, required=True, help="an engine directory of dpm-s, int8, OpenVINO")
    engine = parser.parse_args().engine
    bare = start_of("-c", "pass")
    package, group = start_of("-c", "import dpm_edge"), start_of("-m", "dpm_edge.cli", "--help")
    runtime = start_of("-c", "import dpm_edge.runtime, dpm_edge.gallery")
    memory = memory_of(engine)
    report = {
        "command": "python benchmarks/startup.py --engine ENGINE_DIR",
        "machine": machine_card(),
        "seconds": {"python": bare, "import dpm_edge": package, "import runtime and gallery": runtime, "--help": group},
        "memory": memory,
        "wanted": WANTED,
        "met": {
            "import_s": package["median"] < WANTED["import_s"],
            "help_s": group["median"] < WANTED["help_s"],
            "resident_mb": float(str(memory["highest_mb"])) < WANTED["resident_mb"],
        },
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: report[key] for key in ("seconds", "memory", "met")}))


if __name__ == "__main__":
    main()
