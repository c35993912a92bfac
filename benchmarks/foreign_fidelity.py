"""Whether another project's network finds the same people through our engine as through plain ONNX Runtime or OpenVINO.

    python benchmarks/foreign_fidelity.py --labelled MARKET --model osnet.onnx=torchreid [--model 0288.xml=openvino]

writes benchmarks/results/foreign-fidelity.json. The other side is written here, without a line of the package: OpenCV
reads and resizes, numpy normalises, the file itself runs in ONNX Runtime or OpenVINO, cosine ranks. Times are
from decoded pictures to features, the best of several calls: the library called by hand and the engine in turn; `load`
is that of the machine before: above 1 somebody else computed, and times mean little. A build over the budget is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import machine_card
from dpm_edge.evaluation import market_scores
from dpm_edge.files import sha256
from dpm_edge.layouts import read_dataset
from dpm_edge.runtime import Engine
from dpm_edge.telemetry import import_onnxruntime, import_openvino

RESULTS = Path(__file__).parent / "results" / "foreign-fidelity.json"
MEAN, STD = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
BATCHES = (1, 8, 32)
TURNS, CALLS, PAUSE = 12, 5, 0.1
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def by_hand(pictures: list[NDArray[np.uint8]], family: str) -> NDArray[np.float32]:
    """Pictures as the family's own code makes them the input, (n, 3, 256, 128)."""
    return np.stack([_by_hand(picture, family) for picture in pictures])


def _by_hand(picture: NDArray[np.uint8], family: str) -> NDArray[np.float32]:
    small = cv2.resize(picture, (128, 256), interpolation=cv2.INTER_LINEAR)
    if family == "openvino":
        return small.transpose(2, 0, 1).astype(np.float32)
    assert family == "torchreid", f"nobody has written {family}'s preprocessing here yet"
    return ((small[:, :, ::-1].astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)


def plain(model: Path) -> tuple[str, Run]:
    """The file in its own library: its name and version, and what runs it, one picture at a time where it must be."""
    if model.suffix == ".xml":
        openvino = import_openvino("a rival")
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return f"openvino {openvino.__version__}", lambda x: np.concatenate([compiled(one[None])[0] for one in x])
    onnxruntime = import_onnxruntime("a rival")

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    name, free = session.get_inputs()[0].name, not isinstance(session.get_inputs()[0].shape[0], int)
    whole: Run = lambda x: session.run(None, {name: x})[0]
    single: Run = lambda x: np.concatenate([whole(one[None]) for one in x])
    return f"onnxruntime {onnxruntime.__version__}", whole if free else single


def scores(features: NDArray[np.float32], n: int, labels: tuple[NDArray, ...]) -> dict[str, Any]:
    """Rank-1 and mAP in percent by cosine, queries first."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = market_scores(unit[:n] @ unit[n:].T, *labels).as_dict()
    return {key: found[key] for key in ("rank1", "mAP", "queries")}


def best_ms(one: Callable[[], Any], other: Callable[[], Any]) -> tuple[float, float]:
    """The best of TURNS × CALLS calls of each, in turn; a pause lets the other's threads stop waiting for work."""
    best = [float("inf")] * 2
    for turn in range(2 * TURNS):
        time.sleep(PAUSE)
        for _ in range(CALLS):
            start = time.perf_counter()
            (one, other)[turn % 2]()
            best[turn % 2] = min(best[turn % 2], time.perf_counter() - start)
    return round(1000 * best[0], 3), round(1000 * best[1], 3)


def measure(model: Path, family: str, labelled: Path, precisions: list[str]) -> dict[str, Any]:
    """One network: plain, and through each engine."""
    people = read_dataset(labelled)
    paths, n = people.query.paths + people.gallery.paths, len(people.query.paths)
    labels = people.query.people, people.query.cameras, people.gallery.people, people.gallery.cameras
    library, run = plain(model)
    pictures = [cv2.imread(str(path)) for path in paths]
    parts = [run(by_hand(pictures[i : i + 8], family)) for i in range(0, len(pictures), 8)]
    features = np.concatenate(parts).reshape(len(pictures), -1)
    report: dict[str, Any] = {"family": family, "sha256": sha256(model), "plain": scores(features, n, labels)}
    report["plain"]["library"] = library
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    for precision in precisions:
        with tempfile.TemporaryDirectory() as where:
            crops = ["--calibrate", str(labelled / "bounding_box_train")] if precision == "int8" else []
            command = ["build", str(model), "--family", family, "-o", f"{where}/engine", "--precision", precision]
            subprocess.run(
                [sys.executable, "-m", "dpm_edge.cli", *command, *crops, "--quiet", "--force"],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            with Engine.load(f"{where}/engine") as engine:
                ours = np.concatenate([engine.embed(paths[i : i + 32]).features for i in range(0, len(paths), 32)])
                made: dict[str, Any] = scores(ours, n, labels)
                made["lost"] = {k: round(report["plain"][k] - made[k], 3) for k in ("rank1", "mAP")}
                made["kept_by_force"] = not engine.manifest.verification["passed"]
                made["cosine_min"] = round(float((ours * unit).sum(1).min()), 6)
                made["ms"], made["by hand, ms"] = {}, {}
                for b in BATCHES:
                    made["ms"][b], made["by hand, ms"][b] = best_ms(
                        lambda b=b: engine.embed(pictures[:b]), lambda b=b: run(by_hand(pictures[:b], family))
                    )
                report[f"{engine.manifest.backend} {precision}"] = made
    return report


def main() -> None:
    """Measure each, and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--labelled", type=Path, required=True)
    parser.add_argument("--model", action="append", required=True, metavar="FILE=FAMILY")
    parser.add_argument("--precision", nargs="*", default=["fp32", "int8"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    report: dict[str, Any] = {"command": "python benchmarks/foreign_fidelity.py", "machine": machine_card()}
    report |= {"labelled": given.labelled.name, "load": os.getloadavg()[0], "models": {}}
    for one in given.model:
        file, _, family = one.rpartition("=")
        report["models"][Path(file).name] = measure(Path(file), family, given.labelled, given.precision)
        given.out.write_text(json.dumps(report, indent=1) + "\n")
    print(given.out.read_text())


if __name__ == "__main__":
    main()
