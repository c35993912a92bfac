"""Exact search over a GPU's copy of the rows, its kernel in Triton's interpreter, against the float64 formula.

Q queries · N rows · D dimensions. Shapes are small: a program of the interpreter takes milliseconds.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import numpy as np
import pytest
from oracle import rows, scores
from test_exact import stored

from dpm_edge import Gallery
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.search import exact, on_gpu

os.environ.setdefault("TRITON_INTERPRET", "1")  # before a kernel is imported
resident = pytest.importorskip("dpm_edge.kernels.masked_distance.resident", reason="needs torch and Triton ([gpu])")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a search meets a full block and a part of one."""
    monkeypatch.setattr(resident, "BLOCK", 64)


def search(q: np.ndarray, vectors: exact.Vectors, k: int, **more: Any) -> tuple[np.ndarray, np.ndarray]:
    """Over rows that came to the device in two steps."""
    q = q / np.linalg.norm(q, axis=1, keepdims=True)  # as a gallery's queries are
    there, half = resident.Resident("cpu"), len(vectors) // 2
    there.follow(vectors.values[:half], None if vectors.masks is None else vectors.masks[:half])
    there.follow(vectors.values, vectors.masks)
    return on_gpu.top_k(q, vectors, there, k, **more)


def full_sort(truth: np.ndarray, k: int) -> np.ndarray:
    """(Q, k) rows of the highest values, −1 where they are −inf."""
    order = np.argsort(-truth, axis=1, kind="stable")[:, :k]
    wanted = np.full((len(truth), k), -1)
    wanted[:, : order.shape[1]] = np.where(np.isneginf(np.take_along_axis(truth, order, axis=1)), -1, order)
    return wanted


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize(("dtype", "metric"), [("float32", "masked"), ("float16", "mutual"), ("int8", "masked"),
                                               ("int8", "mutual"), ("float16", "plain")])  # fmt: skip
@pytest.mark.slow
def test_rows_are_those_of_the_full_sort(dtype: str, metric: str, filtered: bool) -> None:
    rng, (queries, n, d) = np.random.default_rng(5), (3, 150, 40)
    values, masks, meant = stored(rng.standard_normal((n, d)), rng.random((n, d)), dtype)
    q, m = rng.standard_normal((queries, d)), rng.random((queries, d)).astype(np.float32)
    truth, more = scores(q, m, values, meant, metric), {}
    if filtered:
        hidden, group = rng.random(n) < 0.5, rng.integers(0, 3, n).astype(np.int32)
        own = np.array([0, 1, 2], np.int32)
        truth[:, hidden], truth[own[:, None] == group] = -np.inf, -np.inf
        more = {"hidden": hidden, "group": group, "own": own}
    got, s = search(q, exact.Vectors(values, masks), 60, metric=metric, query_masks=m, **more)
    wanted = full_sort(truth, 60)
    np.testing.assert_array_equal(got, wanted)
    best = np.where(wanted < 0, -np.inf, np.take_along_axis(truth, np.maximum(wanted, 0), axis=1))
    np.testing.assert_allclose(s, best, atol=1e-6)


@pytest.mark.parametrize("spare", [16, 1])
def test_rows_nearer_than_the_kernel_rounds_come_in_float64s_order(spare: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "SPARE", spare)
    rng = np.random.default_rng(0)
    t = (rng.standard_normal(32) + 1e-4 * rng.standard_normal((150, 32))).astype(np.float16)
    q, m = rng.standard_normal((2, 32)), rng.random((2, 32))
    got, _ = search(q, exact.Vectors(t), 5, query_masks=m)
    np.testing.assert_array_equal(got, full_sort(scores(q, m, t, None, "masked"), 5))


def test_ties_zero_masks_and_more_places_than_the_kernel_has() -> None:
    t, ids = np.repeat(np.eye(3, 8, dtype=np.float32), 60, axis=0), np.random.default_rng(1).permutation(180)
    got, s = search(np.eye(3, 8), exact.Vectors(t), 5, query_masks=np.ones((3, 8)), ids=ids)
    for axis in range(3):
        assert ids[got[axis]].tolist() == sorted(ids[axis * 60 : axis * 60 + 60])[:5] and (s[axis] == 1).all()
    got, s = search(np.ones((1, 8)), exact.Vectors(t), 170, query_masks=np.zeros((1, 8)), ids=ids)
    assert ids[got[0]].tolist() == list(range(170)) and (s == 0).all()
    got, _ = search(np.ones((1, 8)), exact.Vectors(t), 3, metric="plain", hidden=np.ones(180, bool))
    assert (got == -1).all()


def test_a_gallery_on_a_device_follows_what_is_added_and_deleted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_gpu, "rows_on_gpu", lambda device: resident.Resident("cpu"))
    both = [Gallery("f", 12, "float16", device=device) for device in ("cpu", "cuda")]
    query, found = dataclasses.replace(rows(2, seed=9)), []
    for gallery in both:
        answers = []
        for step in range(3):
            gallery.add(rows(50, seed=step), people=["p"] * 50, cameras=np.arange(50) % 4, timestamps=np.arange(50.0))
            answers.append(gallery.search(query, 4))
        gallery.delete(list(range(20, 90)))
        own = {"exclude_same_camera": True, "query_cameras": [1, 2], "centre": False}
        answers.append(gallery.search(query, 4, since=10, **own))
        found.append(answers)
    for on_cpu, on_device in zip(*found):
        np.testing.assert_array_equal(on_cpu.rows, on_device.rows)


def test_a_device_that_is_not_there_is_named() -> None:
    if resident.torch.cuda.is_available():
        pytest.skip(reason="there is a GPU here")
    with pytest.raises(GalleryError, match=r'expected a GPU.*device="cpu"'):
        on_gpu.rows_on_gpu("cuda")
    with pytest.raises(GalleryError, match=r'expected device "cpu", "cuda" or "cuda:1", got \'gpu\''):
        on_gpu.rows_on_gpu("gpu")


def test_the_numbers_of_the_kernels_contract_are_those_that_the_search_goes_by() -> None:
    from dpm_edge.kernels.masked_distance import contract
    from dpm_edge.runtime.gpu import gallery_rows

    assert on_gpu.K_MAX == contract.K_MAX
    assert on_gpu.TOLERANCE.items() <= contract.TOLERANCE.items()
    assert (gallery_rows.GROUP, gallery_rows.CHUNK) == (contract.GROUP, contract.CHUNK)
    assert (gallery_rows.WIDTH_STEP, gallery_rows.SMALL_BATCH) == (contract.PAD_D, contract.SMALL_BATCH)
    compiled = {variant.name for variant in contract.VARIANTS}
    for kind in gallery_rows.KINDS.values():
        assert {f"masked_groups_small_{kind}", f"masked_groups_large_{kind}", f"masked_rescore_{kind}"} <= compiled
    assert {f"masked_prepare_{operand}" for operand, _ in gallery_rows.OPERANDS.values()} <= compiled
