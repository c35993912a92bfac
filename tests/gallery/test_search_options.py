"""Expansion, re-ranking, people and probabilities as options of a search: every store, against plain loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
from oracle import rows, scores

from dpm_edge import Embeddings, Gallery
from dpm_edge.errors import DataError, GalleryError
from dpm_edge.gallery.calibration import Band, Calibration

Make = Callable[..., Gallery]
N = 40


def halves(some: Embeddings) -> tuple[np.ndarray, np.ndarray]:
    return some.features.astype(np.float16).astype(np.float64), some.masks.astype(np.float16).astype(np.float64)


def filled(make: Make) -> tuple[Gallery, Embeddings, np.ndarray, np.ndarray]:
    """Rows 0…39 of people p0…p7 and of nobody known (p8 is ""), cameras 0…2, with qualities in their payloads."""
    some = rows(N, seed=1)
    people = np.array([f"p{i % 9}" if i % 9 < 8 else "" for i in range(N)])
    cameras = np.array([str(i % 4 % 3) for i in range(N)])
    gallery = make()
    gallery.add(some, people=people, cameras=cameras, ids=range(N), payloads=[{"quality": 1 + i % 3} for i in range(N)])
    return gallery, some, people, cameras


def band(**change: float) -> Band:
    same = {
        "low": 0.0,
        "threshold": 0.5,
        "true_match_rate": 0.9,
        "false_match_rate": 0.01,
        "slope": 8.0,
        "offset": -3.0,
    }
    return Band(**{**same, "decides": True, "same": 9, "different": 9, **change})  # type: ignore[arg-type]


def calibration(**change: object) -> Calibration:
    bands = [band(decides=False), band(low=0.6), band(low=0.9, threshold=0.4, slope=10.0)]
    same = {"fingerprint": "f", "metric": "masked", "wanted_false_match_rate": 0.01, "bands": bands}
    return Calibration(**{**same, **change})  # type: ignore[arg-type]


def test_an_expanded_query_finds_what_the_moved_one_would(make: Make) -> None:
    gallery, some, _, _ = filled(make)
    q, (t, m) = rows(3, seed=2), halves(some)
    s = scores(q.features, q.masks, t, m, "masked")
    moved = []
    for i in range(3):
        first = np.argsort(-s[i], kind="stable")[:4]
        x = q.features[i] + sum(max(s[i, j], 0) ** 3 * t[j] for j in first)
        moved.append(x / np.linalg.norm(x))
    want = np.argsort(-scores(np.array(moved), q.masks, t, m, "masked"), axis=1, kind="stable")[:, :7]
    got = gallery.search(q, 7, expand=4)
    np.testing.assert_array_equal(got.rows, want)
    np.testing.assert_allclose(got.similarity, np.take_along_axis(s, want, 1), atol=1e-5)
    assert (np.diff(got.score) <= 1e-6).all() and not np.allclose(got.score, got.similarity)


def jaccard(s: np.ndarray, among: np.ndarray, k: int) -> np.ndarray:
    """Agreement of neighbourhoods in sets and loops: weights exp(s − max), those of either side in common."""
    n = len(among)

    def near(row: np.ndarray) -> dict[int, float]:
        firsts = set(np.argsort(-row, kind="stable")[:k].tolist())
        mutual = [j for j in firsts if row[j] >= np.sort(among[j])[-k]]
        weights = {j: float(np.exp(row[j] - row.max())) for j in mutual}
        total = sum(weights.values()) or 1.0
        return {j: w / total for j, w in weights.items()}

    mine, out = near(s), np.zeros(n)
    for j in range(n):
        other = near(among[j])
        common = sum(min(mine[i], other[i]) for i in set(mine) & set(other))
        out[j] = common / max(sum(mine.values()) + sum(other.values()) - common, 1e-12)
    return out


def test_neighbourhoods_order_the_candidates(make: Make) -> None:
    gallery, some, _, _ = filled(make)
    q, (t, m) = rows(2, seed=3), halves(some)
    s, among = scores(q.features, q.masks, t, m, "masked"), scores(t, m, t, m, "masked")
    got = gallery.search(q, N, neighbours=5)
    for i in range(2):
        want = 0.3 * s[i] + 0.7 * jaccard(s[i], among, 5)
        np.testing.assert_allclose(got.score[i], np.sort(want)[::-1], atol=1e-4)
        np.testing.assert_allclose(got.score[i], want[got.rows[i]], atol=1e-4)
        np.testing.assert_allclose(got.similarity[i], s[i][got.rows[i]], atol=1e-5)
    assert (got.rows != gallery.search(q, N).rows).any()


def test_people_come_by_prototypes_of_their_clearest_rows_elsewhere(make: Make) -> None:
    gallery, some, people, cameras = filled(make)
    q, (t, m) = rows(2, seed=4), halves(some)
    s = scores(q.features, q.masks, t, m, "masked")
    got = gallery.search(q, 9, by="person", cap=1, exclude_same_camera=True, query_cameras=["0", "none"])
    for i, own in enumerate(("0", "none")):
        made = {}
        for person in [f"p{n}" for n in range(8)]:
            weight = some.visibility * np.array([1 + j % 3 for j in range(N)])
            chosen = []
            for camera in ("0", "1", "2"):
                here = np.flatnonzero((people == person) & (cameras == camera))
                if camera != own and len(here):
                    chosen.append(here[np.argmax(weight[here])])
            gate = weight[chosen][:, None] * m[chosen]
            made[person] = (gate * t[chosen]).sum(0) / gate.sum(0)
        near = scores(q.features[i : i + 1], q.masks[i : i + 1], np.array(list(made.values())), None, "masked")[0]
        order = np.argsort(-near)
        assert got.people[i].tolist() == [*np.array(list(made))[order], ""]
        np.testing.assert_allclose(got.score[i, :8], near[order], atol=1e-4)
        for row, person in zip(got.rows[i, :8], got.people[i]):
            nearest = np.where((people == person) & (cameras != own), s[i], -np.inf).argmax()
            assert row == nearest


def test_matches_carry_what_a_calibration_says(make: Make) -> None:
    gallery, *_ = filled(make)
    q = dataclasses.replace(rows(N, seed=1).take([5, 6, 7]), visibility=np.array([0.5, 0.7, 1.0], np.float32))
    known, plain = calibration(), gallery.search(q, 50)
    assert np.isnan(plain.probability).all() and (plain.decision == "").all()
    got = gallery.search(q, 50, calibration=known)
    s = got.similarity[:, :N].astype(np.float64)
    slope = np.array([8.0, 8.0, 10.0])[:, None]
    np.testing.assert_allclose(got.probability[:, :N], 1 / (1 + np.exp(3 - slope * s)), atol=1e-6)
    assert (got.decision[0, :N] == "too occluded to decide").all()
    np.testing.assert_array_equal(got.decision[1:, :N] == "same", s[1:] >= [[0.5], [0.4]])
    assert np.isnan(got.probability[:, N:]).all() and (got.decision[:, N:] == "").all()
    rare = gallery.search(q, 50, calibration=known, prior=0.01).probability[:, :N]
    odds = got.probability[:, :N] / (1 - got.probability[:, :N]) * 0.01 / 0.99
    np.testing.assert_allclose(rare, odds / (1 + odds), atol=1e-6)


def test_a_kept_calibration_speaks_for_its_metric_and_model_only(make: Make) -> None:
    gallery, *_ = filled(make)
    gallery.use_calibration(calibration())
    q = rows(2, seed=2)
    assert (gallery.search(q, 3).decision != "").all()
    assert (gallery.search(q, 3, metric="plain").decision == "").all()
    with pytest.raises(GalleryError, match=r"metric 'plain', got .* metric 'masked'"):
        gallery.search(q, 3, metric="plain", calibration=calibration())
    for act in (gallery.use_calibration, lambda one: gallery.search(q, 3, calibration=one)):
        with pytest.raises(GalleryError, match="of model other"):
            act(calibration(fingerprint="other"))
    with pytest.raises(DataError, match="got 1"):
        gallery.search(q, 3, prior=1)
    gallery.use_calibration(None)
    assert (gallery.search(q, 3).decision == "").all()


OPTIONS = ({"expand": 3}, {"neighbours": 4}, {"by": "person"})


@pytest.mark.parametrize("options", OPTIONS)
def test_an_empty_gallery_answers_with_empty_places(make: Make, options: dict) -> None:
    gallery = make()
    assert (gallery.search(rows(2), 3, **options).rows == -1).all()
    assert gallery.search(rows(0), 3, **options).rows.shape == (0, 3)


@pytest.mark.parametrize("options", OPTIONS)
def test_more_places_than_rows_leave_places_empty(make: Make, options: dict) -> None:
    gallery = make()
    gallery.add(rows(2), people=["a", "b"])
    got = gallery.search(rows(1), 200, **options)
    assert got.rows.shape == (1, 200) and got.found.sum() == 2 and got.people[0, 0] == "a"


@pytest.mark.parametrize("options", [{"by": "peopel"}, {"by": "person", "neighbours": 3}])
def test_by_something_else_or_by_person_with_neighbours_is_refused(options: dict) -> None:
    gallery = Gallery("f", 12)
    with pytest.raises(GalleryError, match="expected by='row'"):
        gallery.search(rows(1), 3, **options)


def test_a_folder_keeps_its_calibration(tmp_path: object) -> None:
    with Gallery.create(f"{tmp_path}/g", "f", 12) as gallery:
        gallery.add(rows(3), people=["a", "b", "c"])
        gallery.use_calibration(calibration())
    with Gallery.open(f"{tmp_path}/g") as gallery:
        assert (gallery.search(rows(1), 2).decision != "").all()
