"""A build that cannot write its engine: one clear line, and the engine that was there stays as it was."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_engine
from click.testing import CliRunner

from dpm_edge import Engine, gpu
from dpm_edge.build import build, candidate, pipeline
from dpm_edge.cli import main
from dpm_edge.errors import BuildRefused
from dpm_edge.manifest import Manifest


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_engine.write_portable(tmp_path / "model" / "tiny.onnx")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, which holds one engine of the tiny network and no second one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(reason="a small file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_a_full_disk_is_one_line_and_the_old_engine_stays(
    backend: str, model: Path, crops: Path, small_disk: Path
) -> None:
    out = small_disk / "engine"
    first = build(model, out, backend=backend, calibrate=crops, progress=False)
    room = os.statvfs(small_disk)
    (small_disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - 4096))
    result = CliRunner().invoke(main, ["build", str(model), "-o", str(out), "--backend", backend, "--quiet"])
    assert result.exit_code == 1 and "Traceback" not in result.output
    assert "expected to write the engine to" in result.stderr and "Make room" in result.stderr
    assert Manifest.read(out) == first
    Engine.load(out, threads=1).close()
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "engine"], "nothing half-written is left"


def test_a_folder_without_rights_is_one_line(
    model: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **more: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(tmp_path))

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(BuildRefused, match=r"expected to write the engine to .*Permission denied \(.*another folder"):
        build(model, tmp_path / "new" / "engine", calibrate=crops, progress=False)


def test_a_build_that_is_killed_leaves_the_old_engine(model: Path, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    first = build(model, out, calibrate=crops, progress=False)
    program = (
        "import os, signal\nfrom dpm_edge.build import build, candidate\n"
        "candidate.write_golden = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"build({str(model)!r}, {str(out)!r}, calibrate={str(crops)!r})\n"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert killed.returncode == -9, killed.stderr
    assert Manifest.read(out) == first
    Engine.load(out, threads=1).close()
    assert build(model, out, calibrate=crops, progress=False).fingerprint == first.fingerprint, "and can be built again"


@pytest.mark.parametrize(
    ("more", "says"), [({}, "unverified with --force"), ({"precision": "auto"}, "to time the eng")]
)
def test_a_plan_that_cannot_be_opened_here_is_refused_before_it_is_built(
    more: dict, says: str, model: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "load_library", lambda backend: None)
    monkeypatch.setattr(gpu, "probe", lambda: None)
    monkeypatch.setattr(candidate, "make", lambda *arguments: pytest.fail("it was built"))
    with pytest.raises(BuildRefused, match=says):
        build(model, tmp_path / "e", backend="tensorrt-rtx", calibrate=crops, progress=False, **more)
    assert not (tmp_path / "e").exists()
