"""What adaptation puts in front of crops: how much, how often, and that boxes alone are what they were."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dpm_edge.train.adapt.covers import hidden
from dpm_edge.train.mask import COVERED, WHOLE, covered


@pytest.fixture(scope="module")
def crops() -> Tensor:
    """Crops whose every pixel is 7, which nothing pasted is everywhere."""
    return torch.full((400, 3, 48, 24), 7, dtype=torch.uint8)


def changed(made: Tensor, crops: Tensor) -> Tensor:
    """Share of each picture that looks otherwise, (B,)."""
    return (made != crops).any(1).float().mean((1, 2))


def test_without_shapes_they_are_the_boxes_of_the_masks_lesson(crops: Tensor) -> None:
    others = torch.full((4, 3, 48, 24), 200, dtype=torch.uint8)
    made = hidden(crops, others, 0.0, np.random.default_rng(3))
    assert torch.equal(made, covered(crops, others, np.random.default_rng(3)))


@pytest.mark.parametrize("shapes", [0.5, 1.0])
def test_shapes_cover_as_much_as_boxes_and_leave_as_many_whole(crops: Tensor, shapes: float) -> None:
    pictures = torch.randint(0, 256, crops.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = pictures.clone()
    made = hidden(pictures, pictures[:8], shapes, np.random.default_rng(0))
    assert torch.equal(pictures, before) and made.dtype == torch.uint8
    share = changed(made, pictures)
    assert abs(float((share == 0).float().mean()) - WHOLE) < 0.05
    assert abs(float(share[share > 0].mean()) - sum(COVERED) / 2) < 0.06
    assert torch.equal(made, hidden(pictures, pictures[:8], shapes, np.random.default_rng(0))), "seeded"


def test_half_of_the_things_are_boxes(crops: Tensor) -> None:
    """A box of one colour or of another crop, 200 everywhere, has straight sides: rows of it are alike."""
    others = torch.full((1, 3, 48, 24), 200, dtype=torch.uint8)

    def straight(shapes: float) -> float:
        over = (hidden(crops, others, shapes, np.random.default_rng(1)) != crops).any(1)
        rows = [one[one.any(1)].float() for one in over if 0 < one.float().mean() < 1]
        return float(np.mean([bool((part == part[0]).all()) for part in rows]))

    boxes, both, shapes = straight(0.0), straight(0.5), straight(1.0)
    assert boxes > 0.95 > both > shapes + 0.2
