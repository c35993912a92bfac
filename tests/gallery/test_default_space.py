"""Which searches are centred when nobody says so: against the same search with centre=True or centre=False."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from oracle import biased, rows
from test_centred import calibration

from dpm_edge import Gallery
from dpm_edge.cli import main
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.search.space import LEAST_ROWS

Make = Callable[..., Gallery]
Q_CAMERAS = ["a", "b", ""]


def fill(gallery: Gallery, count: int, cameras: list[str] | None = None) -> Gallery:
    some, biased_by = biased(count, 1)
    gallery.add(some, people=["p"] * count, cameras=cameras or biased_by, ids=range(count))
    return gallery


def same(gallery: Gallery, centre: bool, **options: object) -> bool:
    """Whether a search that does not say so is the one with `centre`, and not the other one."""
    q, ask = rows(3, seed=2), {"query_cameras": Q_CAMERAS, **options}
    got = gallery.search(q, 8, **ask)
    assert got.centred == centre
    one, other = (gallery.search(q, 8, query_cameras=Q_CAMERAS, centre=c).similarity for c in (centre, not centre))
    return bool(np.array_equal(got.similarity, one) and not np.array_equal(got.similarity, other))


def test_a_search_is_centred_from_the_least_rows_on_in_every_store(make: Make) -> None:
    gallery = fill(make(), LEAST_ROWS - 1, ["a", "b", *["a"] * (LEAST_ROWS - 3)])
    assert same(gallery, False)
    some, _ = biased(1, 5)
    gallery.add(some, people=["p"], cameras=[""], ids=[1000])  # of an unknown camera
    assert same(gallery, False)
    gallery.add(some, people=["p"], cameras=["b"], ids=[1001])
    assert same(gallery, True)
    gallery.delete([1001])
    assert same(gallery, False)


def test_rows_of_one_camera_alone_are_not_centred() -> None:
    assert same(fill(Gallery("f", 12), 80, ["a"] * 80), False)


def test_without_cameras_of_the_queries_nothing_is_centred() -> None:
    assert same(fill(Gallery("f", 12), 80), False, query_cameras=None)


def test_rows_on_a_gpu_are_centred_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = fill(Gallery("f", 12), 80)
    monkeypatch.setattr(gallery.store, "place", "cuda:0")
    assert same(gallery, False)


@pytest.mark.parametrize("centred", [True, False])
def test_a_calibration_decides_the_space(centred: bool) -> None:
    many, few = fill(Gallery("f", 12), 80), fill(Gallery("f", 12), 10)
    for gallery in (many, few):
        assert same(gallery, centred, calibration=calibration(centred))  # given
        gallery.use_calibration(calibration(centred))  # kept
        q = rows(3, seed=2)
        got = gallery.search(q, 8, query_cameras=Q_CAMERAS)
        assert got.centred == centred and (got.decision != "").all()
    assert many.search(q, 8, query_cameras=Q_CAMERAS, metric="plain").centred  # the kept one is of another metric
    assert not few.search(q, 8, query_cameras=Q_CAMERAS, metric="plain").centred


def test_a_centred_calibration_without_cameras_is_refused() -> None:
    with pytest.raises(GalleryError, match="expected 3 query_cameras for centre"):
        fill(Gallery("f", 12), 80).search(rows(3), 8, calibration=calibration(True))


def test_stats_say_whether_searches_are_centred(tmp_path: Path) -> None:
    def told() -> str:
        done = CliRunner().invoke(main, ["gallery", "stats", str(tmp_path / "g"), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)["centring"]

    with Gallery.create(tmp_path / "g", "f", 12) as gallery:
        fill(gallery, 10, ["a", "b"] * 5)
    assert told() == f"off (10 rows of 2 known cameras; on from {LEAST_ROWS} of 2)"
    with Gallery.open(tmp_path / "g") as gallery:
        some, _ = biased(60, 3)
        gallery.add(some, people=["p"] * 60, cameras=["a"] * 60)
    assert told() == "on (70 rows of 2 known cameras)"
    with Gallery.open(tmp_path / "g") as gallery:
        gallery.use_calibration(calibration(False))
    assert told() == (
        "off for metric masked, as the kept calibration is; other metrics: on (70 rows of 2 known cameras)"
    )
