"""Recall, calibration and identities: each against something counted by hand or known from how the data were made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from oracle import rows, scores

from dpm_edge import Gallery
from dpm_edge.errors import DataError, GalleryError
from dpm_edge.gallery.calibration import Calibration, calibrate
from dpm_edge.gallery.search.prototypes import prototypes
from dpm_edge.gallery.search.recall import brute_force, check_recall
from dpm_edge.gallery.search.rerank import expand, k_reciprocal


def test_brute_force_is_the_full_sort_of_any_store(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", "f", 12) as gallery:
        ids = gallery.add(rows(2500, seed=1), people=["x"] * 2500)
        q = rows(4, seed=2)
        s = scores(q.features, q.masks, rows(2500, seed=1).features.astype(np.float16), None, "masked")
        want = np.argsort(-s, axis=1, kind="stable")[:, :7]
        np.testing.assert_array_equal(brute_force(gallery, q, 7), ids[want])
        found = check_recall(gallery, queries=q, k=7, target=1.0)
        for row in found["measured"]:
            got = gallery.search(q, 7, candidates=row["candidates"]).rows
            share = np.mean([len(set(g) & set(ids[w])) / 7 for g, w in zip(got, want)])
            assert row["recall"] == pytest.approx(share, abs=1e-5)
        assert found["measured"][0]["recall"] < 1, "masks must matter in this test"
        with pytest.raises(GalleryError, match="empty"), Gallery.create(tmp_path / "e", "f", 12) as empty:
            check_recall(empty)


def pairs(seed: int = 0, n: int = 40_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Similarities whose strangers spread wider, and whose matches are farther off, where less is seen."""
    rng = np.random.default_rng(seed)
    visibility, same = rng.uniform(0, 1, n), rng.random(n) < 0.3
    spread = 0.3 - 0.2 * visibility
    return np.where(same, 0.4 + 0.5 * visibility, 0.0) + spread * rng.standard_normal(n), same, visibility


def test_thresholds_hold_their_rate_on_other_pairs_and_fall_with_visibility(tmp_path: Path) -> None:
    made = calibrate(*pairs(0), fingerprint="f", false_match_rate=0.01, bands=4)
    s, same, visibility = pairs(1)
    at = made.band_of(visibility)
    for number, band in enumerate(made.bands):
        strangers = s[(at == number) & ~same]
        assert (strangers >= band.threshold).mean() == pytest.approx(0.01, abs=0.006)
        assert band.false_match_rate <= 0.01
    thresholds = [band.threshold for band in made.bands]
    assert thresholds == sorted(thresholds, reverse=True)
    decided = made.decide(s, visibility)
    assert ((decided == "same") == (s >= np.array(thresholds)[at])).all()
    made.save(tmp_path / "c.json")
    assert Calibration.load(tmp_path / "c.json") == made


def test_probabilities_are_frequencies() -> None:
    s, same, visibility = pairs(2)
    made = calibrate(s, same, visibility, fingerprint="f", false_match_rate=0.01, bands=4)
    s, same, visibility = pairs(3)
    p = made.probability(s, visibility)
    weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (p >= low) & (p < low + 0.2)
        assert np.average(same[here], weights=weight[here]) == pytest.approx(
            np.average(p[here], weights=weight[here]), abs=0.08
        )


def test_a_band_that_finds_nobody_does_not_decide_and_too_few_pairs_are_refused() -> None:
    s, same, visibility = pairs(4)
    hidden = visibility < 0.25
    s = np.where(hidden, np.random.default_rng(0).standard_normal(len(s)), s)
    made = calibrate(s, same, visibility, fingerprint="f", false_match_rate=0.01, bands=4)
    assert [band.decides for band in made.bands] == [False, True, True, True]
    assert made.decide(5.0, 0.1) == "too occluded to decide" and made.decide(5.0, 0.9) == "same"
    with pytest.raises(DataError, match="10000 and 2 at least"):
        calibrate(s[:900], same[:900], visibility[:900], fingerprint="f", false_match_rate=1e-4)


