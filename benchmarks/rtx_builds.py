"""Whether TensorRT parses and builds our networks, in every precision: TensorRT for RTX does both without a GPU.

    pip install tensorrt-rtx-cu13==1.7.1.116
    python benchmarks/rtx_builds.py [--model dpm-t …] [--precision fp16 …]

writes benchmarks/results/rtx-builds.json: seconds of the wall clock and of the processor, and the plan's size. Three
optimisation profiles each. dpm-t has its shipped weights, dpm-s and dpm-b random ones: layers and times are the same.
TensorRT for RTX is not TensorRT: it has its own kernels and its plans run on RTX GPUs alone. The parser, the network's
type rules and the builder's interface are what is checked.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from dpm_edge.build import portable
from dpm_edge.build.low_precision import lower
from dpm_edge.build.quantise import quantise
from dpm_edge.build.trt.options import PlanOptions
from dpm_edge.build.trt.plan import write_plan
from dpm_edge.env import machine_card
from dpm_edge.manifest import BatchRange
from dpm_edge.progress import track
from dpm_edge.spec import PRESETS

RESULTS = Path(__file__).parent / "results" / "rtx-builds.json"
SHIPPED = Path(__file__).resolve().parents[1] / "dpm_edge" / "assets" / "dpm-t.onnx"
PROFILES = tuple(BatchRange.parse(text) for text in ("1:1:1", "2:8:16", "17:32:64"))
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
LIMIT = 60.0
"""Seconds that a build may take."""


def network(name: str) -> ModelProto:
    """The float32 graph of a preset."""
    if name == "dpm-t":
        return portable.read(SHIPPED).model
    import torch

    from dpm_edge.build.export import to_onnx
    from dpm_edge.model.network import DPM

    torch.manual_seed(0)
    return to_onnx(DPM(PRESETS[name]))


def in_precision(model: ModelProto, name: str, precision: str) -> ModelProto:
    """The graph as `dpm-edge build --backend tensorrt` gives it to the parser; calibrated on two crops of noise."""
    pre = PRESETS[name].preprocessing
    if precision in ("int8", "fp8"):
        noise = np.random.default_rng(0).standard_normal((2, 3, pre.height, pre.width)).astype(np.float32)
        return lower(quantise(model, (crop[None] for crop in noise), kind=precision), "fp16")
    return model if precision == "fp32" else lower(model, precision)


def build(model: ModelProto, name: str, folder: Path) -> dict[str, Any]:
    """Build a plan below `folder`; what came out.

    Raises:
        EngineError: the parser or the builder refuses the network.
    """
    clock, processor = time.perf_counter(), time.process_time()
    plan = write_plan(
        model,
        folder,
        PRESETS[name].preprocessing,
        PROFILES,
        "tensorrt-rtx",
        PlanOptions(timing_cache=None),
        quiet=True,
    )
    return {
        "seconds": round(time.perf_counter() - clock, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "plan_bytes": (folder / plan.file).stat().st_size,
        "layers": plan.card.layers,
    }


def matrix(models: list[str], precisions: list[str], keep: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Every build of every model; `keep` is given all that is known after each."""
    found: dict[str, Any] = {}
    todo = [(name, precision) for name in models for precision in precisions]
    source: ModelProto | None = None
    for name, precision in track(todo, what="builds"):
        if name not in found:
            source = network(name)
        assert source is not None, "set with each model's first precision"
        with tempfile.TemporaryDirectory() as folder:
            found.setdefault(name, {})[precision] = build(in_precision(source, name, precision), name, Path(folder))
        keep(found)
    return found


def main() -> None:
    """Build, write, and fail where a build took too long."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", nargs="*", default=list(PRESETS), choices=list(PRESETS))
    parser.add_argument("--precision", nargs="*", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    report: dict[str, Any] = {"command": "python benchmarks/rtx_builds.py", "machine": machine_card()}
    report["profiles"] = [str(profile) for profile in PROFILES]

    def keep(found: dict[str, Any]) -> None:
        asked.out.write_text(json.dumps(report | {"builds": found}, indent=1) + "\n")

    found = matrix(asked.model, asked.precision, keep)
    print(asked.out.read_text())
    slow = [f"{m} {p}" for m, row in found.items() for p, built in row.items() if built["seconds"] > LIMIT]
    if slow:
        raise SystemExit(f"over {LIMIT:.0f} s: {', '.join(slow)}")


if __name__ == "__main__":
    main()
