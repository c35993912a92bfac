"""Engines of a network with a convolutional stem and a map of what is seen, against the network in torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_network import network

from dpm_edge import Embeddings, Engine
from dpm_edge.build import AccuracyBudget, build
from dpm_edge.build.low_precision import assemble
from dpm_edge.build.portable import read
from dpm_edge.images import find_images, preprocess, read_image
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM


@pytest.fixture(scope="module")
def seeing() -> DPM:
    net = network(stem="lite0", visibility="map", joint_dim=0)
    assert net.backbone.visibility is not None
    with torch.no_grad():
        net.backbone.visibility.out.weight.normal_(std=0.5)
        for module in net.backbone.conv1.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.uniform_(0.8, 1.2)
                module.bias.uniform_(-0.2, 0.2)
    return net


@pytest.fixture(scope="module")
def stored(seeing: DPM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(seeing, tmp_path_factory.mktemp("seeing") / "net")


def made(stored: Path, crops: Path, out: Path, **arguments) -> Engine:
    budget = AccuracyBudget(cosine=0.9, map_points=100.0)
    build(stored, out, progress=False, calibrate=crops, batch="1:2:4", budget=budget, **arguments)
    return Engine.load(out)


def wanted(net: DPM, paths: list[Path]) -> tuple[np.ndarray, ...]:
    inputs = torch.from_numpy(preprocess([read_image(p) for p in paths], net.spec.preprocessing))
    with torch.no_grad():
        return tuple(one.numpy() for one in net(inputs))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_cpu_engines_hand_on_the_map(backend: str, seeing: DPM, stored: Path, crops: Path, tmp_path: Path) -> None:
    paths = find_images(crops)[:5]
    feature, mask, seen = wanted(seeing, paths)
    with made(stored, crops, tmp_path / "engine", backend=backend, precision="fp32") as engine:
        assert engine.manifest.outputs == ("feature", "mask", "visibility")
        got = engine.embed([read_image(p) for p in paths])
    np.testing.assert_allclose(got.features, feature, atol=1e-4)
    np.testing.assert_allclose(got.masks, mask, atol=1e-4)
    np.testing.assert_allclose(got.visibility_map, seen[:, 0], atol=1e-4)
    shown, hidden = seen[:, 0].sum((1, 2)), seen[:, 1].sum((1, 2))
    np.testing.assert_allclose(got.visibility, shown / (shown + hidden), atol=1e-4)


def test_int8_keeps_features_and_map(seeing: DPM, stored: Path, crops: Path, tmp_path: Path) -> None:
    paths = find_images(crops)[:5]
    feature, _, seen = wanted(seeing, paths)
    with made(stored, crops, tmp_path / "engine", backend="openvino", precision="int8") as engine:
        got = engine.embed([read_image(p) for p in paths])
    assert (got.features * feature).sum(1).min() > 0.9
    assert got.visibility_map is not None and np.abs(got.visibility_map - seen[:, 0]).mean() < 0.1


def test_torch_engine_has_the_features_and_the_old_visibility(
    seeing: DPM, stored: Path, crops: Path, tmp_path: Path
) -> None:
    paths = find_images(crops)[:3]
    feature, mask, _ = wanted(seeing, paths)
    with made(stored, crops, tmp_path / "engine", backend="torch", precision="fp32") as engine:
        got = engine.embed([read_image(p) for p in paths])
    np.testing.assert_allclose(got.features, feature, atol=1e-4)
    np.testing.assert_allclose(got.visibility, mask.mean(1) / seeing.spec.mask_mean, atol=1e-4)
    assert got.visibility_map is None


def test_graph_for_tensorrt_has_no_map(seeing: DPM, stored: Path, tmp_path: Path) -> None:
    from dpm_edge.build.export import export

    export(seeing, tmp_path / "model.onnx")
    portable = read(tmp_path / "model.onnx")
    model, _ = assemble(
        portable.model, portable.spec, "tensorrt", "fp32", [], people=None, mask_head="native", quiet=True
    )
    assert [o.name for o in model.graph.output] == ["feature", "mask"]


def test_maps_follow_their_rows() -> None:
    rows = np.eye(3, 4, dtype=np.float32)
    maps = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 12
    found = Embeddings(
        features=rows, masks=rows, visibility=np.ones(3), rows=np.arange(3), fingerprint="f", visibility_map=maps
    )
    np.testing.assert_array_equal(found.take([2, 0]).visibility_map, maps[[2, 0]])
    np.testing.assert_array_equal(found.each()[1].visibility_map, maps[1:2])
    np.testing.assert_array_equal(Embeddings.join([found, found.take([1])]).visibility_map, maps[[0, 1, 2, 1]])
    assert Embeddings.join([found, replace(found, visibility_map=None)]).visibility_map is None
