"""What is built to be compared with: from which model, with which settings, and what is refused."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import pytest
import tiny_engine

from dpm_edge.bench import rivals
from dpm_edge.errors import SpecError
from dpm_edge.manifest import Manifest

SHIPPED = json.loads((Path(rivals.__file__).parents[1] / "assets" / "dpm-t.json").read_text())["fingerprint"]


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, Path, dict[str, Any]]]:
    """Calls of `build`, which writes nothing and says that it built the tiny network."""
    calls: list[tuple[Path, Path, dict[str, Any]]] = []

    def build(model: Path, out: Path, **settings: Any) -> types.SimpleNamespace:
        calls.append((model, out, settings))
        return types.SimpleNamespace(fingerprint=tiny_engine.FINGERPRINT)

    monkeypatch.setattr("dpm_edge.build.build", build)
    return calls


def test_rivals_are_fp32_of_the_engines_own_onnx_and_torch_of_the_checkpoint(
    tmp_path: Path, built: list[tuple[Path, Path, dict[str, Any]]]
) -> None:
    engine = tiny_engine.write_engine(tmp_path / "engine")
    entries = rivals.build_all(engine, ["openvino", "torch"], tmp_path / "c.safetensors", tmp_path / "s", quiet=True)
    assert [(entry.name, entry.folder.name) for entry in entries] == [
        ("openvino fp32", "openvino"),
        ("torch fp32", "torch"),
    ]
    assert [(model.name, settings["backend"]) for model, _, settings in built] == [
        ("model.onnx", "openvino"),
        ("c.safetensors", "torch"),
    ]
    for _, _, settings in built:
        assert settings["precision"] == "fp32" and settings["batch"] == Manifest.read(engine).batch
        assert "force" not in settings, "a rival is verified like any engine"


def test_checkpoint_of_another_model_is_refused(tmp_path: Path, built: list[tuple[Path, Path, dict[str, Any]]]) -> None:
    engine = tiny_engine.write_engine(tmp_path / "engine", fingerprint="other" * 12)
    with pytest.raises(SpecError, match="another model"):
        rivals.build_all(engine, ["torch"], tmp_path / "c.safetensors", tmp_path / "s", quiet=True)


def test_model_that_ships_brings_its_checkpoint(tmp_path: Path, built: list[tuple[Path, Path, dict[str, Any]]]) -> None:
    engine = tiny_engine.write_engine(tmp_path / "engine", fingerprint=SHIPPED)
    rivals.check(Manifest.read(engine), ["torch"], None)
    with pytest.raises(SpecError, match="another model"):
        rivals.build_all(engine, ["torch"], None, tmp_path / "s", quiet=True)
    assert built[0][0].name == "dpm-t.safetensors" and built[0][0].is_file()
