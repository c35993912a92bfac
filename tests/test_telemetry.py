"""Nothing is sent: processes that use OpenVINO or ONNX Runtime are watched for connections, children and files."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import tiny_engine
from test_imports import ROOT, imports

USE = """
import os, sys, time
import numpy as np
from dpm_edge import Engine
with Engine.load({folder!r}, threads=1) as engine:
    engine.embed([np.zeros((50, 20, 3), np.uint8)])
    time.sleep(0.5)
tasks = "/proc/self/task"
children = [pid for task in os.listdir(tasks) for pid in open(f"{{tasks}}/{{task}}/children").read().split()]
print("children", children)
"""
TWICE = """
import multiprocessing, time
multiprocessing.set_start_method({method!r})
import numpy as np
from dpm_edge import Engine
with Engine.load({folder!r}, threads=1) as engine:
    engine.embed([np.zeros((50, 20, 3), np.uint8)])
    print("embedded", flush=True)
time.sleep(2)
"""


class Watched:
    """A home folder of its own, and a proxy that takes every connection and sends nothing on."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.connections = 0
        self._server = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._count, daemon=True)
        self._thread.start()

    def environment(self, **more: str) -> dict[str, str]:
        """Variables for a child: no CI, an empty home, the proxy."""
        drop = ("CI", "TF_BUILD", "GITHUB_ACTIONS", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "DPM_EDGE_TELEMETRY")
        kept = {k: v for k, v in os.environ.items() if k not in drop and not k.lower().endswith("_proxy")}
        proxy = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY"), proxy)
        return {**kept, **proxies, "HOME": str(self.home), "XDG_CACHE_HOME": str(self.home / ".cache"), **more}

    def files(self) -> list[str]:
        """Every file that lies in the home folder by now."""
        return sorted(str(p.relative_to(self.home)) for p in self.home.rglob("*") if p.is_file())

    def close(self) -> None:
        self._server.close()

    def _count(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._server.accept()
                self.connections += 1
                connection.close()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    home = tmp_path / "home"
    home.mkdir()
    one = Watched(home)
    yield one
    one.close()


def run(arguments: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=120)


def test_an_engine_opens_no_connection_starts_no_child_and_writes_no_file(
    pristine_engine: Path, watched: Watched
) -> None:
    result = run([sys.executable, "-c", USE.format(folder=str(pristine_engine))], watched.environment())
    assert result.stdout.strip() == "children []", result.stdout + result.stderr
    assert watched.connections == 0 and watched.files() == []


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_an_engine_asks_the_system_for_no_internet_socket(
    pristine_engine: Path, watched: Watched, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-qq", "-e", "trace=socket,connect,sendto", "-o", str(trace)]
    if run([*strace, "true"], watched.environment()).returncode:
        pytest.skip("strace may not trace here")
    environment = watched.environment()
    environment = {k: v for k, v in environment.items() if not k.lower().endswith("_proxy")}
    result = run([*strace, sys.executable, "-c", USE.format(folder=str(pristine_engine))], environment)
    assert result.returncode == 0, result.stderr
    assert [line for line in trace.read_text(errors="replace").splitlines() if "AF_INET" in line] == []


@pytest.mark.parametrize("command", ["build", "doctor", "embed"])
def test_a_command_opens_no_connection_and_writes_no_file_at_home(
    command: str, watched: Watched, tmp_path: Path
) -> None:
    model = tiny_engine.write_portable(tmp_path / "model.onnx")
    crops, engine = tmp_path / "crops", tmp_path / "engine"
    crops.mkdir()
    for number, picture in enumerate(tiny_engine.people(2)):
        cv2.imwrite(str(crops / f"{number}.png"), picture)
    if command == "embed":
        tiny_engine.write_engine(engine, "openvino")
    arguments = {
        "build": ["build", str(model), "-o", str(engine), "--backend", "openvino", "--calibrate", str(crops)],
        "doctor": ["doctor"],
        "embed": ["embed", str(engine), str(crops), "-o", str(tmp_path / "crops.safetensors")],
    }[command]
    result = run([sys.executable, "-m", "dpm_edge.cli", *arguments], watched.environment())
    assert result.returncode == 0, result.stdout + result.stderr
    assert watched.connections == 0 and watched.files() == []


def test_the_watch_sees_what_the_libraries_do_where_telemetry_is_allowed(
    pristine_engine: Path, watched: Watched
) -> None:
    script = USE.format(folder=str(pristine_engine))
    result = run([sys.executable, "-c", script], watched.environment(DPM_EDGE_TELEMETRY="1"))
    assert result.returncode == 0, result.stderr
    if not watched.files() and not watched.connections:
        pytest.skip("these versions of the libraries send nothing by themselves")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_script_runs_once_whatever_the_start_method(method: str, watched: Watched, tmp_path: Path) -> None:
    folder = tiny_engine.write_engine(tmp_path / "engine", "openvino")
    script = tmp_path / "script.py"
    script.write_text(TWICE.format(method=method, folder=str(folder)))
    result = run([sys.executable, str(script)], watched.environment())
    assert result.stdout.split() == ["embedded"], result.stdout + result.stderr


def test_openvino_telemetry_can_still_be_imported_afterwards(pristine_engine: Path, watched: Watched) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is the extra `cpu`")
    script = "import dpm_edge.telemetry as t; t.import_openvino('a test'); from openvino_telemetry import Telemetry"
    environment = watched.environment()
    if run([sys.executable, "-c", "import openvino_telemetry"], environment).returncode:
        pytest.skip("openvino_telemetry is not installed")
    result = run([sys.executable, "-c", script], environment)
    assert result.returncode == 0, result.stderr
    assert watched.connections == 0 and watched.files() == []


def test_a_setting_of_the_users_own_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is the extra `cpu`")
    from dpm_edge.telemetry import import_onnxruntime

    called = []
    monkeypatch.setattr("onnxruntime.disable_telemetry_events", lambda: called.append("off"))
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    import_onnxruntime("a test")
    assert called == [] and os.environ["ORT_DISABLE_TELEMETRY"] == "0"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    import_onnxruntime("a test")
    assert called == ["off"] and os.environ["ORT_DISABLE_TELEMETRY"] == "1"


def test_one_file_imports_the_libraries_that_have_telemetry() -> None:
    found = {
        str(path.relative_to(ROOT))
        for folder in ("dpm_edge", "kernels", "train", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for module in imports(path)
        if module.split(".")[0] in ("openvino", "onnxruntime")
    }
    assert found == {"dpm_edge/telemetry.py"}
