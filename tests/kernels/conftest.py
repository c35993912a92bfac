"""Kernels run in Triton's interpreter, on any CPU; TRITON_INTERPRET=0 runs them on a GPU, or compiles them, instead.

The variable must be set before a kernel module is imported.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from shared_folders import locked

os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="session")
def compiled_kernels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every variant compiled for every target; what is up to date in DPM_KERNEL_CACHE is not compiled again."""
    pytest.importorskip("triton", reason="Triton is not installed (extra [gpu])")
    out = Path(os.environ.get("DPM_KERNEL_CACHE") or tmp_path_factory.mktemp("kernels"))
    command = [sys.executable, "-m", "dpm_edge.kernels", "--out", str(out)]
    with locked(out / "tests.lock"):  # a second worker finds everything up to date
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TRITON_INTERPRET": "0"})
    assert done.returncode == 0, done.stderr[-6000:]
    return out
