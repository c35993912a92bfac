"""Searches with centre=True in every store, against plain loops in float64 without the package's search."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_engine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import rows, scores
from qdrant_client import QdrantClient

from dpm_edge import Embeddings, Engine, Gallery
from dpm_edge.centring import SHRINK, CameraStatistics
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.calibration import Band, Calibration
from dpm_edge.gallery.stores import qdrant, qdrant_edge
from dpm_edge.gallery.stores.store import new_meta

Make = Callable[..., Gallery]
CAMERAS = ("a", "b", "c", "")


def biased(n: int, seed: int = 0, d: int = 12) -> tuple[Embeddings, list[str]]:
    """n rows, each moved by its camera's own bias."""
    rng = np.random.default_rng(seed)
    cameras = [CAMERAS[i] for i in rng.integers(0, len(CAMERAS), n)]
    bias = dict(zip(CAMERAS, np.random.default_rng(99).standard_normal((len(CAMERAS), d)) * 0.4))
    some = rows(n, d, seed)
    moved = some.features + np.array([bias[one] for one in cameras]).reshape(n, d)
    features = moved / np.linalg.norm(moved, axis=1, keepdims=True)
    return Embeddings(**{**vars(some), "features": features}), cameras


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


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_statistics_in_memory_are_those_of_the_rows_as_they_are_kept(dtype: str) -> None:
    gallery = Gallery("f", 12, dtype)
    known = gallery.camera_statistics()
    assert known.counts == {}
    some, cameras = biased(300, 10)
    for part in (slice(0, 1), slice(1, 290), slice(290, 300)):
        gallery.add(some.take(np.arange(300)[part]), people=[""] * len(cameras[part]), cameras=cameras[part])
    same_as_rows(gallery)


