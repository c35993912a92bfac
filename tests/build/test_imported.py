"""Engines of imported checkpoints: what they compute is what the network in torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_engine
import torch

from dpm_edge import Engine
from dpm_edge.build import build, portable
from dpm_edge.build.export import export
from dpm_edge.build.verify import onnx_reference
from dpm_edge.images import preprocess
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.spec import Preprocessing, WeightsCard, foreign_spec

PEOPLE = tiny_engine.people(5)
NETWORKS = {
    "osnet": (64, {"size": "x0_25", "instance_norm": True}, (64, 32)),
    "transreid": (320, {"width": 64, "heads": 2, "depth": 1, "stride": 12}, (64, 64)),
    "swin": (256, {"width": 32, "depths": [2, 2, 2, 2]}, (96, 64)),
    "resnet50": (2048, {"ibn": True, "non_local": True, "power": True}, (64, 32)),
}
"""Kind → dimension, arguments, input."""


def network(kind: str) -> ForeignNetwork:
    dimension, arguments, (height, width) = NETWORKS[kind]
    torch.manual_seed(0)
    card = WeightsCard(licence="MIT", recipe="tests")
    spec = foreign_spec(kind, dimension, Preprocessing(height=height, width=width), card)
    net = ForeignNetwork(spec, {"kind": kind, **arguments}).eval()
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.05, 0.1)
            elif name.endswith(("bias", "running_mean", "positional_embedding", "class_embedding")):
                tensor.uniform_(-0.2, 0.2)
            elif "non_local" in name and tensor.is_floating_point():
                tensor.mul_(0.01)
    return net


@torch.no_grad()
def in_torch(net: ForeignNetwork) -> np.ndarray:
    return net(torch.from_numpy(preprocess(PEOPLE, net.spec.preprocessing)))[0].numpy()


@pytest.mark.parametrize("kind", ["osnet", "transreid", "swin", pytest.param("resnet50", marks=pytest.mark.slow)])
def test_the_portable_graph_gives_the_features_of_torch_for_any_batch(kind: str, tmp_path: Path) -> None:
    net = network(kind)
    export(net, tmp_path / "net.onnx")
    read = portable.read(tmp_path / "net.onnx")
    assert not read.spec.masks and read.fingerprint == checkpoint.fingerprint(net)
    pixels = preprocess(PEOPLE, net.spec.preprocessing)
    reference = onnx_reference(read.model.SerializeToString())
    wanted = in_torch(net)
    for rows in (slice(0, 1), slice(0, 5)):
        feature, mask = reference.forward(pixels[rows])
        np.testing.assert_allclose(feature, wanted[rows], atol=1e-4)
        assert (mask == 1).all()
    assert np.ptp(wanted @ wanted.T) > 1e-4  # pictures differ


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_an_engine_of_an_imported_checkpoint_has_its_features_and_no_visibility(
    backend: str, crops: Path, tmp_path: Path
) -> None:
    net = network("osnet")
    path = checkpoint.save(net, tmp_path / "osnet")
    manifest = build(path, tmp_path / "engine", backend=backend, calibrate=crops, progress=False)
    assert manifest.fingerprint == checkpoint.fingerprint(net) and manifest.spec.weights.licence == "MIT"
    with Engine.load(tmp_path / "engine") as engine:
        got = engine.embed(PEOPLE)
    assert got.visibility is None
    assert np.sum(got.features * in_torch(net), axis=1).min() > 0.9999
