"""docs/integrations.md: its commands work in order, and each of its examples runs against the real library."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import tiny_engine
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper

from dpm_edge.cli.commands import main
from dpm_edge.manifest import Manifest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
COMMON, *EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SECTIONS = re.findall(r"\n##+ ([^\n]+)\n", PAGE.partition(COMMON)[2])
NOT_HERE = {"ultralytics": "ultralytics (AGPL) and a YOLO file to download are a user's own choice"}
"""Libraries whose example cannot run in a test, and why."""


def osnet_like(path: Path) -> Path:
    """A file whose input is as torchreid's: 256×128, batch fixed at 1."""
    weights = np.random.default_rng(0).standard_normal((96, 24)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["images"], ["pooled"], kernel_shape=[32, 32], strides=[32, 32]),
        helper.make_node("Reshape", ["pooled", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "P"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "osnet",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 256, 128])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 24])],
        [numpy_helper.from_array(weights, "P"), numpy_helper.from_array(np.array([1, 96]), "shape")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=7), path)
    return path


def people(folder: Path, pattern: str, cameras: int) -> None:
    """Six people, seen by some cameras."""
    rng = np.random.default_rng(2)
    for person, picture in enumerate(tiny_engine.people(6, seed=7), start=1):
        for camera in range(1, cameras + 1):
            path = folder / pattern.format(person=person, camera=camera)
            path.parent.mkdir(parents=True, exist_ok=True)
            noise = rng.integers(-9, 10, picture.shape)
            cv2.imwrite(str(path), np.clip(picture + noise, 0, 255).astype(np.uint8))


def test_three_commands_lead_from_a_file_to_a_verified_engine_a_gallery_and_a_threshold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")
    monkeypatch.chdir(tmp_path)
    osnet_like(tmp_path / "osnet_x0_25_msmt17.onnx")
    people(tmp_path / "people", "{person:04}/gate-{camera}/a.png", 2)
    people(tmp_path / "labelled" / "query", "{person:04}_c1s1_000001_00.png", 1)
    people(tmp_path / "labelled" / "bounding_box_test", "{person:04}_c{camera}s1_000001_00.png", 4)
    block = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)[0]
    commands = [shlex.split(line)[1:] for line in block.splitlines()]
    assert [command[0] for command in commands] == ["build", "gallery", "calibrate"]
    runner = CliRunner()
    for command in commands:
        result = runner.invoke(main, ["0.1" if word == "0.01" else word for word in command])  # pairs are few here
        assert result.exit_code == 0, result.output
    manifest = Manifest.read(tmp_path / "engine")
    assert manifest.verification["passed"] and not manifest.spec.masks
    shown = re.findall(r"`dpm-edge (who [^`]+)`", PAGE)[0].replace("\n", " ")
    arguments = shlex.split(shown)
    arguments[arguments.index("door.jpg")] = "labelled/query/0003_c1s1_000001_00.png"
    result = runner.invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "  0003  " in result.output.splitlines()[0] and "same" in result.output


def test_an_onnx_becomes_a_checkpoint_as_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    from dpm_edge.train import mask_command

    monkeypatch.chdir(tmp_path)
    osnet_like(tmp_path / "osnet_x0_25_msmt17.onnx")
    block, with_masks = [text for text in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if "import onnx" in text]
    commands, masked = ([shlex.split(line)[1:] for line in one.splitlines()] for one in (block, with_masks))
    assert [command[0] for command in commands] == ["import", "adapt", "build"]
    assert masked[0] == commands[0] and masked[1][:2] == ["train", "mask"]
    options = mask_command.parser().parse_args(masked[1][2:])
    assert str(options.checkpoint) == "osnet.safetensors" and masked[2][1] == f"{options.out}/model.safetensors"
    for command in (commands[0], ["build", "osnet.safetensors", "-o", "engine", "--backend", "onnxruntime"]):
        result = CliRunner().invoke(main, command)
        assert result.exit_code == 0, result.output
    assert Manifest.read(tmp_path / "engine").spec.weights.recipe == "osnet_x0_25_msmt17.onnx, imported as an ONNX"


@pytest.mark.parametrize("example", EXAMPLES, ids=SECTIONS[: len(EXAMPLES)])
def test_an_example_runs(example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for node in ast.walk(ast.parse(example)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        for name in (one.split(".")[0] for one in names):
            if name in NOT_HERE:
                pytest.skip(NOT_HERE[name])
            try:
                importlib.import_module(name)
            except ImportError:
                pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    tiny_engine.write_engine(tmp_path / "engine")
    rng = np.random.default_rng(0)
    cv2.imwrite("frame.jpg", rng.integers(0, 256, (14, 20, 3), np.uint8).repeat(10, axis=0).repeat(10, axis=1))
    names: dict[str, object] = {}
    try:
        exec(compile(COMMON + example, "docs/integrations.md", "exec"), names)
    finally:
        names["engine"].close()  # type: ignore[attr-defined]


def test_every_adapter_has_an_example_of_some_ten_lines() -> None:
    shown = {name.split()[0] for name in SECTIONS}
    assert {"supervision", "trackers", "deep-sort-realtime", "BoxMOT", "ultralytics", "norfair"} <= shown
    assert len(EXAMPLES) == 7
    assert all(len([line for line in one.splitlines() if line.strip()]) <= 16 for one in EXAMPLES)
