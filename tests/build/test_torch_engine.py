"""Engines of backend torch: a copy of the checkpoint, verified like every other."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpm_edge import Engine
from dpm_edge.build import build
from dpm_edge.errors import SpecError
from dpm_edge.manifest import Manifest
from dpm_edge.model import checkpoint


def test_a_checkpoint_becomes_an_engine(checkpoint_path: Path, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    manifest = build(checkpoint_path, out, backend="torch", calibrate=crops, batch="1:2:4", progress=False)
    assert manifest == Manifest.read(out) and manifest.engine == "model.safetensors" and manifest.gpu is None
    assert set(manifest.files) == {"golden.npz", "model.json", "model.onnx", "model.safetensors"}
    assert manifest.verification["passed"] and manifest.verification["cosine_mean"] > 0.99999
    assert checkpoint.fingerprint(checkpoint.load(out / "model")) == manifest.fingerprint
    Engine.load(out, device="CPU").close()
    again = build(out / "model.safetensors", out, backend="torch", calibrate=crops, progress=False)
    assert again.fingerprint == manifest.fingerprint, "it can be rebuilt from its own directory"


def test_an_onnx_is_no_checkpoint(portable_path: Path, crops: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"expected a checkpoint for the torch backend, got .*tiny\.onnx"):
        build(portable_path, tmp_path / "engine", backend="torch", calibrate=crops, progress=False)
    assert not any(tmp_path.iterdir())
