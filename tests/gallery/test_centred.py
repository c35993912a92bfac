"""Searches with centre=True in every store, against plain loops in float64 without the package's search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_engine
from oracle import biased, rows, scores

from dpm_edge import Embeddings, Engine, Gallery
from dpm_edge.centring import SHRINK
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.calibration import Band, Calibration

Make = Callable[..., Gallery]


def means(features: np.ndarray, cameras: list[str]) -> dict[str, np.ndarray]:
    """The mean of each camera by loops, shrunk; that of all rows for "" and as None."""
    unit = [f / np.linalg.norm(f) for f in features.astype(np.float64)]
    site = sum(unit) / len(unit)
    out = {None: site, "": site}
    for camera in set(cameras) - {""}:
        own = [f for f, one in zip(unit, cameras) if one == camera]
        out[camera] = (sum(own) + SHRINK * site) / (len(own) + SHRINK)
    return out


def centred(features: np.ndarray, cameras: list[str], by: dict) -> np.ndarray:
    out = []
    for f, camera in zip(features.astype(np.float64), cameras):
        moved = f / np.linalg.norm(f) - by.get(camera, by[None])
        out.append(moved / np.linalg.norm(moved))
    return np.array(out).reshape(features.shape)


def halves(some: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    return some.features.astype(np.float16).astype(np.float64), some.masks.astype(np.float16).astype(np.float64)


N, Q = 60, 5


def filled(make: Make, **options: object) -> tuple[Gallery, np.ndarray, np.ndarray, list[str], Embeddings]:
    some, cameras = biased(N, 1)
    gallery = make(**options)
    people = [f"p{i % 9}" if i % 9 < 8 else "" for i in range(N)]
    gallery.add(some, people=people, cameras=cameras, ids=range(N), timestamps=np.arange(N) + 1e9)
    return gallery, *halves(some), cameras, some


def truth(
    q: Embeddings, q_cameras: list[str], t: np.ndarray, m: np.ndarray, cameras: list[str], metric: str
) -> np.ndarray:
    """(Q, N) similarities in the centred space."""
    by = means(t, cameras)
    return scores(centred(q.features, q_cameras, by), q.masks, centred(t, cameras, by), m, metric)


@pytest.mark.parametrize("metric", ["plain", "masked", "mutual"])
def test_a_centred_search_orders_as_loops_do(make: Make, metric: str) -> None:
    gallery, t, m, cameras, _ = filled(make)
    q, q_cameras = rows(Q, seed=2), ["a", "b", "", "never seen", "c"]
    s = truth(q, q_cameras, t, m, cameras, metric)
    got = gallery.search(q, 20, metric=metric, centre=True, query_cameras=q_cameras)
    order = np.argsort(-s, axis=1, kind="stable")[:, :20]
    np.testing.assert_array_equal(got.rows, order)
    np.testing.assert_allclose(got.similarity, np.take_along_axis(s, order, 1), atol=1e-6)
    assert (gallery.search(q, 20, metric=metric).rows != order).any()


def test_filters_act_on_a_centred_search(make: Make) -> None:
    gallery, t, m, cameras, some = filled(make)
    q, q_cameras = rows(Q, seed=3), ["a", "b", "", "c", "a"]
    s = truth(q, q_cameras, t, m, cameras, "masked")
    own = np.array([[bool(one) and one == other for other in cameras] for one in q_cameras])
    time = np.arange(N)
    cases: list[tuple[dict, np.ndarray]] = [
        ({"exclude_same_camera": True}, ~own),
        ({"camera": ["a", "c"]}, np.isin(cameras, ["a", "c"])[None] & np.ones_like(own)),
        ({"camera": "a", "exclude_same_camera": True}, (np.array(cameras) == "a")[None] & ~own),
        ({"min_visibility": 0.7}, (some.visibility >= 0.7)[None] & np.ones_like(own)),
        ({"since": 1e9 + 10, "until": 1e9 + 40}, ((time >= 10) & (time < 40))[None] & np.ones_like(own)),
    ]
    for options, allowed in cases:
        got = gallery.search(q, N, centre=True, query_cameras=q_cameras, **options)
        for i in range(Q):
            want = [j for j in np.argsort(-s[i], kind="stable") if allowed[i, j]]
            assert got.rows[i, : len(want)].tolist() == want, options
            assert (got.rows[i, len(want) :] == -1).all()


def test_rows_of_a_camera_that_the_first_candidates_lack_are_found(make: Make) -> None:
    """Camera a's bias points with the queries, so that its rows fill the first ten candidates; the nearest are b's."""
    draw, gallery = np.random.default_rng(11), make()
    cameras = ["a"] * 80 + ["b"] * 80
    t = draw.standard_normal((160, 12)).astype(np.float32)
    t[:80, 0] += 6
    t[80:, 0] -= 6
    some = Embeddings(
        features=(t / np.linalg.norm(t, axis=1, keepdims=True)).astype(np.float32),
        masks=np.ones((160, 12), np.float32),
        visibility=np.ones(160, np.float32),
        rows=np.arange(160),
        fingerprint="f",
    )
    gallery.add(some, people=["p"] * 160, cameras=cameras, ids=range(160))
    q = some.take(np.arange(80, 100))  # queries of a that look like rows of b: their bias points to b
    asked = Embeddings(**{**vars(q), "features": q.features * np.array([-1, *[1] * 11], np.float32)})
    s = truth(asked, ["a"] * 20, *halves(some), cameras, "plain")
    got = gallery.search(asked, 1, metric="plain", centre=True, query_cameras=["a"] * 20, candidates=10)
    first = s.argmax(1)
    assert (first >= 80).mean() > 0.3, "rows of b are the nearest of many"
    np.testing.assert_array_equal(got.rows[:, 0], first)


def test_an_expanded_query_moves_in_the_centred_space(make: Make) -> None:
    gallery, t, m, cameras, _ = filled(make)
    q, q_cameras = rows(3, seed=4), ["a", "", "c"]
    by = means(t, cameras)
    qc, tc = centred(q.features, q_cameras, by), centred(t, cameras, by)
    s = scores(qc, q.masks, tc, m, "masked")
    moved = []
    for i in range(3):
        first = np.argsort(-s[i], kind="stable")[:4]
        moved.append(qc[i] + sum(max(s[i, j], 0) ** 3 * tc[j] for j in first))
    want = np.argsort(-scores(np.array(moved), q.masks, tc, m, "masked"), axis=1, kind="stable")[:, :7]
    got = gallery.search(q, 7, expand=4, centre=True, query_cameras=q_cameras)
    np.testing.assert_array_equal(got.rows, want)
    np.testing.assert_allclose(got.similarity, np.take_along_axis(s, want, 1), atol=1e-5)


def test_neighbourhoods_and_people_are_those_of_the_centred_rows(make: Make) -> None:
    """Against a gallery in memory that was filled with rows that loops have centred."""
    gallery, t, m, cameras, some = filled(make)
    q, q_cameras = rows(3, seed=5), ["a", "b", ""]
    by = means(t, cameras)
    people = [f"p{i % 9}" if i % 9 < 8 else "" for i in range(N)]
    done = Gallery("f", 12)
    parts = {"masks": m, "features": centred(t, cameras, by)}
    done.add(Embeddings(**{**vars(some), **parts}), people=people, cameras=cameras, ids=range(N))
    asked = Embeddings(**{**vars(q), "features": centred(q.features, q_cameras, by)})
    own = {"exclude_same_camera": True, "query_cameras": q_cameras}
    for options in ({"neighbours": 5}, {"by": "person", "cap": 2}, {"by": "person", "expand": 3}):
        want, got = done.search(asked, 8, **own, **options), gallery.search(q, 8, centre=True, **own, **options)
        np.testing.assert_array_equal(got.rows, want.rows)
        np.testing.assert_allclose(got.score, want.score, atol=1e-4)
        np.testing.assert_allclose(got.similarity, want.similarity, atol=1e-5)


def test_without_masks_the_plain_and_masked_metrics_are_centred_too(make: Make) -> None:
    gallery, t, m, cameras, _ = filled(make, masks=False)
    q = rows(2, seed=6)
    for metric in ("plain", "masked"):
        s = truth(q, ["a", "b"], t, m, cameras, metric)
        got = gallery.search(q, 9, metric=metric, centre=True, query_cameras=["a", "b"])
        np.testing.assert_array_equal(got.rows, np.argsort(-s, axis=1, kind="stable")[:, :9])


def test_removed_rows_leave_the_means_at_once(make: Make) -> None:
    gallery, t, m, cameras, _ = filled(make)
    q, q_cameras = rows(2, seed=7), ["a", "b"]
    ask = {"metric": "plain", "centre": True, "query_cameras": q_cameras}
    gallery.search(q, 5, **ask)
    left = np.arange(N)
    for remove, gone in (
        (lambda: gallery.delete([3, 4, 50]), [3, 4, 50]),
        (lambda: gallery.forget("p1"), [i for i in range(N) if i % 9 == 1]),
        (lambda: gallery.expire(1, now=1e9 + 21), list(range(20))),
    ):
        remove()
        left = np.setdiff1d(left, gone)
        s = truth(q, q_cameras, t[left], m[left], [cameras[i] for i in left], "plain")
        np.testing.assert_array_equal(gallery.search(q, 5, **ask).rows, left[np.argsort(-s, axis=1)[:, :5]])


def test_means_are_renewed_once_a_camera_has_grown_by_a_tenth_of_its_rows_and_kappa(make: Make) -> None:
    gallery, t, m, cameras, _ = filled(make)
    q = rows(1, seed=8)
    ask = {"metric": "plain", "centre": True, "query_cameras": ["a"]}
    gallery.search(q, 1, **ask)
    room = int((cameras.count("a") + SHRINK) * 0.1)  # so many more rows change no mean
    more, _ = biased(room + 1, 9)
    more_t, more_m = halves(more)
    gallery.add(more.take(np.arange(room)), people=["x"] * room, cameras=["a"] * room, ids=range(N, N + room))
    here, one = [*cameras, *["a"] * (room + 1)], means(t, cameras)
    both_t, both_m = np.concatenate([t, more_t]), np.concatenate([m, more_m])
    asked = centred(q.features, ["a"], one)
    before = scores(asked, q.masks, centred(both_t[:-1], here[:-1], one), None, "plain")[0]
    got = gallery.search(q, N, **ask)
    np.testing.assert_allclose(got.similarity[0], np.sort(before)[::-1][:N], atol=1e-6)
    gallery.add(more.take(np.array([room])), people=["x"], cameras=["a"], ids=[N + room])
    after = truth(q, ["a"], both_t, both_m, here, "plain")[0]
    got = gallery.search(q, N, **ask)
    np.testing.assert_allclose(got.similarity[0], np.sort(after)[::-1][:N], atol=1e-6)


def test_an_empty_gallery_and_no_queries_give_empty_places(make: Make) -> None:
    gallery = make()
    for count in (0, 2):
        for options in ({}, {"expand": 2}, {"neighbours": 2}, {"by": "person"}):
            got = gallery.search(rows(count), 3, centre=True, query_cameras=["a"] * count, **options)
            assert got.rows.shape == (count, 3) and (got.rows == -1).all()


def test_centring_without_cameras_of_the_queries_is_refused() -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(GalleryError, match=r"expected 2 query_cameras for centre.*got none"):
        gallery.search(rows(2), 3, centre=True)
    with pytest.raises(GalleryError, match=r"expected 2 query_cameras.*got 1"):
        gallery.search(rows(2), 3, centre=True, query_cameras=["a"])


def calibration(centred: bool) -> Calibration:
    band = Band(
        low=0,
        threshold=0.5,
        true_match_rate=1,
        false_match_rate=0,
        slope=1,
        offset=0,
        decides=True,
        same=2,
        different=2,
    )
    return Calibration(fingerprint="f", metric="masked", wanted_false_match_rate=0.1, bands=[band], centred=centred)


@pytest.mark.parametrize("centre", [True, False])
def test_a_calibration_of_the_other_space_is_refused(centre: bool) -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(3), people=["a", "b", "c"])
    ask = {"centre": centre, "query_cameras": ["x"]}
    assert (gallery.search(rows(1), 2, calibration=calibration(centre), **ask).decision != "").all()
    with pytest.raises(GalleryError, match=r"Search with centre=" + str(not centre)):
        gallery.search(rows(1), 2, calibration=calibration(not centre), **ask)


def test_a_kept_calibration_speaks_for_its_space_only(tmp_path: Path) -> None:
    calibration(True).save(tmp_path / "c.json")
    with Gallery.create(tmp_path / "g", "f", 12) as gallery:
        gallery.add(rows(3), people=["a", "b", "c"])
        gallery.use_calibration(Calibration.load(tmp_path / "c.json"))
    with Gallery.open(tmp_path / "g") as gallery:
        assert (gallery.search(rows(1), 2).decision == "").all()
        assert (gallery.search(rows(1), 2, centre=True, query_cameras=[""]).decision != "").all()


def test_a_calibration_of_an_earlier_version_is_of_features_that_are_not_centred(tmp_path: Path) -> None:
    calibration(False).save(tmp_path / "c.json")
    old = json.loads((tmp_path / "c.json").read_text())
    del old["centred"]
    (tmp_path / "c.json").write_text(json.dumps(old))
    assert not Calibration.load(tmp_path / "c.json").centred


def test_people_of_a_frame_are_centred(tmp_path: Path) -> None:
    tiny_engine.write_engine(tmp_path / "engine")
    frame = np.random.default_rng(18).integers(0, 256, (90, 120, 3), np.uint8)
    boxes = np.array([[x, 5, x + 30, 80] for x in (0, 40, 85)])
    with Engine.load(tmp_path / "engine") as engine:
        seen, gallery = engine.embed(frame, boxes), Gallery.for_engine(engine)
        gallery.add(seen, people=["a", "b", "c"], cameras=["x", "x", "y"])
        ask = {"centre": True, "query_cameras": ["x", "", "y"]}
        _, got = engine.search(frame, boxes, gallery, k=3, **ask)
        want = gallery.search(seen, 3, **ask)
    np.testing.assert_array_equal(got.rows, want.rows)
    np.testing.assert_allclose(got.similarity, want.similarity, atol=1e-5)
