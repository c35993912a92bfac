"""Freed memory is kept where glibc is, and nowhere by surprise."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dpm_edge.train import allocator

FAULTS = """
import resource, sys
import numpy as np
from dpm_edge.train.allocator import keep_freed_memory
if sys.argv[1] == "kept":
    assert keep_freed_memory()
np.ones(2 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    np.ones(2 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in allocator.SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_a_block_that_was_freed_is_used_again_without_new_pages() -> None:
    def faults(case: str) -> int:
        done = subprocess.run([sys.executable, "-c", FAULTS, case], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("kept") < 100 < faults("given back")  # 50 blocks of 16 MB; huge pages fault once for 2 MB


def test_a_users_own_settings_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    assert not allocator.keep_freed_memory()


@pytest.mark.parametrize("error", [TypeError, OSError])
def test_nothing_happens_without_a_c_library(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: object) -> object:
        raise error

    monkeypatch.setattr(ctypes, "CDLL", none)
    assert not allocator.keep_freed_memory()


def test_nothing_happens_in_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not allocator.keep_freed_memory()


@pytest.mark.parametrize("module", ["dpm_edge.train.cli", "dpm_edge.train.adapt.command"])
def test_an_import_alone_sets_nothing(module: str, tmp_path: Path) -> None:
    script = f"""
import dpm_edge.train.allocator as allocator
def asked(): raise SystemExit("asked")
allocator.keep_freed_memory = asked
import {module}
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
