"""Refit: the same plan with other weights beside it, and every engine whose weights cannot be changed."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import fake_tensorrt
import numpy as np
import onnx
import pytest
import tiny_engine
from onnx import numpy_helper

from dpm_edge import gpu
from dpm_edge.build import PlanOptions, build, portable
from dpm_edge.build.refit import refit
from dpm_edge.build.trt import plan
from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.manifest import Manifest

ORIN = gpu.Gpu(name="Orin", compute_capability="8.7", memory=1, integrated=True, driver="12.6", cuda="12.6")
STRIPPED: dict[str, Any] = {"backend": "tensorrt", "precision": "fp16", "force": True, "progress": False}


def tiny(folder: Path, seed: int, **changes: Any) -> Path:
    """The hand-written tiny network as a portable ONNX."""
    graph = onnx.load(tiny_engine.write_onnx(folder / f"raw{seed}.onnx", seed))
    for number, node in enumerate(graph.graph.node):
        node.name = f"{node.op_type}.{number}"
    path = folder / f"model{seed}.onnx"
    portable.write(graph, path, tiny_engine.SPEC.replace(**changes), f"{seed}" * 64)
    return path


@pytest.fixture
def engine(tmp_path: Path, crops: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stripped plan by the fake TensorRT."""
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module())
    monkeypatch.setattr(plan, "probe", lambda: ORIN)
    options = PlanOptions(strip_weights=True)
    build(tiny(tmp_path, 0), tmp_path / "engine", calibrate=crops, plan=options, **STRIPPED)
    return tmp_path / "engine"


def test_the_plan_stays_and_the_weights_beside_it_are_the_new_models(engine: Path, tmp_path: Path, crops: Path) -> None:
    new = refit(engine, tiny(tmp_path, 1), tmp_path / "next", calibrate=crops, force=True, progress=False)
    old = Manifest.read(engine)
    assert new == Manifest.read(tmp_path / "next")
    assert new.files["engine.plan"] == old.files["engine.plan"] and new.gpu == old.gpu
    assert new.fingerprint == "1" * 64 != old.fingerprint
    graph = onnx.load(tmp_path / "next" / "engine.onnx").graph
    weights = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    project = tiny_engine.weights(1)[0].astype(np.float16)
    assert any(np.array_equal(project, value) for value in weights.values()), "the new weights, in the plan's precision"
    with np.load(tmp_path / "next" / "golden.npz") as golden:
        feature, _ = tiny_engine.expected([golden["crop"]], seed=1)
        np.testing.assert_allclose(golden["feature"], feature[0], atol=1e-5)


def test_an_engine_may_be_refitted_in_place(engine: Path, tmp_path: Path, crops: Path) -> None:
    refit(engine, tiny(tmp_path, 1), engine, calibrate=crops, force=True, progress=False)
    assert Manifest.read(engine).fingerprint == "1" * 64


def test_another_network_is_refused(engine: Path, tmp_path: Path, crops: Path) -> None:
    graph = onnx.load(tmp_path / "raw0.onnx")
    for number, node in enumerate(graph.graph.node):
        node.name = f"{node.op_type}.{number}"
    graph.graph.node[-1].op_type = "HardSigmoid"
    other = tmp_path / "other.onnx"
    portable.write(graph, other, tiny_engine.SPEC, "2" * 64)
    with pytest.raises(CheckpointError, match=r"another network in .*other.onnx.*dpm-edge build"):
        refit(engine, other, tmp_path / "next", calibrate=crops, progress=False)
    assert not (tmp_path / "next").exists()


def test_engines_whose_weights_cannot_change(engine: Path, tmp_path: Path, crops: Path) -> None:
    cpu = tmp_path / "cpu"
    build(tiny(tmp_path, 0), cpu, backend="onnxruntime", calibrate=crops, progress=False)
    with pytest.raises(SpecError, match=r"built with --strip-weights, got .*holds its weights"):
        refit(cpu, tiny(tmp_path, 1), tmp_path / "next", calibrate=crops, progress=False)
    options = PlanOptions(strip_weights=True)
    shutil.rmtree(engine)
    build(tiny(tmp_path, 0), engine, calibrate=crops, plan=options, **(STRIPPED | {"precision": "int8"}))
    with pytest.raises(
        SpecError, match=r"got int8 in .*its scales belong to its weights.*--precision int8.*--strip-weights"
    ):
        refit(engine, tiny(tmp_path, 1), tmp_path / "next", calibrate=crops, progress=False)
