"""Galleries of another project's network: it has no masks and no visibility, and nobody is shown any."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_engine
from numpy.typing import NDArray

from dpm_edge import Gallery
from dpm_edge.errors import DataError, GalleryError
from dpm_edge.gallery.calibration import calibrate
from dpm_edge.runtime import Embeddings, Engine
from dpm_edge.spec import foreign_spec

D, FINGERPRINT = 16, "theirs" * 8


def embeddings(n: int, seed: int = 0) -> Embeddings:
    features = np.random.default_rng(seed).standard_normal((n, D)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Embeddings(
        features=features, masks=np.ones_like(features), visibility=None, rows=np.arange(n), fingerprint=FINGERPRINT
    )


def nearest(queries: NDArray, rows: NDArray) -> NDArray:
    """Cosine in float64, best first."""
    return np.argsort(-(queries.astype(np.float64) @ rows.astype(np.float64).T), axis=1, kind="stable")


@pytest.fixture
def gallery() -> Gallery:
    made = Gallery(FINGERPRINT, D)
    made.add(embeddings(40), people=[str(i % 9) for i in range(40)], cameras=[str(i % 3) for i in range(40)])
    return made


@pytest.mark.parametrize("options", [{}, {"metric": "plain"}])
def test_a_search_ranks_by_the_cosine(gallery: Gallery, options: dict) -> None:
    queries = embeddings(5, seed=1)
    found = gallery.search(queries, 4, **options)
    assert (found.rows == nearest(queries.features, embeddings(40).features)[:, :4]).all()


@pytest.mark.parametrize("metric", ["masked", "mutual"])
def test_a_metric_that_wants_masks_is_refused(gallery: Gallery, metric: str) -> None:
    with pytest.raises(GalleryError, match=f"model with masks for metric '{metric}', got another project's network"):
        gallery.search(embeddings(1), metric=metric)


def test_a_filter_on_visibility_is_refused(gallery: Gallery) -> None:
    with pytest.raises(GalleryError, match="model with a visibility for min_visibility"):
        gallery.search(embeddings(1), min_visibility=0.5)


def test_no_visibility_is_shown_by_matches_and_rows(gallery: Gallery) -> None:
    found = gallery.search(embeddings(2), 3)
    assert found.visibility is None and found.of_query(0)[0].visibility is None
    assert gallery.rows().visibility is None


@pytest.mark.parametrize("options", [{"by": "person"}, {"expand": 2}, {"neighbours": 3}])
def test_searches_of_several_steps_work(gallery: Gallery, options: dict) -> None:
    found = gallery.search(embeddings(3), 2, **options)
    assert found.found.all() and found.visibility is None


def test_a_folder_a_file_and_a_copy_stay_without_visibility(gallery: Gallery, tmp_path: Path) -> None:
    gallery.save(tmp_path / "saved.safetensors")
    assert Gallery.load(tmp_path / "saved.safetensors").rows().visibility is None
    merged = Gallery(FINGERPRINT, D)
    assert merged.merge(gallery) == 40 and merged.rows().visibility is None
    pytest.importorskip("pyarrow", reason="parquet files need pyarrow")
    gallery.export(tmp_path / "all.parquet")
    read = Gallery(FINGERPRINT, D)
    assert read.import_(tmp_path / "all.parquet") == 40 and read.rows().visibility is None


def test_a_folder_for_such_an_engine_keeps_no_masks(tmp_path: Path) -> None:
    pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")
    spec = foreign_spec("theirs", tiny_engine.SPEC.width, tiny_engine.SPEC.preprocessing, tiny_engine.SPEC.weights)
    with Engine.load(tiny_engine.write_engine(tmp_path / "engine", spec=spec)) as engine:
        with Gallery.for_engine(engine, tmp_path / "seen") as gallery:
            gallery.add(tiny_engine.people(3), people=["a", "b", "c"])
            assert gallery.rows().masks is None and gallery.rows().visibility is None
            found = engine.search(np.vstack([tiny_engine.people(1)[0]]), [[0, 0, 20, 40]], gallery, 1)[1]
            assert found.visibility is None and found.found.all()
            with pytest.raises(GalleryError, match="model with masks"):
                engine.search(tiny_engine.people(1)[0], [[0, 0, 20, 40]], gallery, 1, metric="masked")
        with Gallery.open(tmp_path / "seen") as again:
            assert again.rows().visibility is None


def test_embeddings_files_keep_that_there_is_none(tmp_path: Path) -> None:
    embeddings(4).save(tmp_path / "some.safetensors")
    read = Embeddings.load(tmp_path / "some.safetensors")
    assert read.visibility is None and not read.has_masks and read.take([1, 2]).visibility is None
    assert Embeddings.join([read, read]).visibility is None and read.each()[0].visibility is None
    (np.testing.assert_array_equal(read.weight, np.ones(4)), np.testing.assert_array_equal(read.masks, 1))


def test_a_calibration_has_one_band_and_decides_by_its_threshold_alone(gallery: Gallery) -> None:
    rng = np.random.default_rng(0)
    same = rng.random(5000) < 0.3
    s = np.where(same, 0.7, 0.1) + 0.1 * rng.standard_normal(5000)
    made = calibrate(s, same, None, fingerprint=FINGERPRINT, metric="plain", false_match_rate=0.01)
    (band,) = made.bands
    assert (s[~same] >= band.threshold).mean() <= 0.01 and (s[~same] >= band.threshold - 0.02).mean() > 0.01
    gallery.use_calibration(made)
    found = gallery.search(embeddings(3), 5)
    assert ((found.decision == "same") == (found.similarity >= band.threshold)).all()
    assert set(found.decision.ravel()) <= {"same", "different"}


def test_a_threshold_that_finds_nobody_is_not_called_occlusion() -> None:
    rng = np.random.default_rng(0)
    s, same = rng.standard_normal(4000), rng.random(4000) < 0.3
    made = calibrate(s, same, None, fingerprint=FINGERPRINT, metric="plain", false_match_rate=0.001)
    assert made.bands[0].true_match_rate < 0.05 and made.decide(0.0, 0.0) == "different"


def test_bands_of_visibility_are_refused() -> None:
    with pytest.raises(DataError, match="one band for a model without a visibility, got 3"):
        calibrate(np.zeros(9), np.zeros(9, bool), None, fingerprint=FINGERPRINT, metric="plain", bands=3)
