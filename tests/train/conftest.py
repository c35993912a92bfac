"""What the tests of training share: the toy world's folder and pictures, its tiny network as a preset, one thread."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from toy_world import SMALL, TINY, make_market

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks" / "training"))

from dpm_edge import spec
from dpm_edge.layouts import read_dataset
from dpm_edge.train.config import Config, override
from dpm_edge.train.data import Pictures, decode
from dpm_edge.train.recipes import recipe


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_market(tmp_path_factory.mktemp("toy") / "market")


@pytest.fixture(scope="session")
def train(market: Path) -> Pictures:
    """The toy world's training pictures at 64×32."""
    folder = read_dataset(market, train=True).train
    assert folder is not None
    return decode(folder, TINY.replace(height=64, width_px=32).preprocessing, quiet=True)


@pytest.fixture(autouse=True)
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spec.PRESETS, "tiny", TINY)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def small() -> Config:
    """The small-model version of the ablation's full row."""
    return override(recipe("market_tiny"), SMALL)