def test_a_broken_calibration_is_named(tmp_path: Path) -> None:
    for text in ("{", "{}", '{"format": 9}'):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(DataError, match=r"calibration|format 9"):
            Calibration.load(tmp_path / "c.json")


def people(seed: int = 0, count: int = 12, each: int = 6, d: int = 64, share: float = 0.5) -> tuple:
    """Pictures of people of whom a random share of the dimensions is seen; the others show noise."""
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((count, d))
    person = np.repeat(np.arange(count), each)
    seen = rng.random((len(person), d)) < share
    noise = rng.standard_normal((len(person), d))
    features = np.where(seen, truth[person] + 0.5 * noise, 1.5 * noise)
    some = rows(len(person), d)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    some = dataclasses.replace(
        some, features=features, masks=np.where(seen, 0.95, 0.05), visibility=np.ones(len(person))
    )
    return some, person, truth


def test_a_prototype_is_nearer_to_the_truth_than_its_pictures_and_than_their_plain_mean() -> None:
    some, person, truth = people()
    made, names = prototypes(some, [f"{p:02d}" for p in person])
    assert names == [f"{p:02d}" for p in range(12)] and made.rows.tolist() == [6] * 12
    unit = truth / np.linalg.norm(truth, axis=1, keepdims=True)
    near = (made.features * unit).sum(1)
    plain = np.stack([some.features[person == p].mean(0) for p in range(12)])
    plain = (plain / np.linalg.norm(plain, axis=1, keepdims=True) * unit).sum(1)
    assert (near > (some.features * unit[person]).sum(1).reshape(12, 6).max(1)).all() and near.mean() > plain.mean()
    capped, _ = prototypes(some, [f"{p:02d}" for p in person], ["a"] * 36 + ["b"] * 36, cap=2)
    assert capped.rows.tolist() == [2] * 12


def rank1(s: np.ndarray, q: np.ndarray, t: np.ndarray) -> float:
    return float((t[s.argmax(1)] == q).mean())


def mean_precision(s: np.ndarray, q: np.ndarray, t: np.ndarray) -> float:
    hits = t[np.argsort(-s, axis=1)] == q[:, None]
    return float(np.mean([(np.cumsum(h)[h] / (np.flatnonzero(h) + 1)).mean() for h in hits]))


def test_reranking_and_expansion_raise_the_mean_precision_of_pictures_in_clusters() -> None:
    some, person, _ = people(1, count=20, each=8)
    asked, held = np.arange(0, 160, 8), np.setdiff1d(np.arange(160), np.arange(0, 160, 8))
    f = some.features
    s, among = f[asked] @ f[held].T, f[held] @ f[held].T
    before = mean_precision(s, person[asked], person[held])
    assert mean_precision(k_reciprocal(s, among, k=7), person[asked], person[held]) > before + 0.01
    best = np.argsort(-s, axis=1)[:, :4]
    moved = expand(f[asked], f[held][best], np.take_along_axis(s, best, 1))
    assert mean_precision(moved @ f[held].T, person[asked], person[held]) > before + 0.01
    np.testing.assert_array_equal(k_reciprocal(s, among, k=7, share=1.0), s.astype(np.float32))


@pytest.mark.parametrize(("share", "d"), [(0.15, 48), (0.25, 48), (0.5, 48), (0.15, 768)])
def test_dividing_by_a_small_overlap_hands_no_match_to_strangers(share: float, d: int) -> None:
    """Binary masks that share two or three dimensions, where a stranger may reach 1 by chance: no worse than masked."""
    some, person, _ = people(2, count=60, each=4, d=d, share=share)
    binary = dataclasses.replace(some, masks=(some.masks > 0.5).astype(np.float32))
    asked = np.arange(0, 240, 4)
    held = np.setdiff1d(np.arange(240), asked)
    gallery = Gallery("f", d)
    gallery.add(binary.take(held), people=person[held])
    right = {}
    for metric in ("masked", "mutual"):
        found = gallery.search(binary.take(asked), 1, metric=metric).people[:, 0]
        right[metric] = float((found == person[asked].astype(str)).mean())
    assert right["mutual"] >= right["masked"], right
