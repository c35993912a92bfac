"""What the rooms' tests share: engine directories of a tiny network (its arithmetic is written in tiny_engine.py), and
how the tests are spread over workers.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_engine
from milvus_server import milvus_url, pytest_runtest_teardown  # noqa: F401  # a fixture and a hook for every room
from shared_folders import MakeOnce, maker

from dpm_edge import Engine

# Some tests compare with OpenVINO or ONNX Runtime themselves, and import them directly: off for the whole process.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # such an import raises

COMPILED = {f"tests/kernels/test_{name}.py" for name in ("aot", "csrc", "launch")}
"""Files whose tests need the kernels compiled for every target, minutes of one core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that no worker is left with one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)  # tests run without pytest-xdist, too
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay in one worker, so that what they share is made once, and so do all that need one server, and
    the files that need the compiled kernels: two workers would compile them side by side.

    pytest-xdist's own way, marks of groups, does nothing with pytest 9.2 (it sets an attribute that is no more).
    """
    from xdist.scheduler import LoadScopeScheduling

    class FileScheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "milvus" if "[milvus" in nodeid else "compiled kernels" if file in COMPILED else file

    return FileScheduling(config, log)


@pytest.fixture(scope="session")
def make_once(tmp_path_factory: pytest.TempPathFactory) -> MakeOnce:
    """Makes a folder in the first worker that asks for it; the others get the same one."""
    return maker(tmp_path_factory)


@pytest.fixture(scope="session", params=["openvino", "onnxruntime"])
def pristine_engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine directory of each CPU backend in turn, written once; not to be changed."""
    return tiny_engine.write_engine(tmp_path_factory.mktemp(request.param) / "engine", request.param)


@pytest.fixture
def engine_dir(pristine_engine: Path, tmp_path: Path) -> Path:
    """An engine directory that a test may damage, of each CPU backend in turn."""
    return Path(shutil.copytree(pristine_engine, tmp_path / "engine"))


@pytest.fixture
def engine(engine_dir: Path) -> Iterator[Engine]:
    """An open engine, of each CPU backend in turn."""
    with Engine.load(engine_dir, threads=1) as opened:
        yield opened
