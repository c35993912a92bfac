"""Folders that all workers of a test run share: what takes seconds to make is made once, behind a lock."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MakeOnce = Callable[[str, Callable[[Path], object]], Path]
"""Name and what fills a folder → that folder, the same in every worker; not to be changed."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock `path` among all processes; the system frees it when its holder dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def maker(factory: pytest.TempPathFactory) -> MakeOnce:
    """What makes a folder in the first worker that asks for it, and gives it to all others."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def make_once(name: str, fill: Callable[[Path], object]) -> Path:
        folder, beside = shared / f"once-{name}", shared / f"once-{name}.part"
        with locked(shared / f"once-{name}.lock"):
            if not folder.is_dir():
                shutil.rmtree(beside, ignore_errors=True)
                beside.mkdir()
                fill(beside)
                beside.rename(folder)
        return folder

    return make_once
