"""Closed-set engines from a gallery: whose names, whose prototypes, and what the engine says of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_engine

from dpm_edge import Engine, Gallery
from dpm_edge.build import build
from dpm_edge.build.closed_set import read_closed_set
from dpm_edge.errors import SpecError
from dpm_edge.manifest import Manifest, people, rebuild_advice


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_engine.write_portable(tmp_path / "model" / "tiny.onnx")


@pytest.fixture
def gallery(tmp_path: Path) -> Path:
    """Two people and one nobody: Ada of two pictures, Émile of one."""
    folder = tiny_engine.write_engine(tmp_path / "first")
    with Engine.load(folder) as engine, Gallery.for_engine(engine) as held:
        held.add(engine.embed(tiny_engine.people(4)), people=["Ada", "Émile", "Ada", ""])
        held.save(tmp_path / "people.safetensors")
    return tmp_path / "people.safetensors"


def test_one_prototype_a_person(gallery: Path) -> None:
    """Émile has one picture, so his prototype is its feature; who has no name has no prototype."""
    found = read_closed_set(gallery, tiny_engine.FINGERPRINT)
    assert found.names == ["Ada", "Émile"]
    feature, _ = tiny_engine.expected(tiny_engine.people(4))
    np.testing.assert_allclose(found.prototypes[1], feature[1], atol=1e-5)
    assert not np.allclose(found.prototypes[0], feature[0], atol=1e-3)


def test_a_gallery_of_another_model_or_of_nobody_is_refused(gallery: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"of model otherother.*got .* of model tinytiny.*Embed its pictures"):
        read_closed_set(gallery, "other" * 12)
    with Gallery(tiny_engine.FINGERPRINT, 24) as empty:
        empty.save(tmp_path / "empty.safetensors")
    with pytest.raises(SpecError, match="nobody has one"):
        read_closed_set(tmp_path / "empty.safetensors", tiny_engine.FINGERPRINT)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_closed_set_engine(backend: str, model: Path, gallery: Path, crops: Path, tmp_path: Path) -> None:
    """Its logits are the masked similarity, in float64 from the formula, to each prototype."""
    out = tmp_path / "engine"
    manifest = build(model, out, backend=backend, calibrate=crops, closed_set=gallery, progress=False)
    assert manifest.outputs == ("feature", "mask", "logits") and people(out) == ("Ada", "Émile")
    assert json.loads((out / "people.json").read_text()) == ["Ada", "Émile"] and "people.json" in manifest.files
    assert manifest == Manifest.read(out) and rebuild_advice(out).endswith(f"--closed-set {gallery}")
    pictures = tiny_engine.people(5, seed=8)
    with Engine.load(out) as engine:
        assert len(engine.embed(pictures)) == 5
        inputs = _preprocessed(pictures)
    (logits,) = _run(backend, out, inputs)
    feature, mask = tiny_engine.expected(pictures)
    targets = read_closed_set(gallery, tiny_engine.FINGERPRINT).prototypes.astype(np.float64)
    wanted = (feature * mask) @ targets.T / np.sqrt((mask**2) @ (targets**2).T)
    np.testing.assert_allclose(logits, wanted, atol=1e-4)


def _preprocessed(pictures: list[np.ndarray]) -> np.ndarray:
    from dpm_edge.images import preprocess

    return preprocess(pictures, tiny_engine.SPEC.preprocessing)


def _run(backend: str, folder: Path, inputs: np.ndarray) -> list[np.ndarray]:
    """The logits of an engine's file, by its own library."""
    if backend == "onnxruntime":
        import onnxruntime

        return onnxruntime.InferenceSession(folder / "engine.onnx").run(["logits"], {"images": inputs})
    import openvino

    compiled = openvino.Core().compile_model(folder / "engine.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return [compiled({"images": inputs})["logits"]]
