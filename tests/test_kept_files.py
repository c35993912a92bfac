"""A promise: what a version wrote, every later one opens. tests/kept/VERSION holds each kind of file, small.

tests/write_kept_files.py wrote them; the numbers here were written down beside them and never change.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import tiny_engine
import write_kept_files

from dpm_edge import Embeddings, Engine, Gallery
from dpm_edge.centring import CameraStatistics
from dpm_edge.gallery.calibration import Calibration

KEPT = write_kept_files.KEPT

VERSIONS = sorted(path.name for path in KEPT.iterdir() if path.is_dir() and path.name[0].isdigit())
PEOPLE = ["ann", "ann", "bob", "bob", "cy", ""]


@pytest.fixture(params=VERSIONS)
def kept(request: pytest.FixtureRequest) -> Path:
    return KEPT / request.param


def same_embeddings(found: Embeddings) -> None:
    wanted = write_kept_files.embeddings()
    np.testing.assert_array_equal(found.features, wanted.features)
    np.testing.assert_array_equal(found.masks, wanted.masks)
    assert found.fingerprint == "tiny" * 16 and found.sources[0] == "crop-0.jpg"


def test_this_version_is_among_them() -> None:
    import dpm_edge

    assert dpm_edge.__version__ in VERSIONS, "python tests/write_kept_files.py"


def test_an_engine_opens_and_computes_what_it_did(kept: Path, tmp_path: Path) -> None:
    pictures = tiny_engine.people(3)
    shutil.copytree(kept / "engine", tmp_path / "engine")
    with Engine.load(tmp_path / "engine") as engine:
        found = engine.embed(pictures)
    np.testing.assert_allclose(found.features, tiny_engine.expected(pictures)[0], atol=1e-3)


def test_a_portable_onnx_opens(kept: Path) -> None:
    portable = pytest.importorskip("dpm_edge.build.portable")
    assert portable.read(kept / "portable.onnx").fingerprint == "tiny" * 16


def test_embeddings_open(kept: Path) -> None:
    same_embeddings(Embeddings.load(kept / "embeddings.safetensors"))


def same_rows(gallery: Gallery) -> None:
    rows, wanted = gallery.rows(), write_kept_files.embeddings()
    assert sorted(rows.people) == sorted(PEOPLE) and set(rows.cameras) == {"door", "yard"}
    assert sorted(rows.timestamps) == [write_kept_files.TIMES + row for row in range(len(PEOPLE))]
    matches = gallery.search(wanted, 1, metric="masked")
    assert [row[0].person for row in map(matches.of_query, range(5))] == PEOPLE[:5]


def test_a_gallery_file_opens(kept: Path) -> None:
    same_rows(Gallery.load(kept / "gallery.safetensors"))


def test_exported_rows_are_imported(kept: Path) -> None:
    pytest.importorskip("pyarrow")
    gallery = Gallery("tiny" * 16, 24)
    assert gallery.import_(kept / "rows.parquet") == len(PEOPLE)
    same_rows(gallery)


def test_a_gallery_folder_opens_and_takes_rows(kept: Path, tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge")
    with tarfile.open(kept / "gallery.tar.xz") as packed:
        packed.extractall(tmp_path, filter="data")
    with Gallery.open(tmp_path / "gallery") as gallery:
        same_rows(gallery)
        gallery.add(write_kept_files.embeddings(), people=["dee"] * len(PEOPLE))
        assert len(gallery) == 2 * len(PEOPLE)


def test_a_calibration_decides_as_it_did(kept: Path) -> None:
    found = Calibration.load(kept / "calibration.json")
    assert found.metric == "masked" and len(found.bands) == 2 and found.by == "labels"
    assert list(found.decide(np.array([0.8, 0.3]), np.array([0.5, 0.5]))) == ["same", "different"]


def test_camera_statistics_centre_as_they_did(kept: Path) -> None:
    found, features = CameraStatistics.load(kept / "cameras.json"), write_kept_files.embeddings().features
    assert found.counts == {"door": 3, "yard": 3}
    np.testing.assert_allclose(found.sums["door"], features[::2].sum(0), atol=1e-6)


@pytest.mark.parametrize("name", ["checkpoint", "imported", "of-onnx", "seeing"])
def test_a_checkpoint_computes_what_it_did(name: str, kept: Path) -> None:
    torch = pytest.importorskip("torch")
    from dpm_edge.model import checkpoint

    net = checkpoint.load_any(kept / name)
    pre = net.spec.preprocessing
    with torch.inference_mode():
        made = net(torch.ones(1, 3, pre.height, pre.width))
    found = np.concatenate([part.flatten()[:4].numpy() for part in made])  # of feature, mask, and what is seen
    wanted = json.loads((kept / "first-features.json").read_text())[name]
    np.testing.assert_allclose(found[: len(wanted)], wanted, atol=1e-5)
