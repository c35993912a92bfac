"""Recall of candidates against brute force, and brute force against a full sort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle import rows, scores

from dpm_edge import Gallery
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.search.recall import brute_force, check_recall


def gallery_and_truth(folder: Path) -> tuple[Gallery, np.ndarray]:
    """A gallery of more rows than one scan step, and the ids of 7 places for `rows(4, seed=2)` by a full sort."""
    gallery = Gallery.create(folder, "f", 12)
    some, q = rows(2500, seed=1), rows(4, seed=2)
    ids = gallery.add(some, people=["x"] * 2500)
    s = scores(q.features, q.masks, some.features.astype(np.float16), None, "masked")
    return gallery, ids[np.argsort(-s, axis=1, kind="stable")[:, :7]]


def test_brute_force_is_the_full_sort(tmp_path: Path) -> None:
    gallery, truth = gallery_and_truth(tmp_path / "g")
    with gallery:
        np.testing.assert_array_equal(brute_force(gallery, rows(4, seed=2), 7), truth)


def test_recall_is_the_share_of_the_true_places_that_candidates_find(tmp_path: Path) -> None:
    gallery, truth = gallery_and_truth(tmp_path / "g")
    with gallery:
        result = check_recall(gallery, queries=rows(4, seed=2), k=7, target=1.0)
        for row in result["measured"]:
            got = gallery.search(rows(4, seed=2), 7, candidates=row["candidates"]).rows
            share = np.mean([len(set(g) & set(t)) / 7 for g, t in zip(got, truth)])
            assert row["recall"] == pytest.approx(share, abs=1e-5)
        assert result["measured"][0]["recall"] < 1, "masks must matter in this test"


def test_recall_of_an_empty_gallery_is_refused(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "e", "f", 12) as empty, pytest.raises(GalleryError, match="empty"):
        check_recall(empty)
