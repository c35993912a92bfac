"""The gallery against a full sort in float64, and against bad input."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from oracle import rows, scores

from dpm_edge import Embeddings, Gallery
from dpm_edge.errors import DpmError, GalleryError
from dpm_edge.gallery.search import exact


def filled(n: int, d: int = 12, dtype: str = "float32", seed: int = 1, cameras: int = 3) -> Gallery:
    gallery = Gallery("f", d, dtype)
    some = rows(n, d, seed)
    gallery.add(some, people=[f"p{i % 7}" for i in range(n)], cameras=[i % cameras for i in range(n)])
    return gallery


@pytest.mark.parametrize("metric", ["plain", "masked", "mutual"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("k", [1, 5, 29])
def test_top_k_is_the_full_sort(metric: str, dtype: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "QUERY_TILE", 4)
    monkeypatch.setattr(exact, "GALLERY_TILE", 8)
    queries, gallery = rows(7, seed=2), filled(29, dtype=dtype)
    got = gallery.search(queries, k, metric=metric)
    s = scores(queries.features, queries.masks, gallery.rows().features, gallery.rows().masks, metric)
    order = np.argsort(-s, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(got.rows, order)
    np.testing.assert_allclose(got.similarity, np.take_along_axis(s, order, 1), atol=1e-5)
    np.testing.assert_array_equal(got.people, np.array(gallery.rows().people)[order])
    np.testing.assert_array_equal(got.cameras, np.array(gallery.rows().cameras)[order])


@pytest.mark.parametrize("tile", [3, 8, 1000])
def test_ties_go_to_the_lower_row_whatever_the_tiles(tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "GALLERY_TILE", tile)
    gallery = Gallery("f", 3)
    corners = np.eye(3, dtype=np.float32)[np.random.default_rng(0).integers(0, 3, 40)]
    ones = np.ones_like(corners)
    gallery.add(
        Embeddings(features=corners, masks=ones, visibility=ones[:, 0], rows=np.arange(40), fingerprint="f"),
        people=range(40),
    )
    query = Embeddings(
        features=np.eye(3, dtype=np.float32),
        masks=np.ones((3, 3)),
        visibility=np.ones(3),
        rows=[0, 1, 2],
        fingerprint="f",
    )
    got = gallery.search(query, 5, metric="plain")
    for axis in range(3):
        assert got.rows[axis].tolist() == np.flatnonzero(corners[:, axis])[:5].tolist()


def test_more_places_than_rows_are_left_empty() -> None:
    got = filled(3).search(rows(2, seed=3), 5)
    assert got.rows.shape == got.similarity.shape == got.people.shape == got.cameras.shape == (2, 5)
    assert (got.rows[:, 3:] == -1).all() and np.isneginf(got.similarity[:, 3:]).all()
    assert (got.people[:, 3:] == "").all() and got.found.sum() == 6


def test_empty_gallery_and_no_queries() -> None:
    assert (Gallery("f", 12).search(rows(2), 4).rows == -1).all()
    assert filled(5).search(rows(0), 4).rows.shape == (0, 4)


def test_cameras_can_be_chosen_or_left_out() -> None:
    gallery, queries = filled(30), rows(4, seed=5)
    one = gallery.search(queries, 30, camera=1)
    assert set(one.cameras[one.found]) == {"1"} and one.found.sum(1).tolist() == [10] * 4
    other = gallery.search(queries, 30, exclude_same_camera=True, query_cameras=[0, 1, 2, 9])
    assert other.found.sum(1).tolist() == [20, 20, 20, 30]
    for row, camera in enumerate("012"):
        assert camera not in other.cameras[row]
    full = gallery.search(queries, 30)
    keep = full.cameras[0] != "0"
    np.testing.assert_array_equal(other.rows[0, :20], full.rows[0][keep])
    with pytest.raises(GalleryError, match="query_cameras"):
        gallery.search(queries, 3, exclude_same_camera=True)


def test_zero_mask_and_zero_feature_are_similar_to_nothing() -> None:
    gallery = filled(6)
    queries = rows(2, seed=4)
    nothing = Embeddings(
        features=np.stack([queries.features[0], np.zeros(12)]),
        masks=np.stack([np.zeros(12), queries.masks[1]]),
        visibility=np.zeros(2),
        rows=[0, 1],
        fingerprint="f",
    )
    for metric in ("masked", "mutual"):
        got = gallery.search(nothing, 6, metric=metric)
        assert (got.similarity == 0).all() and got.rows.tolist() == [list(range(6))] * 2


def test_another_models_embeddings_are_refused() -> None:
    gallery = filled(3)
    with pytest.raises(GalleryError, match="model"):
        gallery.add(rows(1, fingerprint="g"), people=["x"])
    with pytest.raises(GalleryError, match="model"):
        gallery.search(rows(1, fingerprint="g"))
    with pytest.raises(GalleryError, match="dimensions"):
        gallery.search(rows(1, d=5))
    assert len(gallery) == 3


def test_wrong_labels_leave_the_gallery_as_it_was() -> None:
    gallery = filled(3)
    with pytest.raises(GalleryError, match="expected 3 people, one for each row, got 2"):
        gallery.add(rows(3), people=["a", "b"])
    with pytest.raises(GalleryError, match="cameras"):
        gallery.add(rows(3), people=["a", "b", "c"], cameras=["x"])
    assert len(gallery) == len(gallery.rows()) == 3


@pytest.mark.parametrize(
    ("change", "names"), [({"k": 0}, "k of 1 or more, got 0"), ({"metric": "maskd"}, "Did you mean 'masked'")]
)
def test_bad_search_is_refused(change: dict, names: str) -> None:
    with pytest.raises(GalleryError, match=names):
        filled(3).search(rows(1), **change)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_saved_and_loaded_is_the_same(tmp_path: Path, dtype: str) -> None:
    gallery = filled(9, dtype=dtype)
    gallery.save(tmp_path / "g.safetensors")
    back = Gallery.load(tmp_path / "g.safetensors")
    for name, column in vars(gallery.rows()).items():
        np.testing.assert_array_equal(getattr(back.rows(), name), column, err_msg=name)
    assert back.rows().features.dtype == gallery.rows().features.dtype
    assert back.fingerprint == gallery.fingerprint
    empty = Gallery("f", 12)
    empty.save(tmp_path / "g.safetensors")
    assert len(Gallery.load(tmp_path / "g.safetensors")) == 0


def test_truncated_gallery_and_embeddings_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    filled(9).save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(GalleryError, match="damaged"):
        Gallery.load(path)
    rows(3).save(path)
    with pytest.raises(GalleryError, match="which holds embeddings"):
        Gallery.load(path)


def test_disk_full_leaves_the_old_gallery(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    filled(4).save(path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, limits[1]))
        with pytest.raises(DpmError, match=r"as it was before.*Free some space"):
            filled(400).save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_killed_writer_leaves_the_old_gallery(tmp_path: Path) -> None:
    path = tmp_path / "g.safetensors"
    filled(4).save(path)
    before = path.read_bytes()
    script = f"""
        import os, time
        from dpm_edge import Gallery
        gallery = Gallery.load({str(path)!r})
        gallery.delete([0])
        def stuck(descriptor):
            print("writing", flush=True)
            time.sleep(60)
        os.fsync = stuck
        gallery.save({str(path)!r})
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"writing\n"
    process.kill()
    process.wait()
    time.sleep(0.05)
    assert path.read_bytes() == before
    assert len(Gallery.load(path)) == 4
