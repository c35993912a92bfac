"""Checkpoints of short runs side by side: whole and covered queries by share, both metrics, visibility, speed.

    python benchmarks/training/ladder.py --data market --covered covered.safetensors --out ladder.json NAME=CHECKPOINT …

Each checkpoint runs as OpenVINO float32 on one thread. NAME=FILE.onnx is a rival that takes torchreid's input (RGB,
256×128, ImageNet's mean and standard deviation) and gives a feature; "histogram" needs no file. The held-out queries of
DATA (Market-1501's layout) are covered as at the end of a training run; `visibility` is Spearman's rank correlation of
the engine's visibility with the share of the picture that was left uncovered.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from histogram import stripe_histograms

from dpm_edge.build import portable
from dpm_edge.build.export import export
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.images import _INTERPOLATION
from dpm_edge.layouts import read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.spec import Preprocessing
from dpm_edge.telemetry import import_openvino
from dpm_edge.train.data import Pictures, decode
from dpm_edge.train.evaluate import curves, occlusion_sets, rank_correlation

SHARES = (0.2, 0.4, 0.6)
SIZE = Preprocessing()
"""Queries are covered at this size, the same for every model, and then resized for each."""
BATCH = 16
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation, RGB in 0..1, of the networks that torchreid trains."""
HISTOGRAM = "histogram"


