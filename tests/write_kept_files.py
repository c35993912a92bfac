"""Files of this version, small, for later versions to open:  python tests/write_kept_files.py

Run once for a release, into tests/kept/VERSION; what is there already is never written again. FACTS in
tests/test_kept_files.py are what these files hold.
"""

from __future__ import annotations

import json
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import tiny_engine

import dpm_edge
from dpm_edge import Embeddings, Gallery
from dpm_edge.centring import CameraStatistics
from dpm_edge.gallery.calibration import calibrate
from dpm_edge.metrics import normalise

KEPT = Path(__file__).resolve().parent / "kept"
ROWS = 6
TIMES = 1_700_000_000.0


def embeddings() -> Embeddings:
    """Six rows of the tiny engine's model."""
    draw = np.random.default_rng(5)
    masks = draw.uniform(0.1, 0.9, (ROWS, tiny_engine.SPEC.width)).astype(np.float32)
    return Embeddings(
        features=normalise(draw.standard_normal(masks.shape)).astype(np.float32),
        masks=masks,
        visibility=masks.mean(1) / 0.5,
        rows=np.arange(ROWS),
        fingerprint=tiny_engine.FINGERPRINT,
        sources=[f"crop-{row}.jpg" for row in range(ROWS)],
    )


GRAPH = {
    "kind": "onnx",
    "opset": 18,
    "image": "images",
    "feature": "y",
    "nodes": [
        'c = Conv(images,w,) {"strides": [8, 8], "pads": [1, 1, 1, 1], "auto_pad": "NOTSET"}',
        "r = Relu(c) {}",
        "m = ReduceMean(r,axes) {}",
        "f = Reshape(m,flat) {}",
        'y = Gemm(f,p,b) {"transB": 1, "alpha": 0.5}',
    ],
    "trained": {"w": "6x3x3x3", "p": "8x6", "b": "8"},
    "fixed": {},
    "constants": {"axes": '["int64", [2], [2, 3]]', "flat": '["int64", [2], [-1, 6]]'},
}
"""A network that was imported from an ONNX, as its checkpoint says it."""
MAPPED = {
    **GRAPH,
    "trained": {"w": "16x3x3x3", "p": "8x16", "b": "8"},
    "constants": {"axes": '["int64", [2], [2, 3]]', "flat": '["int64", [2], [-1, 16]]'},
}
"""The same with channels enough for a feature map."""


def main() -> None:
    """Write every kind of file that is promised to open later."""
    from dpm_edge.model import checkpoint
    from dpm_edge.model.foreign_network import ForeignNetwork
    from dpm_edge.model.network import DPM
    from dpm_edge.spec import ModelSpec, Preprocessing, WeightsCard, foreign_spec
    from dpm_edge.train.foreign_mask import with_sight

    out = KEPT / dpm_edge.__version__
    if out.exists():
        sys.exit(f"{out} is there already")
    out.mkdir(parents=True)
    found = embeddings()
    tiny_engine.write_engine(out / "engine")
    tiny_engine.write_portable(out / "portable.onnx")
    found.save(out / "embeddings.safetensors")
    people, cameras = ["ann", "ann", "bob", "bob", "cy", None], ["door", "yard"] * 3
    times = [TIMES + row for row in range(ROWS)]
    with tempfile.TemporaryDirectory() as scratch:
        with Gallery.create(f"{scratch}/gallery", tiny_engine.FINGERPRINT, tiny_engine.SPEC.width) as kept:
            kept.add(found, people=people, cameras=cameras, timestamps=times)
            kept.export(out / "rows.parquet")
        with tarfile.open(out / "gallery.tar.xz", "w:xz") as packed:  # over 100 MB of zeros on disk
            packed.add(f"{scratch}/gallery", "gallery")
    memory = Gallery(tiny_engine.FINGERPRINT, tiny_engine.SPEC.width)
    memory.add(found, people=people, cameras=cameras, timestamps=times)
    memory.save(out / "gallery.safetensors")
    draw = np.random.default_rng(0)
    same = np.arange(1200) % 2 == 0
    pairs = np.where(same, 0.8, 0.3) + 0.05 * draw.standard_normal(1200)
    calibrate(
        pairs, same, draw.uniform(0.2, 1, 1200), fingerprint=tiny_engine.FINGERPRINT, false_match_rate=0.01, bands=2
    ).save(out / "calibration.json")
    statistics = CameraStatistics(fingerprint=tiny_engine.FINGERPRINT, dimension=tiny_engine.SPEC.width)
    statistics.add(found.features, cameras)
    statistics.save(out / "cameras.json")
    import torch

    torch.manual_seed(0)
    small = ModelSpec(
        name="small", width=16, heads=2, layers=1, mask_blocks=(1,), joint_dim=0, hmg="lite",
        preprocessing=Preprocessing(height=64, width=64),
    )  # fmt: skip
    checkpoint.save(DPM(small).eval(), out / "checkpoint")
    theirs = foreign_spec("transreid", 40, Preprocessing(height=32, width=32), WeightsCard(recipe="tests"))
    network = {"kind": "transreid", "width": 8, "heads": 1, "depth": 0, "stride": 16}
    checkpoint.save(ForeignNetwork(theirs, network).eval(), out / "imported")
    of_onnx = ForeignNetwork(foreign_spec("of-onnx", 8, Preprocessing(height=32, width=32), WeightsCard()), GRAPH)
    for parameter in of_onnx.parameters():
        torch.nn.init.normal_(parameter)
    checkpoint.save(of_onnx.eval(), out / "of-onnx")
    mapped = ForeignNetwork(foreign_spec("seeing", 8, Preprocessing(height=32, width=32), WeightsCard()), MAPPED)
    seeing = with_sight(mapped, gates=True, pool="seen")
    for parameter in seeing.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    checkpoint.save(seeing.eval(), out / "seeing")
    nets = {name: checkpoint.load_any(out / name) for name in ("checkpoint", "imported", "of-onnx", "seeing")}
    with torch.inference_mode():
        features = {
            name: [
                value
                for part in net(torch.ones(1, 3, net.spec.preprocessing.height, net.spec.preprocessing.width))
                for value in part.flatten()[:4].tolist()
            ]
            for name, net in nets.items()
        }
    (out / "first-features.json").write_text(json.dumps(features, indent=1) + "\n")


if __name__ == "__main__":
    main()
