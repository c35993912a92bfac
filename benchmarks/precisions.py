"""What each number type of a TensorRT engine costs in accuracy, and what each float32 island is worth.

    python benchmarks/precisions.py --labelled dpm_edge/assets/samples --calibrate CROPS [--model MODEL …]

writes benchmarks/results/precisions.json. MODEL is a portable ONNX or a checkpoint; the shipped dpm-t unless named.
Every graph is emulated on the CPU: each operator computes in float32 and its result is rounded to the type that the
graph gives it, as a GPU rounds the float32 sums of its matrix units. float8 and int8 are ONNX Runtime's own Q/DQ.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from dpm_edge.build import portable, verify
from dpm_edge.build.low_precision import PRODUCTS, islands, lower, norms, residual_sums, tails
from dpm_edge.build.quantise import OUTLIER_CROPS, peaked, quantise
from dpm_edge.env import machine_card
from dpm_edge.images import find_images, preprocess, read_image
from dpm_edge.market import LabelledFolder, query_and_gallery
from dpm_edge.progress import say, track
from dpm_edge.telemetry import import_onnxruntime

ROOT = Path(__file__).resolve().parents[1]
WHOLE = ("fp16", "bf16", "int8, rest fp16", "fp8, rest fp16")
"""What `dpm-edge build` makes: compared on the whole labelled folder, with mAP. The other choices on a part of it."""
PART = 64
RESULTS = Path(__file__).parent / "results" / "precisions.json"
LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def emulated(model: ModelProto) -> ModelProto:
    """A graph with float16 or bfloat16 regions as a float32 graph that rounds where those would."""
    typed = onnx.shape_inference.infer_shapes(model).graph
    types = {v.name: v.type.tensor_type.elem_type for v in [*typed.value_info, *typed.output]}
    made = ModelProto()
    made.CopyFrom(model)
    for tensor in made.graph.initializer:
        if tensor.data_type in LOW:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    nodes = []
    for node in made.graph.node:
        low = [name for name in node.output if types.get(name) in LOW]
        if node.op_type == "Cast" and low:
            nodes += _rounding(node.input[0], low[0], types[low[0]])
            continue
        for place, name in enumerate(node.output):
            node.output[place] = f"{name}.exact" if name in low else name
        nodes.append(node)
        for name in low:
            nodes += _rounding(f"{name}.exact", name, types[name])
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    return made


def _rounding(name: str, out: str, kind: int) -> list[onnx.NodeProto]:
    middle = f"{out}.low"
    return [
        onnx.helper.make_node("Cast", [name], [middle], name=f"{out}.round", to=kind),
        onnx.helper.make_node("Cast", [middle], [out], name=f"{out}.widen", to=TensorProto.FLOAT),
    ]


def choices(model: ModelProto, calibration: list[Path], pre: Any) -> Iterator[tuple[str, ModelProto]]:
    """Each graph that is compared, by name."""
    everything = {n.name for n in model.graph.node}
    products = {n.name for n in model.graph.node if n.op_type in PRODUCTS}
    kept = islands(model)
    for precision in ("fp16", "bf16"):
        yield f"{precision}", lower(model, precision)
        yield f"{precision}, products only", lower(model, precision, everything - products)
        yield f"{precision}, without islands", lower(model, precision, tails(model))
        yield f"{precision}, residual stream low", lower(model, precision, kept - residual_sums(model))
        yield f"{precision}, LayerNorm and softmax low", lower(model, precision, kept - norms(model))
    outliers = peaked(model, preprocess([read_image(p) for p in calibration[:OUTLIER_CROPS]], pre))
    for kind in ("int8", "fp8"):
        for name, keep in ((kind, outliers), (f"{kind}, outliers quantised too", [])):
            crops = (preprocess([read_image(p)], pre) for p in track(calibration, what=name))
            yield f"{name}, rest fp16", lower(quantise(model, crops, keep, kind), "fp16")


def forward(model: ModelProto, threads: int) -> verify.Forward:
    """The graph in ONNX Runtime with its optimiser off, which would remove the roundings."""
    onnxruntime = import_onnxruntime("this benchmark")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)

    def run(images: np.ndarray) -> verify.Outputs:
        feature, mask = session.run(["feature", "mask"], {"images": images})
        return feature, mask

    return run


def measured(model: Path, labelled: Path, calibrate: Path, crops: int, threads: int) -> dict[str, Any]:
    """Cosines, mask errors and mAP of every choice for one model."""
    source = portable.read(model)
    pre, paths = source.spec.preprocessing, find_images(calibrate)
    draw = np.random.default_rng(0)
    calibration = [paths[i] for i in draw.permutation(len(paths))[:crops]]
    query, gallery = query_and_gallery(labelled)
    pictures = query.paths + gallery.paths
    exact = verify.run_reference(
        verify.Reference("fp32", forward(source.model, threads)), pictures, pre, what="fp32", quiet=False
    )
    found: dict[str, Any] = {"fp32": {"pictures": len(pictures), "map": _map(exact, query, gallery)}}
    for name, graph in choices(source.model, calibration, pre):
        say(f"{model.stem}: {name}")
        reference = verify.Reference(name, forward(emulated(graph), threads))
        rows = np.arange(len(pictures)) if name in WHOLE else np.linspace(0, len(pictures) - 1, PART).astype(int)
        got = verify.run_reference(reference, [pictures[i] for i in rows], pre, what=name, quiet=False)
        found[name] = {
            "pictures": len(rows),
            **verify.compare(got, (exact[0][rows], exact[1][rows])),
            **({"map": _map(got, query, gallery)} if name in WHOLE else {}),
            "casts": sum(n.op_type == "Cast" for n in graph.graph.node),
            "quantised_products": sum(n.op_type == "QuantizeLinear" for n in graph.graph.node),
        }
    return {"calibration_crops": len(calibration), "choices": found}


def _map(outputs: verify.Outputs, query: LabelledFolder, gallery: LabelledFolder) -> float:
    """mAP in percent."""
    return round(verify.map_percent(outputs, query, gallery), 3)


def main() -> None:
    """Measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, action="append", help="portable ONNX or checkpoint; several may come")
    parser.add_argument("--labelled", type=Path, required=True, help="folder in Market-1501's layout")
    parser.add_argument("--calibrate", type=Path, required=True, help="folder of crops for int8 and fp8")
    parser.add_argument("--crops", type=int, default=500)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as ONNX Runtime likes")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    report: dict[str, Any] = {"command": "python benchmarks/precisions.py", "machine": machine_card(), "models": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for model in asked.model or [ROOT / "dpm_edge/assets/dpm-t.onnx"]:
            path = model
            if model.suffix != ".onnx":
                from dpm_edge.build.export import export
                from dpm_edge.model import checkpoint

                path = Path(scratch) / f"{model.stem}.onnx"
                export(checkpoint.load(model), path)
            report["models"][model.stem] = measured(path, asked.labelled, asked.calibrate, asked.crops, asked.threads)
            asked.out.write_text(json.dumps(report, indent=1) + "\n")
    print(asked.out.read_text())


if __name__ == "__main__":
    main()
