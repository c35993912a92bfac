"""Crops are split in the memory that they have."""

from __future__ import annotations

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn", reason="the extra train is not installed")

from dpm_edge.train.adapt.crops import Crops, reorder
from dpm_edge.train.data import Pictures


def crops(n: int) -> Crops:
    """Crops whose pixels, track, camera and name all tell their number."""
    number = torch.arange(n)
    pixels = number.to(torch.uint8)[:, None, None, None].repeat(1, 3, 2, 2)
    return Crops(Pictures(pixels, number, number % 2, [f"{i}.jpg" for i in range(n)]), ["a", "b"], True, ["t"] * n)


def numbers(some: Crops) -> list[int]:
    """The numbers of crops, if everything about them agrees."""
    found = some.tracks.tolist()
    assert some.pictures.pixels[:, 0, 0, 0].tolist() == found == [int(name[:-4]) for name in some.pictures.names]
    assert (some.pictures.pixels == some.pictures.pixels[:, :1, :1, :1]).all()
    assert some.cameras.tolist() == [one % 2 for one in found]
    return found


@pytest.mark.parametrize("seed", range(5))
def test_each_part_keeps_its_crops_in_order(seed: int) -> None:
    second = np.random.default_rng(seed).random(37) < 0.4
    first, held = crops(37).split(second)
    assert numbers(first) == np.flatnonzero(~second).tolist() and numbers(held) == np.flatnonzero(second).tolist()


@pytest.mark.parametrize("all_second", [False, True])
def test_one_part_may_be_empty(all_second: bool) -> None:
    parts = crops(5).split(np.full(5, all_second))
    assert [numbers(part) for part in parts] == ([[], [*range(5)]] if all_second else [[*range(5)], []])


def test_no_pixel_is_copied() -> None:
    whole = crops(20)
    place = whole.pictures.pixels.numpy()
    for part in whole.split(np.arange(20) % 3 == 0):
        assert np.shares_memory(part.pictures.pixels.numpy(), place)


def test_rows_are_put_in_any_order() -> None:
    draw = np.random.default_rng(0)
    rows, order = draw.random((50, 3)), draw.permutation(50)
    wanted = rows[order]
    reorder(rows, order)
    np.testing.assert_array_equal(rows, wanted)
