"""One contract for every store: the same calls give the same answers, and bad input changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import rows, scores

from dpm_edge import Embeddings, Gallery
from dpm_edge.errors import DpmError, GalleryError

Make = Callable[..., Gallery]


def filled(make: Make, n: int = 30, **more: object) -> Gallery:
    """n rows: people p0…p6, cameras 0…2, one second apart, every tenth without a time."""
    gallery = make()
    times = [float("nan") if i % 10 == 9 else 1000.0 + i for i in range(n)]
    gallery.add(
        rows(n, seed=1),
        people=[f"p{i % 7}" for i in range(n)],
        cameras=[i % 3 for i in range(n)],
        timestamps=times,
        ids=range(n),
        **more,
    )
    return gallery


@pytest.mark.parametrize("metric", ["plain", "masked", "mutual"])
def test_search_is_the_formulas(make: Make, metric: str) -> None:
    gallery, q = filled(make), rows(3, seed=2)
    held = rows(30, seed=1)
    halves = held.features.astype(np.float16), held.masks.astype(np.float16)
    s = scores(q.features, q.masks, *halves, metric)
    for k in (1, 8, 50):
        got = gallery.search(q, k, metric=metric)
        order = np.argsort(-s, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(got.rows[:, :30], order)
        np.testing.assert_allclose(got.similarity[:, :30], np.take_along_axis(s, order, 1), atol=1e-5)
        assert (got.rows[:, 30:] == -1).all() and (got.people[:, 30:] == "").all()
        np.testing.assert_array_equal(got.people[:, :30], np.array([f"p{i % 7}" for i in range(30)])[order])
        assert got.sources[0, 0] == f"{order[0, 0]}.jpg"


def test_filters(make: Make) -> None:
    gallery, q = filled(make), rows(3, seed=2)
    visible = rows(30, seed=1).visibility
    n = np.arange(30)
    known = n % 10 != 9
    cases = [
        ({"camera": 1}, n % 3 == 1),
        ({"camera": ["0", "2"]}, n % 3 != 1),
        ({"camera": "never seen"}, n < 0),
        ({"since": 1005}, known & (n >= 5)),
        ({"until": 1005}, known & (n < 5)),
        ({"since": 1003, "until": 1020, "camera": "2"}, known & (n >= 3) & (n < 20) & (n % 3 == 2)),
        ({"min_visibility": float(visible[4])}, visible >= visible[4]),
    ]
    for asked, wanted in cases:
        got = gallery.search(q, 30, **asked)
        for found in got.rows:
            assert sorted(found[found >= 0]) == np.flatnonzero(wanted).tolist(), asked
    got = gallery.search(q, 30, exclude_same_camera=True, query_cameras=[0, 1, "elsewhere"])
    assert [sorted(set(c[c != ""])) for c in got.cameras] == [["1", "2"], ["0", "2"], ["0", "1", "2"]]


def test_labels_come_back_as_they_went_in(make: Make) -> None:
    gallery = make()
    payload = {"note": "þ“'\\\"\n☃" * 500, "n": [1, 2.5, None, True], "x" * 4000: {"": ""}}
    ids = gallery.add(
        rows(2),
        people=['Zoë O\'Neil "x"', ""],
        cameras=["Tor/3 ü", 4],
        timestamps=[1.7e9 + 0.25, float("nan")],
        tracks=["t'1", ""],
        boxes=[[1, 2, 3.5, 4], [np.nan] * 4],
        payloads=[payload, {}],
    )
    got = gallery.rows(ids)
    assert got.ids.tolist() == ids.tolist()
    assert (got.people, got.cameras, got.tracks) == (['Zoë O\'Neil "x"', ""], ["Tor/3 ü", "4"], ["t'1", ""])
    np.testing.assert_array_equal(got.timestamps, [1.7e9 + 0.25, np.nan])
    np.testing.assert_array_equal(got.boxes, [[1, 2, 3.5, 4], [np.nan] * 4])
    assert got.payloads == [payload, {}] and got.sources == ["0.jpg", "1.jpg"]
    np.testing.assert_array_equal(got.visibility, rows(2).visibility)
    np.testing.assert_array_equal(got.features.astype(np.float16), rows(2).features.astype(np.float16))
    np.testing.assert_array_equal(got.masks.astype(np.float16), rows(2).masks.astype(np.float16))
    assert gallery.count(person='Zoë O\'Neil "x"') == 1 == gallery.count(camera="Tor/3 ü")
    assert gallery.search(rows(1), 2, camera="Tor/3 ü").payloads[0, 0] == payload
    assert gallery.forget('Zoë O\'Neil "x"') == 1 and len(gallery) == 1


def test_deleting(make: Make) -> None:
    gallery = filled(make)
    assert gallery.delete([3, 3, 4, 99]) == 2 and len(gallery) == 28
    assert gallery.forget("p3") == 3 and gallery.count(person="p3") == 0  # 3 was one of p3's four left after delete
    assert gallery.expire(5, now=1015) == len([i for i in range(10) if i % 10 != 9 and i not in (3, 4) and i % 7 != 3])
    assert gallery.expire(5, now=0) == 0
    gallery.retain("1", 10)
    gallery.retain("2", 1)
    gallery.retain("2", None)
    before = gallery.count(camera=1), gallery.count(camera=2)
    gone = gallery.expire(now=1030)
    assert (gallery.count(camera=1), gallery.count(camera=2)) == (before[0] - gone, before[1]) and gone > 0
    assert set(gallery.search(rows(1), 30).rows[0]) - {-1} == set(gallery.rows().ids)


def test_merge_export_and_import(make: Make, tmp_path: object) -> None:
    gallery, other = filled(make), make()
    other.add(rows(4, seed=9), people=["new"] * 4, payloads=[{"i": i} for i in range(4)])
    assert gallery.merge(other) == 4 and len(gallery) == 34 and gallery.count(person="new") == 4
    assert gallery.export(tmp_path / "g.parquet") == 34
    back = Gallery("f", 12, "float16")
    assert back.import_(tmp_path / "g.parquet") == 34
    want, got = gallery.rows(), back.rows()
    by_source = np.argsort([f"{s}{p}" for s, p in zip(got.sources, got.people)])
    assert len(by_source) == 34 and sorted(got.sources) == sorted(want.sources)
    np.testing.assert_array_equal(np.sort(got.features, axis=0), np.sort(want.features.astype(np.float16), axis=0))
    with pytest.raises(GalleryError, match="model"):
        Gallery("g", 12).import_(tmp_path / "g.parquet")


def test_bad_input_changes_nothing(make: Make) -> None:
    gallery = filled(make)
    bad = [
        (rows(1, fingerprint="g"), {}, "model"),
        (rows(1, d=5), {}, "dimensions"),
        (rows(2), {}, "expected a list of 2 people|expected 2 people"),
        (rows(1), {"ids": [3]}, "taken already"),
        (rows(1), {"ids": [-1]}, "0 or more"),
        (rows(1), {"people": ["x" * 600]}, "got 600 bytes"),
        (rows(1), {"payloads": [{"x": "y" * 70_000}]}, "60000 bytes at most"),
        (rows(1), {"payloads": [{"x": object()}]}, "JSON"),
        (rows(1), {"payloads": ["text"]}, "dict"),
        (rows(1), {"timestamps": [float("inf")]}, "got inf"),
        (rows(1), {"boxes": [[1, 2, 3]]}, "boxes"),
        (dataclasses.replace(rows(1), masks=rows(1).masks + 1), {}, r"0\.\.1"),
    ]
    for embeddings, more, says in bad:
        with pytest.raises(GalleryError, match=says):
            gallery.add(embeddings, **{"people": ["x"], **more})
    with pytest.raises(DpmError, match="NaN"):
        Embeddings(features=[[np.nan]], masks=[[1]], visibility=[1], rows=[0], fingerprint="f")
    with pytest.raises(GalleryError, match="k of 1 or more"):
        gallery.search(rows(1), 0)
    assert len(gallery) == 30


def test_empty_gallery_zero_mask_and_no_rows(make: Make) -> None:
    gallery = make()
    assert (gallery.search(rows(2), 3).rows == -1).all() and gallery.expire(1) == gallery.forget("x") == 0
    assert len(gallery.add(rows(0), people=[])) == 0 and len(gallery.rows()) == 0
    gallery.add(rows(3), people=["a", "b", "c"], timestamps=[5.0, 4.0, -3.0], ids=[7, 5, 6])
    zero = dataclasses.replace(rows(1), masks=np.zeros((1, 12)))
    got = gallery.search(zero, 4)
    assert got.rows[0].tolist() == [5, 6, 7, -1] and (got.similarity[0, :3] == 0).all()


def test_a_gallery_without_masks_refuses_the_mutual_metric(make: Make) -> None:
    gallery = make(masks=False)
    gallery.add(rows(4), people=["a", "b", "c", "d"])
    assert gallery.search(rows(1), 2).found.all() and gallery.rows().masks is None
    with pytest.raises(GalleryError, match="masks=False"):
        gallery.search(rows(1), 2, metric="mutual")


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 6), st.integers(0, 50)),
        st.tuples(st.just("delete"), st.integers(0, 40), st.integers(0, 40)),
        st.tuples(st.just("forget"), st.integers(0, 3), st.none()),
        st.tuples(st.just("expire"), st.integers(0, 50), st.sampled_from([None, "0", "1"])),
        st.tuples(st.just("search"), st.integers(1, 40), st.sampled_from(["plain", "masked", "mutual"])),
    ),
    min_size=3,
    max_size=14,
)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=STEPS, seed=st.integers(0, 1000))
def test_any_sequence_answers_like_a_list_of_rows(make: Any, steps: list[tuple], seed: int) -> None:
    gallery, rng = make(6), np.random.default_rng(seed)
    held: dict[int, dict] = {}
    for number, (step, a, b) in enumerate(steps):
        if step == "add":
            some = rows(a, 6, seed=seed * 100 + number)
            if b % 5 == 0:  # rows that tie
                some = dataclasses.replace(some, features=np.tile(some.features[:1], (a, 1)))
            people, cameras = rng.integers(0, 4, a), rng.integers(0, 3, a)
            ids = gallery.add(some, people=people, cameras=cameras, timestamps=[float(b)] * a)
            for i in range(a):
                held[int(ids[i])] = {
                    "f": some.features[i].astype(np.float16),
                    "m": some.masks[i].astype(np.float16),
                    "person": str(people[i]),
                    "camera": str(cameras[i]),
                    "time": b,
                }
        elif step == "delete":
            names = sorted(held)[a : a + b]
            assert gallery.delete(names) == len(names)
            held = {i: row for i, row in held.items() if i not in names}
        elif step == "forget":
            gallery.forget(a)
            held = {i: row for i, row in held.items() if row["person"] != str(a)}
        elif step == "expire":
            gallery.expire(50 - a, camera=b, now=50)
            held = {i: row for i, row in held.items() if not (row["time"] < a and b in (None, row["camera"]))}
        else:
            q = rows(2, 6, seed=seed + number)
            got = gallery.search(q, a, metric=b, since=3, exclude_same_camera=True, query_cameras=["0", "9"])
            for i, own in enumerate(("0", "9")):
                there = [(n, row) for n, row in sorted(held.items()) if row["time"] >= 3 and row["camera"] != own]
                names = np.array([n for n, _ in there], np.int64)
                if len(there):
                    f, m = np.stack([row["f"] for _, row in there]), np.stack([row["m"] for _, row in there])
                    s = scores(q.features[i : i + 1], q.masks[i : i + 1], f, m, b)[0]
                    names = names[np.argsort(-np.round(s, 12), kind="stable")][:a]
                assert got.rows[i][got.rows[i] >= 0].tolist() == names.tolist()
    assert len(gallery) == len(held)
    make.give_back(gallery)
