"""Recall of candidates against brute force, and brute force against a full sort."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from oracle import rows, scores

from dpm_edge import Gallery
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.search.recall import brute_force, check_recall


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
