"""Pictures where embeddings are wanted, and how a gallery and its matches show themselves."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import tiny_engine
from oracle import rows

from dpm_edge import Engine, Gallery
from dpm_edge.errors import GalleryError


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tiny_engine.write_engine(tmp_path_factory.mktemp("pictures") / "engine")
    with Engine.load(folder) as opened:
        yield opened


def test_pictures_give_the_rows_that_their_embeddings_give(engine: Engine) -> None:
    crops = tiny_engine.people(4)
    by_pictures, by_rows = Gallery.for_engine(engine), Gallery.for_engine(engine)
    by_pictures.add(crops, people=list("abcd"))
    by_rows.add(engine.embed(crops), people=list("abcd"))
    np.testing.assert_array_equal(by_pictures.rows().features, by_rows.rows().features)
    found = by_pictures.search(crops[:2], 3)
    np.testing.assert_array_equal(found.rows, by_rows.search(engine.embed(crops[:2]), 3).rows)
    assert found.people[:, 0].tolist() == ["a", "b"]


def test_files_are_embedded_and_stay_the_rows_sources(engine: Engine, tmp_path: Path) -> None:
    crops = tiny_engine.people(2)
    files = [tmp_path / f"{i}.png" for i in range(2)]
    for file, crop in zip(files, crops):
        cv2.imwrite(str(file), crop)
    gallery = Gallery.for_engine(engine)
    gallery.add(files, people=["a", "b"])
    assert gallery.rows().sources == [str(file) for file in files]
    assert gallery.search(str(files[1]), 1).people.tolist() == [["b"]]


def test_a_picture_that_cannot_be_read_adds_nothing_and_is_named(engine: Engine, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    cv2.imwrite(str(good), tiny_engine.people(1)[0])
    bad.write_bytes(b"no picture")
    gallery = Gallery.for_engine(engine)
    with pytest.raises(GalleryError, match=r"got number 1: .*bad\.png"):
        gallery.add([good, bad], people=["a", "b"])
    assert len(gallery) == 0


def test_pictures_without_an_engine_are_refused_with_the_way_out(engine: Engine) -> None:
    gallery = Gallery(engine.fingerprint, engine.dimension)
    with pytest.raises(GalleryError, match=r"expected Embeddings, got list.*for_engine"):
        gallery.search(tiny_engine.people(1))


def test_a_gallery_for_an_engine_is_made_the_first_time_and_opened_the_second(engine: Engine, tmp_path: Path) -> None:
    for count in (1, 2):
        with Gallery.for_engine(engine, tmp_path / "seen") as gallery:
            gallery.add(tiny_engine.people(1), people=["a"])
            assert len(gallery) == count


def test_another_models_place_is_refused_and_let_go(engine: Engine, tmp_path: Path) -> None:
    Gallery.create(tmp_path / "seen", "other", engine.dimension).close()
    with pytest.raises(GalleryError, match="got those of model"):
        Gallery.for_engine(engine, tmp_path / "seen")
    Gallery.open(tmp_path / "seen").close()


def test_a_gallery_shows_its_place_size_and_model(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "seen", "0123456789abcdef", 12) as gallery:
        gallery.add(rows(3, fingerprint="0123456789abcdef"), people=list("abc"))
        assert repr(gallery) == f"Gallery({tmp_path / 'seen'}, 3 rows, model 0123456789ab, 12 dimensions)"
    assert "closed" in repr(gallery) or "3 rows" in repr(gallery)
    assert repr(Gallery("f", 12)) == "Gallery(memory, 0 rows, model f, 12 dimensions)"


def test_matches_show_who_is_nearest() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(2), people=["anna", ""])
    shown = repr(gallery.search(rows(2), 5, metric="plain"))
    assert shown.startswith("Matches(2 queries × 5 places, 4 filled, nearest: anna 1.000, unknown 1.000")
    assert repr(gallery.search(rows(0), 5)) == "Matches(0 queries × 5 places, 0 filled)"


def test_a_querys_matches_leave_out_empty_places() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(2), people=["anna", "ben"], cameras=["gate", "yard"])
    found = gallery.search(rows(1), 5)
    assert [one.person for one in found.of_query(0)] == found.people[0][found.found[0]].tolist()
    assert [one.similarity for one in found.of_query(0)] == found.similarity[0, :2].tolist()
    assert found.of_query(0)[0].camera == "gate"
