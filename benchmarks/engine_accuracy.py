"""Whether an engine finds the people that torch finds: `dpm-edge eval` of both, on the same labelled folders.

    python benchmarks/engine_accuracy.py --labelled dpm_edge/assets/samples [--labelled MARKET] [--precision int8 …]

writes benchmarks/results/engine-accuracy.json. MODEL is the shipped dpm-t unless --checkpoint names another. INT8 is
calibrated on the gallery of the first folder, or on --calibrate. A build over the budget is kept (--force), so that its
loss is reported. Speeds are medians of calls on one thread, the engines in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dpm_edge import Engine
from dpm_edge.env import machine_card
from dpm_edge.images import read_image
from dpm_edge.manifest import Manifest
from dpm_edge.market import query_and_gallery

ROOT = Path(__file__).resolve().parents[1]
BATCH, WARM_UP, TURNS = 8, 5, 60
RESULTS = Path(__file__).parent / "results" / "engine-accuracy.json"


def run(*arguments: str | Path) -> str:
    """A `dpm-edge` command's stdout."""
    command = [sys.executable, "-m", "dpm_edge.cli", *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def scores(model: Path, folder: Path) -> dict[str, Any]:
    """What `dpm-edge eval --json` says, by metric; names in the place of this machine's paths."""
    said = json.loads(run("eval", model, folder, "--metric", "all", "--json"))
    return {**said, "model": model.name, "data": folder.name}


def speeds(engines: dict[str, Path], pictures: list[Path]) -> dict[str, Any]:
    """Median milliseconds of `Engine.embed` by engine and number of crops, on one thread."""
    found: dict[str, dict[int, list[float]]] = {name: {1: [], BATCH: []} for name in engines}
    crops = [read_image(path) for path in pictures[:BATCH]]
    with ExitStack() as stack:
        opened = {name: stack.enter_context(Engine.load(folder, threads=1)) for name, folder in engines.items()}
        for turn in range(WARM_UP + TURNS):
            for name, engine in opened.items():
                for count, spent in found[name].items():
                    begin = time.perf_counter()
                    engine.embed(crops[:count])
                    if turn >= WARM_UP:
                        spent.append(1e3 * (time.perf_counter() - begin))
    return {
        name: {f"{count} crops, ms": round(statistics.median(spent), 3) for count, spent in each.items()}
        for name, each in found.items()
    }


def main() -> None:
    """Build, evaluate, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "dpm_edge/assets/dpm-t.safetensors")
    parser.add_argument("--labelled", type=Path, action="append", required=True)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--calibrate", type=Path, help="crops of other people than the labelled ones")
    parser.add_argument("--precision", nargs="*", default=["fp32", "int8"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    report: dict[str, Any] = {"command": "python benchmarks/engine_accuracy.py", "machine": machine_card()}
    report["checkpoint"] = asked.checkpoint.stem
    report["folders"] = {f.name: {"torch": scores(asked.checkpoint, f)} for f in asked.labelled}
    with tempfile.TemporaryDirectory() as where:
        for precision in asked.precision:
            engine = Path(where) / precision
            crops = asked.calibrate or asked.labelled[0] / "bounding_box_test"
            options = ["--backend", asked.backend, "--precision", precision, "--calibrate", crops, "--force"]
            run("build", asked.checkpoint, "-o", engine, *options)
            name = f"{asked.backend} {precision}"
            report.setdefault("verification", {})[name] = Manifest.read(engine).verification
            for folder in asked.labelled:
                report["folders"][folder.name][name] = scores(engine, folder)
            asked.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
        engines = {f"{asked.backend} {precision}": Path(where) / precision for precision in asked.precision}
        report["speed on one thread"] = speeds(engines, query_and_gallery(asked.labelled[0])[1].paths)
        asked.out.write_text(json.dumps(report, indent=1, default=str) + "\n")
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