def same_as_rows(gallery: Gallery) -> None:
    """The kept statistics are those of the rows, counted by loops."""
    kept, there = gallery.camera_statistics(), gallery.rows()
    counts: dict[str, int] = {}
    sums: dict[str, np.ndarray] = {}
    for f, camera in zip(there.features.astype(np.float64), there.cameras):
        counts[camera] = counts.get(camera, 0) + 1
        sums[camera] = sums.get(camera, 0) + f / np.linalg.norm(f)
    assert kept.counts == counts
    for camera, total in sums.items():
        np.testing.assert_allclose(kept.sums[camera], total, atol=1e-9)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 20)),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("forget"), st.integers(0, 2)),
        st.tuples(st.just("look"), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("merge"), st.integers(1, 5)),
    ),
    max_size=12,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_statistics_follow_any_sequence_of_changes(steps: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("any") / "g"
    folder, memory = Gallery.create(place, "f", 12), Gallery("f", 12, "float16")
    try:
        for seed, (what, count) in enumerate(steps):
            some, cameras = biased(count if what in ("add", "merge") else 0, seed)
            people = [f"p{i % 3}" for i in range(len(some))]
            if what == "reopen":
                folder.close()
                folder = Gallery.open(place)
            for gallery in (folder, memory):
                if what == "add":
                    gallery.add(some, people=people, cameras=cameras)
                elif what == "merge":
                    other = Gallery("f", 12)
                    other.add(some, people=people, cameras=cameras)
                    gallery.merge(other)
                elif what == "delete":
                    gallery.delete(gallery.ids()[:count])
                elif what == "forget":
                    gallery.forget(f"p{count}")
                elif what == "look":
                    same_as_rows(gallery)
        same_as_rows(folder)
        same_as_rows(memory)
    finally:
        folder.close()


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After it is called, no folder reads all of its rows' vectors."""

    def refuse(self: object, where: object, *, vectors: bool) -> object:
        raise AssertionError("every row is read")

    return lambda: monkeypatch.setattr(qdrant_edge.EdgeStore, "scan", refuse)


def closed_folder(place: Path) -> Path:
    with Gallery.create(place, "f", 12) as gallery:
        some, cameras = biased(30, 11)
        gallery.add(some, people=[f"p{i % 3}" for i in range(30)], cameras=cameras)
        gallery.camera_statistics()
    assert (place / "cameras.json").exists()
    return place


def test_a_closed_folder_opens_with_its_statistics(tmp_path: Path, no_reading: Callable) -> None:
    place = closed_folder(tmp_path / "g")
    with Gallery.open(place) as gallery:
        want = gallery.camera_statistics()
        gallery.snapshot(tmp_path / "copy")
    no_reading()
    for other in (place, tmp_path / "copy"):
        with Gallery.open(other, read_only=True) as gallery:
            assert gallery.camera_statistics().counts == want.counts
    more, cameras = biased(2, 12)
    with Gallery.open(place) as gallery:
        gallery.add(more, people=["", ""], cameras=cameras)
        assert not (place / "cameras.json").exists()
    with Gallery.open(place) as gallery:
        assert sum(gallery.camera_statistics().counts.values()) == 32


def test_a_folder_without_statistics_reads_them_from_its_rows(tmp_path: Path) -> None:
    place = closed_folder(tmp_path / "g")
    for damage in (lambda file: file.unlink(), lambda file: file.write_text("{"), lambda file: file.write_text("[]")):
        damage(place / "cameras.json")
        with Gallery.open(place) as gallery:
            same_as_rows(gallery)
        assert (place / "cameras.json").exists()


def test_statistics_from_before_a_change_by_an_older_version_are_not_taken(tmp_path: Path) -> None:
    place = closed_folder(tmp_path / "g")
    kept = (place / "cameras.json").read_bytes()
    with Gallery.open(place) as gallery:
        some, cameras = biased(5, 13)
        gallery.delete(gallery.ids()[:5])
        gallery.add(some, people=[""] * 5, cameras=cameras)
    (place / "cameras.json").write_bytes(kept)  # as many rows, but others
    with Gallery.open(place) as gallery:
        same_as_rows(gallery)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from oracle import rows
from dpm_edge import Gallery
gallery = Gallery.open({place!r})
gallery.camera_statistics()
gallery.delete(gallery.ids()[:7])
gallery.add(rows(7, seed=14), people=[""] * 7, cameras=["a"] * 7)
print("changed", flush=True)
sys.stdin.read()
"""


def test_statistics_are_right_after_a_writer_was_killed(tmp_path: Path) -> None:
    place = closed_folder(tmp_path / "g")
    code = KILLED.format(tests=str(Path(__file__).parent), place=str(place))
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"changed\n"
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    with Gallery.open(place) as gallery:
        assert len(gallery) == 30
        same_as_rows(gallery)


def test_nothing_of_a_forgotten_person_is_in_the_folders_statistics(tmp_path: Path) -> None:
    place = tmp_path / "g"
    some, _ = biased(4, 15)
    with Gallery.create(place, "f", 12) as gallery:
        gallery.add(some, people=["anna", "b", "c", "d"], cameras=["hall", "x", "x", "x"])
        gallery.camera_statistics()
    assert "hall" in (place / "cameras.json").read_text()
    with Gallery.open(place) as gallery:
        gallery.forget("anna")
        assert not (place / "cameras.json").exists()
        same_as_rows(gallery)
    assert "hall" not in (place / "cameras.json").read_text()


def test_a_failed_add_leaves_the_statistics_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.create(tmp_path / "g", "f", 12) as gallery:
        some, cameras = biased(10, 16)
        gallery.add(some, people=[""] * 10, cameras=cameras)
        gallery.camera_statistics()
        with monkeypatch.context() as broken:

            def refuse(*_: object) -> None:
                raise GalleryError("expected room, got none")

            broken.setattr(qdrant_edge.EdgeStore, "_update", refuse)
            with pytest.raises(GalleryError):
                gallery.add(some, people=[""] * 10, cameras=cameras)
        same_as_rows(gallery)


def test_a_copy_of_the_statistics_is_saved_and_read(tmp_path: Path) -> None:
    gallery = Gallery("f", 12)
    some, cameras = biased(10, 17)
    gallery.add(some, people=[""] * 10, cameras=cameras)
    known = gallery.camera_statistics()
    known.save(tmp_path / "site.json")
    assert CameraStatistics.load(tmp_path / "site.json").counts == known.counts
    known.counts.clear()
    assert gallery.camera_statistics().counts


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


def test_rows_of_another_writer_are_found_and_counted_once_they_are_more_than_a_tenth() -> None:
    client, meta = QdrantClient(":memory:"), new_meta("f", 12, True)
    ours = Gallery("f", 12, store=qdrant.QdrantStore.create(client, "g", meta))
    theirs = Gallery("f", 12, store=qdrant.QdrantStore(client, "g", meta))
    some, cameras = biased(40, 19)
    ours.add(some, people=[""] * 40, cameras=cameras, ids=range(40))
    ask = {"centre": True, "query_cameras": ["a"]}
    assert ours.search(rows(1), 60, **ask).found.sum() == 40
    theirs.add(rows(2, seed=20), people=["", ""], cameras=["new", "new"], ids=[40, 41])
    assert set(ours.search(rows(1), 60, **ask).rows[0, :42].tolist()) == set(range(42))
    assert "new" not in ours.camera_statistics().counts
    theirs.add(rows(3, seed=21), people=[""] * 3, cameras=["new"] * 3, ids=[42, 43, 44])
    assert ours.search(rows(1), 60, **ask).found.sum() == 45
    same_as_rows(ours)
