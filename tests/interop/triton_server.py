"""A Triton server that lives as long as a `with` block: free ports, its log in a file, always ended."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import triton_environment

ROOT = Path(__file__).resolve().parents[2]


class TritonServer:
    """`tritonserver` on a model repository; its python backend runs our runtime from this checkout."""

    def __init__(self, environment: Path, repository: Path, log: Path) -> None:
        files = triton_environment.server_files(environment)
        self.http, self.grpc = _free_ports(2)
        self.log = log
        libraries = [sysconfig.get_config_var("LIBDIR"), str(files.parents[1] / "nvidia_pytriton.libs")]
        command = [
            str(files / "bin" / "tritonserver"),
            f"--model-repository={repository}",
            f"--backend-directory={files / 'backends'}",
            f"--http-port={self.http}",
            f"--grpc-port={self.grpc}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--allow-metrics=false",
            "--disable-auto-complete-config",
            "--exit-timeout-secs=10",
        ]
        settings = {
            "PATH": f"{triton_environment.python(environment).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
            "OMP_NUM_THREADS": "1",
        }
        with log.open("w") as out:
            self._process = subprocess.Popen(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **settings},
            )

    def __enter__(self) -> TritonServer:
        try:
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def get(self, path: str) -> Any:
        """The JSON that the server answers on HTTP; None for an empty answer."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def text(self) -> str:
        """The end of the log, for a failing test."""
        return self.log.read_text(errors="replace")[-6000:]

    def _wait(self, seconds: float = 120) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise AssertionError(f"tritonserver ended with {self._process.returncode}:\n{self.text()}")
            try:
                self.get("/v2/health/ready")
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"tritonserver was not ready after {seconds} s:\n{self.text()}")

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # its own session: the stubs that outlived it, nobody else
        self._process.wait(10)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
