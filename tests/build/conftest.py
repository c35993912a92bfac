"""What the build room's tests share: a tiny network as checkpoint and as portable ONNX, and folders of crops."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest
import tiny_engine
from shared_folders import MakeOnce
from tiny_network import network

from dpm_edge.build.export import export
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM


@pytest.fixture(autouse=True)
def no_traces(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trusted plans and timing caches of the tests do not end up in the home of who runs them."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("DPM_EDGE_TRUST", str(home / "trusted.json"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))


@pytest.fixture(scope="session")
def net() -> DPM:
    return network()


@pytest.fixture(scope="session")
def checkpoint_path(net: DPM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint.save(net, tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def portable_path(net: DPM, make_once: MakeOnce) -> Path:
    return make_once("portable", lambda folder: export(net, folder / "tiny.onnx")) / "tiny.onnx"


@pytest.fixture(scope="session")
def paper_path(make_once: MakeOnce) -> Path:
    """A network with the paper's mask generator over four blocks and QuickGELU, wide enough for its kernel."""
    changes = {"width": 64, "heads": 4, "layers": 4, "mask_blocks": (1, 2, 3, 4), "hmg": "paper", "quick_gelu": True}
    fill = lambda folder: export(network(name="paper", **changes), folder / "paper.onnx")
    return make_once("paper", fill) / "paper.onnx"


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 24 pictures of different sizes."""
    folder = tmp_path_factory.mktemp("crops")
    for number, picture in enumerate(tiny_engine.people(24)):
        cv2.imwrite(str(folder / f"{number:02}.png"), picture)
    return folder


@pytest.fixture(scope="session")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four people seen by two cameras, in Market-1501's layout."""
    root = tmp_path_factory.mktemp("market")
    for side, camera in (("query", 1), ("bounding_box_test", 2)):
        (root / side).mkdir()
        for person, picture in enumerate(tiny_engine.people(4, seed=7), start=1):
            cv2.imwrite(str(root / side / f"{person:04}_c{camera}s1_000001_00.png"), picture)
    return root
