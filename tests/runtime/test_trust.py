"""The trust file: who is in it, who writes it, and what happens to a plan that is not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_engine
from click.testing import CliRunner

from dpm_edge.cli import main
from dpm_edge.errors import EngineError
from dpm_edge.manifest import Manifest
from dpm_edge.runtime import trust


@pytest.fixture(autouse=True)
def trust_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "of the user" / "trusted.json"
    monkeypatch.setenv("DPM_EDGE_TRUST", str(path))
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """An engine directory whose manifest says TensorRT; its "plan" is the tiny ONNX."""
    folder = tiny_engine.write_engine(tmp_path / "engine")
    dataclasses.replace(Manifest.read(folder), backend="tensorrt", device="GPU").write(folder)
    return folder


def refused(folder: Path, trusted: bool = False) -> bool:
    try:
        trust.check(Manifest.read(folder), folder, trusted)
    except EngineError as error:
        assert f"dpm-edge trust {folder}" in str(error) and "trusted=True" in str(error)
        return True
    return False


def test_a_plan_is_trusted_by_its_bytes_until_it_is_removed(plan: Path, trust_file: Path) -> None:
    assert refused(plan) and not refused(plan, trusted=True)
    digest = hashlib.sha256((plan / "model.onnx").read_bytes()).hexdigest()
    assert trust.add(plan) == digest and trust.add(plan) == digest
    assert [one["sha256"] for one in json.loads(trust_file.read_text())["trusted"]] == [digest]
    assert not refused(plan)
    moved = plan.rename(plan.with_name("elsewhere"))
    assert not refused(moved)
    assert trust.remove(moved) and not trust.remove(moved)
    assert refused(moved)


def test_other_bytes_are_not_trusted(plan: Path) -> None:
    trust.add(plan)
    manifest = Manifest.read(plan)
    (plan / "model.onnx").write_bytes(b"another plan")
    files = {**manifest.files, "model.onnx": hashlib.sha256(b"another plan").hexdigest()}
    dataclasses.replace(manifest, files=files).write(plan)
    assert refused(plan)


def test_engines_that_are_data_need_no_trust(tmp_path: Path, trust_file: Path) -> None:
    assert not refused(tiny_engine.write_engine(tmp_path / "cpu"))
    assert not trust_file.exists()


def test_a_changed_plan_cannot_be_added(plan: Path, trust_file: Path) -> None:
    (plan / "model.onnx").write_bytes(b"swapped after the build")
    with pytest.raises(EngineError, match="sha256 differs"):
        trust.add(plan)
    assert trust.listed() == []


def test_a_trust_file_that_others_may_write_is_worth_nothing(plan: Path, trust_file: Path) -> None:
    trust.add(plan)
    assert stat.S_IMODE(trust_file.stat().st_mode) == 0o644
    trust_file.chmod(0o666)
    with pytest.raises(EngineError, match=r"may be written by others \(mode 666\).*chmod go-w"):
        trust.listed()


@pytest.mark.parametrize("text", ["", "[]", '{"format": 2, "trusted": []}', '{"format": 1, "trusted": [{"sha": 1}]}'])
def test_a_damaged_trust_file_is_named_and_kept(plan: Path, trust_file: Path, text: str) -> None:
    trust_file.parent.mkdir()
    trust_file.write_text(text)
    trust_file.chmod(0o644)
    with pytest.raises(EngineError, match=r"trusted\.json is damaged"):
        trust.add(plan)
    assert trust_file.read_text() == text


def test_processes_that_add_at_once_lose_nothing(tmp_path: Path) -> None:
    folders = [tiny_engine.write_engine(tmp_path / f"e{i}", seed=i) for i in range(4)]
    script = "import sys; from dpm_edge.runtime import trust; trust.add(sys.argv[1])"
    running = [subprocess.Popen([sys.executable, "-c", script, str(f)], env=dict(os.environ)) for f in folders]
    assert [one.wait(60) for one in running] == [0] * 4
    assert sorted(one.folder for one in trust.listed()) == sorted(str(f) for f in folders)


def test_the_command_adds_lists_and_removes(plan: Path) -> None:
    run = CliRunner().invoke
    assert run(main, ["trust", str(plan)]).output == f"{plan}: trusted\n"
    (row,) = json.loads(run(main, ["trust", "--list", "--json"]).output)["trusted"]
    assert row["folder"] == str(plan)
    assert str(plan) in run(main, ["trust", "--list"]).output
    assert run(main, ["trust", str(plan), "--remove"]).output == f"{plan}: no longer trusted\n"
    assert run(main, ["trust", str(plan), "--remove"]).output == f"{plan}: was not trusted\n"
    assert run(main, ["trust"]).exit_code == 2
    assert "nothing" in run(main, ["trust", str(plan.with_name("nothing"))]).output


def test_without_the_variable_the_file_lies_in_the_configuration_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DPM_EDGE_TRUST")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert trust.place() == tmp_path / "config" / "dpm-edge" / "trusted.json"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert trust.place() == tmp_path / ".config" / "dpm-edge" / "trusted.json"
