"""What should not happen and does, in every store: a clear error, or the right answer, and nothing lost."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import rows

from dpm_edge import Embeddings, Gallery
from dpm_edge.errors import EmbeddingsError, GalleryError
from dpm_edge.gallery import ids
from dpm_edge.gallery.stores.folder import write_description
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.milvus import MilvusStore
from dpm_edge.gallery.stores.qdrant import QdrantStore
from dpm_edge.gallery.stores.qdrant_edge import EdgeStore


def filled(make: Any, n: int = 20) -> Gallery:
    gallery = make()
    gallery.add(rows(n, seed=1), people=[f"p{i}" for i in range(n)], cameras=["gate"] * n, ids=range(n))
    return gallery


def test_a_zero_mask_is_similar_to_nothing_and_a_row_with_one_stays(make: Any) -> None:
    gallery = filled(make)
    zero = dataclasses.replace(rows(1, seed=9), masks=np.zeros((1, 12), np.float32))
    gallery.add(zero, people=["hidden"], ids=[99])
    assert (gallery.search(zero, 30).similarity[0, :21] == 0).all()
    got = gallery.search(rows(1, seed=9), 30, metric="mutual")
    assert got.similarity[0, got.rows[0].tolist().index(99)] == 0 and len(gallery) == 21
    assert not gallery.rows([99]).masks.any()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", ["features", "masks", "visibility"])
def test_nan_never_becomes_a_row(make: Any, column: str, value: float) -> None:
    gallery, some = filled(make), rows(2)
    spoilt = getattr(some, column).copy()
    spoilt.flat[-1] = value
    with pytest.raises(EmbeddingsError, match=r"expected finite numbers, got NaN or infinity in rows \[1\]"):
        gallery.add(dataclasses.replace(some, **{column: spoilt}), people=["a", "b"])
    assert len(gallery) == 20


def test_a_wrong_dimension_and_model_are_refused_both_ways(make: Any) -> None:
    gallery = filled(make)
    for other, says in (
        (rows(1, d=7), "12 dimensions, got 7"),
        (rows(1, fingerprint="g"), "model f, got those of model g"),
    ):
        with pytest.raises(GalleryError, match=says):
            gallery.add(other, people=["x"])
        with pytest.raises(GalleryError, match=says):
            gallery.search(other)
    assert len(gallery) == 20


def test_duplicate_ids_add_nothing(make: Any) -> None:
    gallery = filled(make)
    for names in ([40, 40], [41, 7]):
        with pytest.raises(GalleryError, match="nothing was added"):
            gallery.add(rows(2, seed=5), people=["x", "y"], ids=names)
    assert gallery.ids().tolist() == list(range(20)) and gallery.rows([7]).people == ["p7"]


def test_a_clock_that_goes_backwards_gives_new_ids_and_keeps_times(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = make()
    now = time.time_ns()
    first = gallery.add(rows(3, seed=1), people=["a", "b", "c"], timestamps=[2e9, 2e9 + 1, 2e9 + 2])
    monkeypatch.setattr(ids.time, "time_ns", lambda: now - 3600 * 10**9)
    second = gallery.add(rows(3, seed=2), people=["d", "e", "f"], timestamps=[2e9 - 3600, 2e9 - 3599, 1e9])
    assert second.min() > first.max() and len(gallery) == 6
    assert gallery.count(since=2e9) == 3 and gallery.count(until=2e9) == 3
    assert gallery.expire(7200, now=2e9) == 1 and len(gallery) == 5


class NoDice:
    """A source of randomness that always draws the same number, as two boards in one bad moment would."""

    def getrandbits(self, bits: int) -> int:
        return min(7, 2**bits - 1)


@pytest.mark.parametrize("clock", [0, ids.EPOCH_US * 1000 + 5_000_000])
def test_a_clock_that_starts_anew_at_each_boot_overwrites_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clock: int
) -> None:
    """The worst case: the clock stands still, and every boot draws the same random numbers."""
    monkeypatch.setattr(ids.time, "time_ns", lambda: clock)
    monkeypatch.setattr(ids.random, "SystemRandom", NoDice)
    Gallery.create(tmp_path / "g", "f", 12).close()
    given: list[int] = []
    for boot in range(4):
        with Gallery.open(tmp_path / "g") as gallery:
            for n in (1, 3):
                given += gallery.add(rows(n, seed=boot), people=[f"p{boot}"] * n).tolist()
            assert len(gallery) == 4 * (boot + 1)
    assert len(set(given)) == 16


def test_writers_of_a_server_with_clocks_that_stand_still_share_no_id(
    make: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gallery = make()
    monkeypatch.setattr(ids.time, "time_ns", lambda: 0)
    for writer in range(20):
        other = Gallery("f", 12, store=gallery.store)  # as another process would open it
        other.add(rows(50, seed=writer), people=["x"] * 50)
    assert len(gallery) == 1000


def test_an_id_at_the_very_end_leaves_the_gaps_before_it() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(2), people=["a", "b"], ids=[2**63 - 1, 1])
    assert gallery.add(rows(3), people=["c", "d", "e"]).tolist() == [0, 2, 3]
    assert gallery.add(rows(1), people=["f"]).tolist() == [4] and len(gallery) == 6


def test_a_camera_never_seen_finds_nobody(make: Any) -> None:
    gallery = filled(make)
    assert not gallery.search(rows(2), 5, camera="nowhere").found.any() and gallery.count(camera="nowhere") == 0
    assert gallery.search(rows(1), 30, exclude_same_camera=True, query_cameras=["nowhere"]).found.sum() == 20
    assert gallery.expire(0, camera="nowhere", now=9e9) == 0


def test_an_empty_gallery_answers(make: Any) -> None:
    gallery = make()
    assert not gallery.search(rows(2), 5).found.any() and gallery.rows().ids.tolist() == []
    assert gallery.delete([1]) == gallery.forget("x") == gallery.expire(0) == gallery.count() == 0


def test_more_places_than_rows_are_empty(make: Any) -> None:
    got = filled(make).search(rows(1, seed=3), 500)
    assert sorted(got.rows[0, :20]) == list(range(20)) and (got.rows[0, 20:] == -1).all()
    assert np.isneginf(got.similarity[0, 20:]).all() and np.isnan(got.timestamps[0, 20:]).all()


def test_unicode_and_large_payloads_come_back(make: Any) -> None:
    gallery = make()
    large = {"текст": "пальто 👤 \u0000 \\ \" '" * 300, "list": list(range(1500)), "deep": {"a": [None, True, 1.5]}}
    assert len(str(large).encode()) > 10_000
    ids_given = gallery.add(
        rows(2), people=["Жанна 👩", "名前"], cameras=["ворота", "門"], payloads=[large, {"": "\n\t"}]
    )
    got = gallery.rows(np.sort(ids_given))
    order = np.argsort(got.ids)
    assert [got.payloads[i] for i in order] == [large, {"": "\n\t"}] and [got.people[i] for i in order] == [
        "Жанна 👩",
        "名前",
    ]
    assert gallery.search(rows(1), 1, camera="ворота").payloads[0, 0] == large
    assert gallery.forget("名前") == 1 and gallery.count(person="Жанна 👩") == 1


def opened_again(gallery: Gallery, folder: Path) -> Gallery:
    """The same rows through a new store object."""
    store: Any = gallery.store
    if isinstance(store, MemoryStore):
        gallery.save(folder / "g.safetensors")
        return Gallery.load(folder / "g.safetensors")
    if isinstance(store, EdgeStore):
        gallery.close()
        return Gallery.open(store.folder)
    kind = {QdrantStore: QdrantStore, MilvusStore: MilvusStore}[type(store)]
    return Gallery("", 0, store=kind.open(store._client, store._collection))


def test_a_store_of_a_newer_version_is_refused_and_kept(make: Any, tmp_path: Path) -> None:
    gallery = filled(make)
    meta = gallery.describe()
    gallery.describe(format=99)
    with pytest.raises(GalleryError, match=r"expected a gallery of format 1 or older, .* of format 99"):
        opened_again(gallery, tmp_path)
    store: Any = gallery.store
    if isinstance(store, EdgeStore):
        write_description(store.folder, meta)
    else:
        store.write_meta(meta)
    again = opened_again(gallery, tmp_path) if not isinstance(store, EdgeStore) else Gallery.open(store.folder)
    assert len(again) == 20 and again.rows([7]).people == ["p7"]
    if isinstance(store, EdgeStore):
        again.close()


def test_embeddings_of_other_shapes_never_exist() -> None:
    with pytest.raises(EmbeddingsError, match="expected masks"):
        Embeddings(features=np.ones((2, 3)), masks=np.ones((2, 4)), visibility=[1, 1], rows=[0, 1], fingerprint="f")