class Histogram:
    """Colours of six stripes (histogram.py), as a model of the ladder."""

    def run(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Features, masks of ones, no visibility."""
        features = stripe_histograms(pixels)
        return features, torch.ones_like(features), np.full(len(pixels), np.nan)

    def speed(self, seconds: float = 2.0) -> float:
        """Crops a second of CPU time."""
        pixels = torch.randint(0, 256, (BATCH, 3, SIZE.height, SIZE.width), dtype=torch.uint8)
        begin, calls = time.process_time(), 0
        while time.process_time() - begin < seconds:
            stripe_histograms(pixels)
            calls += 1
        return BATCH * calls / (time.process_time() - begin)


class Model:
    """A checkpoint in OpenVINO, float32, one thread."""

    def __init__(self, path: str) -> None:
        core = import_openvino("the ladder").Core()
        if path.endswith(".onnx"):
            self.pre = Preprocessing(mean=IMAGENET[0], std=IMAGENET[1])
            graph = core.read_model(path)
            graph.reshape([-1, 3, self.pre.height, self.pre.width])
        else:
            net = checkpoint.load(path)
            self.pre = net.spec.preprocessing
            with tempfile.TemporaryDirectory() as scratch:
                file = Path(scratch) / "model.onnx"
                export(net, file)
                graph = core.read_model(portable.read(file).model.SerializeToString())
        settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = core.compile_model(graph, "CPU", settings)
        self.names = [o.get_any_name() for o in self.compiled.outputs]
        self.request = self.compiled.create_infer_request()

    def inputs(self, pixels: torch.Tensor) -> np.ndarray:
        """(n, 3, H, W) uint8 RGB at SIZE → this model's input, float32."""
        pre = self.pre
        images = pixels.permute(0, 2, 3, 1).numpy()
        wanted = (pre.width, pre.height)
        small = np.stack([cv2.resize(one, wanted, interpolation=_INTERPOLATION[pre.interpolation]) for one in images])
        mean, std = np.asarray(pre.mean, np.float32), np.asarray(pre.std, np.float32)
        if pre.color == "bgr":
            small = small[..., ::-1]
        return np.ascontiguousarray(((small / np.float32(255) - mean) / std).transpose(0, 3, 1, 2), np.float32)

    def run(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Features and masks (n, D), visibility (n,) or NaN."""
        found: list[list[np.ndarray]] = []
        for part in pixels.split(BATCH):
            done = self.request.infer([self.inputs(part)])
            found.append([done[name].copy() for name in self.names])
        outputs = dict(zip(self.names, (np.concatenate(one) for one in zip(*found))))
        if "feature" not in outputs:  # a rival's: its only output
            outputs = {"feature": outputs[self.names[0]]}
            outputs["mask"] = np.ones_like(outputs["feature"])
        seen = outputs.get("visibility")
        visibility = np.full(len(pixels), np.nan)
        if seen is not None:
            shown, hidden = seen.sum((2, 3)).T
            visibility = shown / np.maximum(shown + hidden, 1e-6)
        return torch.from_numpy(outputs["feature"]), torch.from_numpy(outputs["mask"]), visibility

    def speed(self, seconds: float = 2.0) -> float:
        """Crops a second of CPU time, batch 16: other processes' time does not count."""
        pre = self.pre
        batch = np.random.default_rng(0).normal(size=(BATCH, 3, pre.height, pre.width)).astype(np.float32)
        self.request.infer([batch])
        begin, calls = time.process_time(), 0
        while time.process_time() - begin < seconds:
            self.request.infer([batch])
            calls += 1
        return BATCH * calls / (time.process_time() - begin)


def judge(
    model: Model | Histogram, query: Pictures, gallery: Pictures, sets: dict[tuple[str, float], Pictures]
) -> dict[str, Any]:
    """One row of the table."""
    g = model.run(gallery.pixels)
    asked = {("whole", 0.0): query, **sets}
    q = {key: model.run(pictures.pixels) for key, pictures in asked.items()}
    rows = curves(query, gallery, {key: one[:2] for key, one in q.items()}, g[:2])

    def mean(metric: str, share: float | None) -> float:
        values = [
            r["mAP"] for r in rows if r["metric"] == metric and (r["share"] == share or (share is None and r["share"]))
        ]
        return round(float(np.mean(values)), 2)

    left = np.concatenate([np.full(len(one[2]), 1 - key[1]) for key, one in q.items()])
    said = np.concatenate([one[2] for one in q.values()])
    row: dict[str, Any] = {
        metric: {"whole": mean(metric, 0.0), "covered": mean(metric, None), **{str(s): mean(metric, s) for s in SHARES}}
        for metric in ("plain", "masked")
    }
    row["rank1_whole"] = next(r["rank1"] for r in rows if r["metric"] == "plain" and r["share"] == 0.0)
    row["visibility"] = round(rank_correlation(said, left), 3) if np.isfinite(said).all() else None
    return row


def speeds(models: dict[str, Model | Histogram], rounds: int = 5) -> dict[str, float]:
    """Crops a second of each, its median over rounds in which all have their turn: the machine is the same for all."""
    found = [{name: model.speed() for name, model in models.items()} for _ in range(rounds)]
    return {name: round(float(np.median([one[name] for one in found])), 1) for name in models}


def main() -> int:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="Checkpoints of short runs side by side.")
    parser.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--covered", type=Path, required=True, help="file of the covered queries; made when missing")
    parser.add_argument("--out", type=Path, required=True, help="results; rows of the same name are replaced")
    parser.add_argument("--speed", action="store_true", help="measure speeds again; rows keep their scores")
    options = parser.parse_args()
    torch.set_num_threads(1)
    people = read_dataset(options.data, "market", train=True)
    query, gallery = (decode(part, SIZE, workers=1, quiet=True) for part in (people.query, people.gallery))
    assert people.train is not None, "the bodies that cover come from training people's pictures"
    sets = occlusion_sets(query, decode(people.train, SIZE, workers=1, quiet=True), SHARES, options.covered, workers=1)
    found = json.loads(options.out.read_text()) if options.out.is_file() else {"rows": {}}
    paths = {name: path for name, _, path in (word.partition("=") for word in options.checkpoints)}
    models = {name: Histogram() if name == HISTOGRAM else Model(path) for name, path in paths.items()}
    for name, model in models.items():
        path = paths[name]
        row = found["rows"][name] if options.speed else judge(model, query, gallery, sets)
        run = Path(path).parent / "results.json"
        if run.is_file():
            told = json.loads(run.read_text())
            row |= {k: told[k] for k in ("steps", "epochs", "pictures_per_second")}
            row["settings"] = told["config"]
        found["rows"][name] = row
        print(json.dumps({name: {k: v for k, v in row.items() if k != "settings"}}), file=sys.stderr, flush=True)
    for name, speed in speeds(models).items():
        found["rows"][name]["crops_per_cpu_second"] = speed
    found["machine"] = machine_card()
    found["queries"], found["gallery"] = len(query), len(gallery)
    write_whole(options.out, (json.dumps(found, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
