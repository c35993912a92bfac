"""The numbers of a verification, and what the budget says of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_engine

from dpm_edge import Engine
from dpm_edge.build import portable, verify
from dpm_edge.build.verify import AccuracyBudget
from dpm_edge.errors import SpecError
from dpm_edge.layouts import read_dataset
from dpm_edge.model.network import DPM


def test_cosines_and_mask_error_equal_those_by_hand() -> None:
    exact = (np.array([[1, 0], [0, 1]], np.float32), np.array([[0.2, 0.4], [0.6, 0.8]], np.float32))
    got = (np.array([[0.6, 0.8], [0, 1]], np.float32), np.array([[0.2, 0.45], [0.6, 0.5]], np.float32))
    assert verify.compare(got, exact) == {"cosine_mean": 0.8, "cosine_min": 0.6, "mask_max_error": 0.3}


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"cosine_mean": 0.995, "cosine_min": 0.9}, []),
        ({"cosine_mean": 0.9949, "cosine_min": 0.9}, ["of 0.995 or more, got 0.9949"]),
        ({"cosine_mean": float("nan"), "cosine_min": 0.9}, ["of 0.995 or more, got nan"]),
        (
            {"cosine_mean": 1.0, "labelled": {"reference_map": 80.0, "engine_map": 79.4, "map_lost": 0.6}},
            ["by 0.5 points or less, got 0.60 (80.00 → 79.40)"],
        ),
        ({"cosine_mean": 1.0, "labelled": {"reference_map": 80.0, "engine_map": 80.6, "map_lost": -0.6}}, []),
    ],
)
def test_what_goes_over_the_budget_is_said(found: dict, says: list[str]) -> None:
    over = verify.over_budget(found, AccuracyBudget())
    assert len(over) == len(says)
    assert all(part in fault for part, fault in zip(says, over))


@pytest.mark.parametrize("wrong", [{"cosine": 1.5}, {"map_points": -1}, {"cosine": float("nan")}])
def test_an_impossible_budget_is_refused(wrong: dict) -> None:
    with pytest.raises(SpecError, match="expected a cosine"):
        AccuracyBudget(**wrong)


def test_both_references_compute_the_network(net: DPM, portable_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    by_torch = verify.torch_reference(net)
    by_onnx = verify.onnx_reference(portable.read(portable_path).model.SerializeToString())
    assert by_torch.name.startswith("torch ") and by_onnx.name.startswith("onnxruntime ")
    for a, b in zip(by_torch.forward(images), by_onnx.forward(images)):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_map_that_is_lost_equals_the_formula(market: Path, tmp_path: Path) -> None:
    """The tiny engine finds identical pictures; a reference that swaps two people loses what the formula says."""
    people = tiny_engine.people(4, seed=7)
    feature, _ = tiny_engine.expected(people)
    swapped = feature[[1, 0, 2, 3]]
    calls = iter(np.concatenate([swapped, feature]).astype(np.float32)[:, None])

    def forward(images: np.ndarray) -> verify.Outputs:
        rows = np.concatenate([next(calls) for _ in images])
        return rows, np.full_like(rows, 0.5)

    with Engine.load(tiny_engine.write_engine(tmp_path / "engine")) as engine:
        found = verify.compare_labelled(engine, verify.Reference("swapped", forward), read_dataset(market), quiet=True)
    plain = swapped @ feature.T
    places = [int((np.argsort(-plain[row]) == row).nonzero()[0][0]) for row in range(4)]
    assert found["engine_map"] == 100.0
    assert found["reference_map"] == pytest.approx(100 * np.mean([1 / (p + 1) for p in places]), abs=1e-3)
    assert found["map_lost"] == pytest.approx(found["reference_map"] - 100, abs=1e-3) and found["pictures"] == 8
