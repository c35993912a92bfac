"""The manifest: JSON there and back, edits shown, damage named."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import tiny_engine

from dpm_edge.errors import EngineError, SpecError
from dpm_edge.manifest import BatchRange, Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_engine.write_engine(tmp_path / "engine")


def edit(folder: Path, change: dict, drop: str | None = None) -> None:
    """Change manifest.json as a person with an editor would."""
    path = folder / "manifest.json"
    data = {**json.loads(path.read_text()), **change}
    if drop:
        del data[drop]
    path.write_text(json.dumps(data))


def test_json_there_and_back(folder: Path) -> None:
    manifest = Manifest.read(folder)
    manifest.write(folder)
    assert Manifest.read(folder) == manifest and manifest.spec == tiny_engine.SPEC


def test_a_manifest_laid_out_anew_is_still_the_same(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    Manifest.read(folder)


@pytest.mark.parametrize("change", [{"precision": "int8"}, {"fingerprint": "x"}, {"device": "GPU"}, {"files": {}}])
def test_edits_are_shown(folder: Path, change: dict) -> None:
    edit(folder, change)
    with pytest.raises(EngineError, match=r"edited after the build.*dpm-edge build"):
        Manifest.read(folder)
    edit(folder, {}, drop="seal")
    with pytest.raises(EngineError, match="edited"):
        Manifest.read(folder)


@pytest.mark.parametrize(
    ("change", "drop", "names"),
    [
        ({"format": 99}, None, "format 99; 1 is read here"),
        ({"colour": 1}, None, "unknown field 'colour'"),
        ({}, "backend", "missing field backend"),
        ({}, "spec", "'spec'"),
        ({"backend": "tvm"}, None, "'tvm' is unknown"),
        ({"batch": {"low": 4, "best": 2, "high": 8}}, None, "must rise"),
    ],
)
def test_damage_is_named(folder: Path, change: dict, drop: str | None, names: str) -> None:
    edit(folder, change, drop)
    with pytest.raises(EngineError, match=names):
        Manifest.read(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x80\x04."])
def test_what_is_no_json_object_is_damage(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    with pytest.raises(EngineError, match="damaged"):
        Manifest.read(folder)


def test_batch_ranges() -> None:
    assert BatchRange.parse("8") == BatchRange(low=1, best=8, high=8)
    assert str(BatchRange.parse("1:8:64")) == "1:8:64"
    for text in ("", "a", "1:2", "-1", "8:1:64", "0:1:2", "1:8:64:128"):
        with pytest.raises(SpecError):
            BatchRange.parse(text)


def test_unknown_precision_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="'int4'"):
        dataclasses.replace(Manifest.read(folder), precision="int4")
