"""`dpm-edge export` on the command line: text, JSON, the trtexec line, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import tiny_engine
from click.testing import CliRunner, Result

from dpm_edge.cli.commands import main

TRTEXEC = "trtexec --onnx=engine.onnx --stronglyTyped --minShapes=images:1x3x64x64"


def run(*arguments: object) -> Result:
    """`dpm-edge export …`."""
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_triton_repo_prints_the_server_and_trtexec(tmp_path: Path) -> None:
    cpu = tiny_engine.write_engine(tmp_path / "cpu", "onnxruntime")
    plan = tiny_engine.write_engine(tmp_path / "plan", "tensorrt", device="Orin sm_87", trtexec=TRTEXEC)
    arguments = ("triton-repo", tmp_path / "models", "--engine", cpu, "--engine", plan)
    result = run(*arguments)
    assert result.exit_code == 0, result.output
    assert f"to check its speed: {TRTEXEC}" in result.output
    assert result.output.rstrip().endswith(f"tritonserver --model-repository {tmp_path / 'models'}")
    answer = json.loads(run(*arguments, "--json").output)
    names = [model["name"] for model in answer["models"]]
    assert names == ["tiny-onnxruntime-fp32", "tiny-tensorrt-fp32"]
    assert answer["models"][1]["trtexec"] == TRTEXEC and answer["models"][0]["inputs"] == ["crop"]
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == sorted(names)


def test_wait_and_threads_reach_the_configuration(tmp_path: Path) -> None:
    engine = tiny_engine.write_engine(tmp_path / "engine", "onnxruntime")
    result = run("triton-repo", tmp_path / "models", "--engine", engine, "--max-wait", 2.5, "--threads", 3)
    assert result.exit_code == 0, result.output
    text = (tmp_path / "models" / "tiny-onnxruntime-fp32" / "config.pbtxt").read_text()
    assert "max_queue_delay_microseconds: 2500" in text
    assert 'key: "threads"\n  value {\n    string_value: "3"' in text


def test_deepstream_refuses_in_one_line(tmp_path: Path) -> None:
    engine = tiny_engine.write_engine(tmp_path / "engine", "onnxruntime")  # its channels have three different std
    result = run("deepstream", tmp_path / "ds", "--engine", engine)
    assert result.exit_code == 1 and "one scale for all channels" in result.output
    assert "Traceback" not in result.output and not (tmp_path / "ds").exists()


def test_an_edited_engine_is_not_exported(tmp_path: Path) -> None:
    engine = tiny_engine.write_engine(tmp_path / "engine", "onnxruntime")
    (engine / "model.onnx").write_bytes(b"x")
    result = run("triton-repo", tmp_path / "models", "--engine", engine)
    assert result.exit_code == 1 and "sha256 differs" in result.output
