"""What the rooms' tests share: engine directories of a tiny network whose arithmetic is written in tiny_engine.py."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny_engine

from dpm_edge import Engine


@pytest.fixture(params=["openvino", "onnxruntime"])
def engine_dir(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """An engine directory, of each CPU backend in turn."""
    return tiny_engine.write_engine(tmp_path / "engine", request.param)


@pytest.fixture
def engine(engine_dir: Path) -> Iterator[Engine]:
    """An open engine, of each CPU backend in turn."""
    with Engine.load(engine_dir, threads=1) as opened:
        yield opened
