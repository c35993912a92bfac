"""The shipped model by its name: the file of the package, unless a file of the user's has that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpm_edge import shipped


@pytest.mark.parametrize("name", shipped.MODELS)
def test_every_name_has_its_files(name):
    for suffix in (".safetensors", ".json", ".onnx"):
        assert shipped.resolve(Path(name), suffix).is_file()


def test_a_users_file_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.resolve(Path("dpm-t"), ".onnx") == shipped.ASSETS / "dpm-t.onnx"
    (tmp_path / "dpm-t.safetensors").touch()
    assert shipped.resolve(Path("dpm-t"), ".onnx") == Path("dpm-t")
    for other in ("dpm-x", "models/dpm-t", "dpm-t.onnx"):
        assert shipped.resolve(Path(other), ".onnx") == Path(other)


@pytest.mark.parametrize("name", shipped.MODELS)
def test_both_readers_take_the_name(name, tmp_path, monkeypatch):
    """A checkpoint and its portable ONNX are the same weights."""
    checkpoint = pytest.importorskip("dpm_edge.model.checkpoint", reason="checkpoints need torch")
    from dpm_edge.build import source

    monkeypatch.chdir(tmp_path)
    net = checkpoint.load(name)
    read = source.read(Path(name), tmp_path / "model.onnx")
    assert read.fingerprint == checkpoint.fingerprint(net)
