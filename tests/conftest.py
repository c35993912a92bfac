"""What the rooms' tests share: engine directories of a tiny network (its arithmetic is written in tiny_engine.py), and
how the tests are spread over workers.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_engine
from shared_folders import MakeOnce, maker

from dpm_edge import Engine

# Some tests compare with OpenVINO or ONNX Runtime themselves, and import them directly: off for the whole process.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # such an import raises


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests of a file in one worker, so that what they share is made once; a group of its own goes first."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.split("::")[0]))


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
