"""Engines that know people by themselves: logits against the metric in float64, names in their order."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gpu_machine
import numpy as np
import pytest
import tiny_engine

from dpm_edge import Engine
from dpm_edge.errors import EngineError
from dpm_edge.files import sha256
from dpm_edge.manifest import BatchRange, Manifest

NAMES = ["Ada", "Émile", "Bo"]
FRAME = np.random.default_rng(4).integers(0, 256, (90, 70, 3), np.uint8)
BOXES = [[3, 4, 40, 80], [9, 9, 9, 10], [30, 0, 70, 90]]


def prototypes() -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((3, 24))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def wanted(images: list[np.ndarray]) -> np.ndarray:
    feature, mask = tiny_engine.expected(images)
    return ((feature * mask) @ prototypes().T) / np.sqrt((mask * mask) @ (prototypes() ** 2).T)


@pytest.fixture(params=["onnxruntime", "openvino", "gpu"])
def engine_of_three(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine of each kind whose closed set are three people."""
    more = {"outputs": ("feature", "mask", "logits")}
    if request.param == "gpu":
        machine = gpu_machine.make(tmp_path, monkeypatch)
        machine.trt.prototypes = prototypes()
        folder = machine.engine(**more)
    else:
        import onnx

        from dpm_edge.build.closed_set import closed_set

        folder = tiny_engine.write_engine(tmp_path / "engine", request.param, **more)
        graph = closed_set(onnx.load(folder / "model.onnx"), prototypes(), native=True)
        onnx.save(graph, folder / "model.onnx")
        if request.param == "openvino":
            import openvino

            made = openvino.convert_model(folder / "model.onnx")
            openvino.save_model(made, folder / "engine.xml", compress_to_fp16=False)
    (folder / "people.json").write_text(json.dumps(NAMES))
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"}
    dataclasses.replace(Manifest.read(folder), files=files).write(folder)
    return Engine.load(folder, trusted=True)


@pytest.mark.parametrize("count", [0, 1, 9])
def test_logits_are_the_masked_metric_with_each_prototype(engine_of_three: Engine, count: int) -> None:
    images = tiny_engine.people(count)
    with engine_of_three as engine:
        got = engine.identify(images)
        assert len(engine.embed(images)) == count
    assert got.people == tuple(NAMES) and got.rows.tolist() == list(range(count))
    np.testing.assert_allclose(got.logits, wanted(images) if count else np.zeros((0, 3)), atol=3e-3)
    assert got.best == [NAMES[i] for i in got.logits.argmax(1)]


def test_boxes_are_identified_as_their_crops(engine_of_three: Engine) -> None:
    with engine_of_three as engine:
        got = engine.identify(FRAME, BOXES)
    np.testing.assert_allclose(got.logits, wanted([FRAME[4:80, 3:40], FRAME[0:90, 30:70]]), atol=3e-3)
    assert got.rows.tolist() == [0, 2] and [row for row, _ in got.skipped] == [1]


def test_few_crops_are_padded_to_the_low_end(tmp_path: Path) -> None:
    import onnx

    from dpm_edge.build.closed_set import closed_set

    low = BatchRange(low=4, best=4, high=4)
    folder = tiny_engine.write_engine(tmp_path / "engine", batch=low, outputs=("feature", "mask", "logits"))
    onnx.save(closed_set(onnx.load(folder / "model.onnx"), prototypes(), native=True), folder / "model.onnx")
    (folder / "people.json").write_text(json.dumps(NAMES))
    files = {p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != "manifest.json"}
    dataclasses.replace(Manifest.read(folder), files=files).write(folder)
    with Engine.load(folder) as engine:
        images = tiny_engine.people(6)
        np.testing.assert_allclose(engine.identify(images).logits, wanted(images), atol=3e-3)


def test_an_engine_without_a_closed_set_says_so(engine: Engine) -> None:
    with pytest.raises(EngineError, match="--closed-set GALLERY"):
        engine.identify(tiny_engine.people(1))
