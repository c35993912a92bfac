"""Statistics of a site's cameras travel with an engine and with a gallery, and count beside those of its rows."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_engine
from click.testing import CliRunner
from oracle import biased, rows, scores
from test_centred import centred, halves, means

from dpm_edge import Engine, Gallery
from dpm_edge.centring import CameraStatistics
from dpm_edge.cli import main
from dpm_edge.errors import EmbeddingsError, EngineError
from dpm_edge.files import sha256
from dpm_edge.gallery.jobs.migrate import migrate
from dpm_edge.manifest import CAMERAS, Manifest


def site(count: int = 90, fingerprint: str = "f", dimension: int = 12, seed: int = 6) -> tuple[CameraStatistics, tuple]:
    """Statistics of features with their cameras, and these."""
    features = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32) + 0.5
    cameras = [["a", "b", "c"][i % 3] for i in range(count)]
    known = CameraStatistics(fingerprint=fingerprint, dimension=dimension)
    known.add(features, cameras)
    return known, (features, cameras)


def test_a_search_is_centred_by_the_sites_and_the_rows_statistics_together(make: Callable[..., Gallery]) -> None:
    gallery, (known, (features, cameras)) = make(), site()
    some, own = biased(9, 1)
    gallery.add(some, people=["p"] * 9, cameras=own, ids=range(9))
    q, q_cameras = rows(3, seed=2), ["a", "b", ""]
    assert not gallery.search(q, 9, query_cameras=q_cameras).centred  # nine rows are few
    gallery.use_statistics(known)
    t, m = halves(some)
    by = means(np.concatenate([t, features]), [*own, *cameras])
    want = scores(centred(q.features, q_cameras, by), q.masks, centred(t, own, by), m, "masked")
    got = gallery.search(q, 9, query_cameras=q_cameras)
    assert got.centred
    np.testing.assert_array_equal(got.rows, np.argsort(-want, axis=1, kind="stable"))
    np.testing.assert_allclose(got.similarity, -np.sort(-want, axis=1), atol=1e-5)
    assert gallery.camera_statistics().counts == {camera: own.count(camera) for camera in set(own)}  # the rows' alone
    gallery.use_statistics(None)
    assert not gallery.search(q, 9, query_cameras=q_cameras).centred


def test_statistics_of_another_model_are_refused_and_none_are_kept() -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(EmbeddingsError, match="expected camera statistics of model f with 12 dimensions, got those of"):
        gallery.use_statistics(site(fingerprint="g")[0])
    assert "site_statistics" not in gallery.describe() or gallery.describe()["site_statistics"] is None


def with_statistics(folder: Path, known: CameraStatistics, **options: object) -> Path:
    """A tiny engine as `build --statistics` leaves it."""
    tiny_engine.write_engine(folder, **options)  # type: ignore[arg-type]
    known.save(folder / CAMERAS)
    manifest = Manifest.read(folder)
    replace(manifest, files={**manifest.files, CAMERAS: sha256(folder / CAMERAS)}).write(folder)
    return folder


def tiny_site(fingerprint: str = tiny_engine.FINGERPRINT, seed: int = 6) -> CameraStatistics:
    return site(fingerprint=fingerprint, dimension=tiny_engine.SPEC.dimension, seed=seed)[0]


def test_a_gallery_for_an_engine_keeps_what_the_engine_knows_of_the_site(tmp_path: Path) -> None:
    known = tiny_site()
    with Engine.load(with_statistics(tmp_path / "engine", known)) as engine:
        assert engine.camera_statistics is not None and engine.camera_statistics.counts == known.counts
        with Gallery.for_engine(engine, tmp_path / "seen") as gallery:
            gallery.add(tiny_engine.people(3), people=["x", "y", "z"], cameras=["a", "b", "c"])
    with Gallery.open(tmp_path / "seen") as gallery:  # without the engine
        asked = gallery.rows()
        assert CameraStatistics.of_json(gallery.describe()["site_statistics"], "it").counts == known.counts
        assert len(asked) == 3
    done = CliRunner().invoke(main, ["gallery", "stats", str(tmp_path / "seen"), "--json"])
    told = json.loads(done.stdout)
    assert told["centring"].startswith("on (93 rows of 3") and told["site_statistics"] == known.counts


def test_what_a_gallery_keeps_is_not_replaced_by_another_engines(tmp_path: Path) -> None:
    first, second = tiny_site(), tiny_site(seed=9)
    for number, known in enumerate((first, second)):
        with (
            Engine.load(with_statistics(tmp_path / f"engine-{number}", known)) as engine,
            Gallery.for_engine(engine, tmp_path / "seen") as gallery,
        ):
            kept = CameraStatistics.of_json(gallery.describe()["site_statistics"], "it")
            np.testing.assert_allclose(kept.sums["a"], first.sums["a"])


@pytest.mark.parametrize("saved", [True, False])
def test_a_migrated_gallery_has_the_new_engines_statistics(saved: bool, tmp_path: Path) -> None:
    import cv2

    path, place = tmp_path / "crop.png", tmp_path / "seen"
    cv2.imwrite(str(path), tiny_engine.people(1)[0])
    known = tiny_site("2" * 64)
    new = with_statistics(tmp_path / "new", known, seed=1, fingerprint="2" * 64)
    with Engine.load(tiny_engine.write_engine(tmp_path / "old")) as engine:
        gallery = Gallery.for_engine(engine, None if saved else place)
        gallery.add([str(path)], people=["x"], cameras=["a"])
        if saved:
            gallery.save(place)
        gallery.close()
    with Engine.load(new) as engine:
        migrate(place, engine, quiet=True)
    with Gallery.open(place) as gallery:
        assert gallery.fingerprint == "2" * 64 and len(gallery) == 1
        assert CameraStatistics.of_json(gallery.describe()["site_statistics"], "it").counts == known.counts


def test_statistics_of_another_model_beside_an_engine_are_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"cameras.json: expected camera statistics of model .* Build it again"):
        Engine.load(with_statistics(tmp_path / "engine", tiny_site("x" * 64)))


def test_the_command_keeps_writes_and_forgets_statistics(tmp_path: Path) -> None:
    known, _ = site()
    known.save(tmp_path / "cameras.json")
    with Gallery.create(tmp_path / "g", "f", 12) as gallery:
        some, cameras = biased(9, 1)
        gallery.add(some, people=["p"] * 9, cameras=cameras)

    def run(*arguments: str) -> dict:
        done = CliRunner().invoke(main, ["gallery", "statistics", str(tmp_path / "g"), *arguments, "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    assert run(str(tmp_path / "cameras.json"))["kept"] == known.counts
    with Gallery.open(tmp_path / "g") as gallery:
        assert CameraStatistics.of_json(gallery.describe()["site_statistics"], "it").counts == known.counts
    run("--write", str(tmp_path / "rows.json"))
    assert CameraStatistics.load(tmp_path / "rows.json").counts == {c: cameras.count(c) for c in set(cameras)}
    assert run()["kept"] == "none"
    with Gallery.open(tmp_path / "g") as gallery:
        assert gallery.describe()["site_statistics"] is None
