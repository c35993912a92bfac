"""How many crops int8 and fp8 should be calibrated on: time, and accuracy on crops that were not calibrated on.

    python benchmarks/calibration_crops.py --calibrate CROPS [--model MODEL] [--draws 3]

writes benchmarks/results/calibration_crops.json. MODEL is a portable ONNX or a checkpoint; the shipped dpm-t unless
named. Each number of crops is drawn several times: what differs between draws is what more crops would settle.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.build import source
from dpm_edge.build.quantise import OUTLIER_CROPS, peaked, quantise
from dpm_edge.build.source import VERIFICATION_CROPS
from dpm_edge.env import machine_card
from dpm_edge.images import find_images, preprocess, read_image
from dpm_edge.progress import say
from dpm_edge.telemetry import import_onnxruntime

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "calibration_crops.json"


def measure(read: source.Source, crops: list[NDArray[np.float32]], held_out: NDArray[np.float32], kind: str) -> dict:
    """Seconds of the calibration, and how near the features of crops that it has not seen are to float32's."""
    start, busy = time.perf_counter(), time.process_time()
    kept = peaked(read.model, np.concatenate(crops[:OUTLIER_CROPS])) if kind == "int8" else []
    model = quantise(read.model, iter(crops), kept, kind)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    onnxruntime = import_onnxruntime("this benchmark")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feature, mask = session.run(["feature", "mask"], {"images": held_out})
    wanted, wanted_mask = read.reference.forward(held_out)
    cosines = (feature * wanted).sum(axis=1)
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(busy, 2),
        "cosine_mean": round(float(cosines.mean()), 5),
        "cosine_min": round(float(cosines.min()), 5),
        "mask_mean_error": round(float(np.abs(mask - wanted_mask).mean()), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibrate", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=ROOT / "dpm_edge" / "assets" / "dpm-t.onnx")
    parser.add_argument("--counts", type=int, nargs="+", default=[16, 64, 128, 512])
    parser.add_argument("--kinds", nargs="+", default=["int8"])
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        read = source.read(arguments.model, Path(scratch) / "model.onnx")
    paths = find_images(arguments.calibrate)
    pre = read.spec.preprocessing
    rows = []
    for draw in range(arguments.draws):
        order = np.random.default_rng(draw).permutation(len(paths))
        chosen = order[: max(arguments.counts) + VERIFICATION_CROPS]
        pictures = [preprocess([read_image(paths[i])], pre) for i in chosen]
        held_out, pool = np.concatenate(pictures[:VERIFICATION_CROPS]), pictures[VERIFICATION_CROPS:]
        for kind in arguments.kinds:
            for count in arguments.counts:
                row = {"kind": kind, "crops": count, "draw": draw, **measure(read, pool[:count], held_out, kind)}
                say(str(row))
                rows.append(row)
    arguments.out.parent.mkdir(exist_ok=True)
    result = {"model": read.spec.name, "folder": arguments.calibrate.name, "rows": rows, "machine": machine_card()}
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
