"""An environment with a real Triton server and its clients:  python tests/interop/triton_environment.py.

The server's binary and its python backend lie in the wheel nvidia-pytriton. Its python backend misreads text tensors
under numpy 2, and tritonclient wants an older protobuf than onnx does: so server, clients and the runtime inside the
server get an environment of their own beside the tests', made once.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

PACKAGES = (
    "tritonclient[grpc,http]==2.60.0",
    "greenlet<3.4",
    "numpy==1.26.4",
    "opencv-python-headless==4.10.0.84",
    "openvino==2026.4.1",
    "safetensors",
    "click",
    "tqdm",
)
SERVER = "nvidia-pytriton==0.7.0"
STAMP = f"{' '.join(PACKAGES)} {SERVER} python{sys.version_info.major}.{sys.version_info.minor}"


class Unavailable(Exception):
    """The environment cannot be made here; the message says why."""


def place() -> Path:
    """$DPM_EDGE_TRITON_VENV, else the tests' own environment with "-triton" at its end."""
    named = os.environ.get("DPM_EDGE_TRITON_VENV")
    return Path(named) if named else Path(f"{sys.prefix}-triton")


def make() -> Path:
    """The environment's folder, made where it is not there yet; workers of one test run wait for each other.

    Raises:
        Unavailable: the packages cannot be had (no index, another platform), or the folder cannot be written.
    """
    folder = place()
    try:
        with folder.with_name(f"{folder.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            stamp = folder / "stamp"
            if not stamp.is_file() or stamp.read_text() != STAMP:
                shutil.rmtree(folder, ignore_errors=True)
                _fill(folder)
                stamp.write_text(STAMP)
    except OSError as error:
        raise Unavailable(f"{folder} cannot be written: {error.strerror}") from error
    return folder


def python(folder: Path) -> Path:
    """The environment's interpreter, for clients and for the model inside the server."""
    return folder / "bin" / "python"


def server_files(folder: Path) -> Path:
    """The folder in site-packages that holds `tritonserver` and its backends."""
    (found,) = folder.glob("lib/python3*/site-packages/pytriton/tritonserver")
    return found


def _fill(folder: Path) -> None:
    venv.create(folder, with_pip=True)
    _pip(folder, *PACKAGES)
    _pip(folder, "--no-deps", SERVER)
    files = server_files(folder)
    stub = files / "python_backend_stubs" / f"{sys.version_info.major}.{sys.version_info.minor}"
    if not stub.is_dir():
        raise Unavailable(f"{SERVER} has no python backend for Python {stub.name}")
    shutil.copy(stub / "triton_python_backend_stub", files / "backends" / "python")


def _pip(folder: Path, *what: str) -> None:
    command = [str(python(folder)), "-m", "pip", "install", "-q", "--only-binary=:all:", *what]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise Unavailable(f"pip cannot install {' '.join(what)}: {(lines or ['no reason given'])[-1]}")


if __name__ == "__main__":
    print(make())
