"""The manifest: JSON there and back, edits shown, damage named."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import tiny_engine

from dpm_edge.errors import EngineError, SpecError
from dpm_edge.manifest import BatchRange, GpuCard, Manifest, people, rebuild_advice


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
        ({"format": 99}, None, "of format 1, got format 99"),
        ({"colour": 1}, None, "unknown field 'colour'"),
        ({}, "backend", "missing field backend"),
        ({}, "spec", "'spec'"),
        ({"backend": "tvm"}, None, "got 'tvm'"),
        ({"batch": {"low": 4, "best": 2, "high": 8}}, None, "that rise"),
    ],
)
def test_damage_is_named(folder: Path, change: dict, drop: str | None, names: str) -> None:
    edit(folder, change, drop)
    with pytest.raises(EngineError, match=names):
        Manifest.read(folder)


def sealed(folder: Path, **changes: Any) -> None:
    """A manifest that holds anything, with a seal that fits."""
    dataclasses.replace(Manifest.read(folder), **changes).write(folder)


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b", "manifest.json"])
def test_a_file_outside_the_folder_is_refused(folder: Path, name: str) -> None:
    sealed(folder, files={**Manifest.read(folder).files, name: "0" * 64})
    with pytest.raises(EngineError, match="plain files in the manifest's own folder"):
        Manifest.read(folder)


def test_an_engine_outside_the_folder_is_refused(folder: Path) -> None:
    sealed(folder, engine="../elsewhere.plan")
    with pytest.raises(EngineError, match=r"plain files.*elsewhere\.plan"):
        Manifest.read(folder)


def test_an_engine_that_was_not_hashed_is_refused_when_read(folder: Path) -> None:
    sealed(folder, files={k: v for k, v in Manifest.read(folder).files.items() if k != "model.onnx"})
    with pytest.raises(EngineError, match=r"sha256 of every file that is opened, got none of model\.onnx"):
        Manifest.read(folder)


def test_a_golden_crop_that_was_not_hashed_is_refused(folder: Path) -> None:
    sealed(folder, files={k: v for k, v in Manifest.read(folder).files.items() if k != "golden.npz"})
    with pytest.raises(EngineError, match=r"got none of golden\.npz"):
        Manifest.read(folder).check_files(folder)


def test_the_weights_beside_an_openvino_engine_must_be_hashed(tmp_path: Path) -> None:
    folder = tiny_engine.write_engine(tmp_path / "openvino", "openvino")
    sealed(folder, files={k: v for k, v in Manifest.read(folder).files.items() if k != "engine.bin"})
    with pytest.raises(EngineError, match=r"got none of engine\.bin"):
        Manifest.read(folder).check_files(folder)


def test_logits_of_a_torch_engine_are_refused(folder: Path) -> None:
    edit(folder, {"backend": "torch", "outputs": ["feature", "mask", "logits"]})
    with pytest.raises(EngineError, match="of backend torch, got logits too"):
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


def test_batch_ranges_of_several_profiles() -> None:
    ranges = BatchRange.parse_all("1:1:1, 2:8:64")
    assert ranges == (BatchRange(low=1, best=1, high=1), BatchRange(low=2, best=8, high=64))
    assert BatchRange.whole(ranges) == BatchRange(low=1, best=8, high=64)
    for text in ("1:1:1,", "1:1:1,3:8:64", "1:4:8,8:8:16", "2:8:64,1:1:1"):
        with pytest.raises(SpecError):
            BatchRange.parse_all(text)


GPU = GpuCard(
    name="Orin",
    compute_capability="8.7",
    tensorrt="10.3.0",
    driver="12.6",
    cuda="12.6",
    plugin="ab" * 32,
    timing_cache="orin",
    hardware_compatibility="ampere_plus",
    version_compatible=True,
    weights="stripped",
    layers={"fp16": 12},
)
PROFILES = BatchRange.parse_all("1:1:1,2:8:64")


def gpu_manifest(folder: Path) -> Manifest:
    return dataclasses.replace(
        Manifest.read(folder),
        backend="tensorrt",
        precision="int8",
        gpu=GPU,
        profiles=PROFILES,
        batch=BatchRange.whole(PROFILES),
        outputs=("feature", "mask", "logits"),
        files={**Manifest.read(folder).files, "engine.onnx": "0" * 64, "people.json": "0" * 64},
        options=("--opt-level", "4"),
        trtexec="trtexec --onnx=engine.onnx",
        resources={"seconds": 2.5},
    )


def test_the_gpu_side_goes_there_and_back(folder: Path) -> None:
    gpu_manifest(folder).write(folder)
    assert Manifest.read(folder) == gpu_manifest(folder)
    assert Manifest.read(folder).gpu == GPU


def test_a_manifest_without_the_gpu_side_is_read(folder: Path) -> None:
    """What was written before these fields existed: the seal is over what is there."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    del data["seal"]
    for name in ("profiles", "outputs", "gpu", "options", "trtexec", "resources"):
        del data[name]
    seal = hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**data, "seal": seal}))
    manifest = Manifest.read(folder)
    assert manifest.gpu is None and manifest.profiles == () and manifest.outputs == ("feature", "mask")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"gpu": {**dataclasses.asdict(GPU), "hardware_compatibility": "all"}}, "got 'all'"),
        ({"gpu": {**dataclasses.asdict(GPU), "weights": "half"}}, "got 'half'"),
        ({"gpu": {"name": "Orin"}}, "gpu: missing field"),
        ({"outputs": ["feature", "age"]}, "got 'age'"),
        ({"profiles": [{"low": 1, "best": 1, "high": 1}]}, "which covers the profiles"),
    ],
)
def test_a_wrong_gpu_side_is_named(folder: Path, change: dict, names: str) -> None:
    edit(folder, change)
    with pytest.raises(EngineError, match=names):
        Manifest.read(folder)


def test_the_rebuild_command_has_the_options_of_the_build(folder: Path) -> None:
    gpu_manifest(folder).write(folder)
    assert rebuild_advice(folder) == (
        f"Build it again: dpm-edge build {folder}/model.onnx -o {folder} --backend tensorrt --precision int8 "
        "--batch 1:1:1,2:8:64 --calibrate CROPS --opt-level 4"
    )
    edit(folder, {"precision": "\n", "batch": 3, "profiles": None})
    assert rebuild_advice(folder).endswith(f"-o {folder} --backend tensorrt --opt-level 4")
    (folder / "manifest.json").write_text("[")
    assert rebuild_advice(folder).endswith(f"-o {folder}")
    (folder / "manifest.json").write_text('{"backend": "torch", "precision": "fp16"}')
    assert rebuild_advice(folder).endswith(
        f"build {folder}/model.safetensors -o {folder} --backend torch --precision fp16"
    )


def test_people_are_a_list_of_names(folder: Path) -> None:
    (folder / "people.json").write_text('["Ada", "Émile"]')
    assert people(folder) == ("Ada", "Émile")
    for text in ("{}", "[1]", "["):
        (folder / "people.json").write_text(text)
        with pytest.raises(EngineError, match=r"people.json is missing or damaged.*dpm-edge build"):
            people(folder)


def test_unknown_precision_is_refused(folder: Path) -> None:
    with pytest.raises(SpecError, match="'int4'"):
        dataclasses.replace(Manifest.read(folder), precision="int4")
