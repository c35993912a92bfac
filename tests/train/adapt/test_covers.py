"""What adaptation puts in front of crops: how much, how often, who, and what is said to be under it."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from dpm_edge.train.adapt.covers import MOST_COVERED, PassersBy, cover_crops, find_passers_by
from dpm_edge.train.adapt.rounds import _under_covers
from dpm_edge.train.data import Pictures
from dpm_edge.train.mask import COVERED, WHOLE


@pytest.fixture(scope="module")
def crops() -> Tensor:
    """Crops whose every pixel is 7, which nothing pasted is everywhere."""
    return torch.full((400, 3, 48, 24), 7, dtype=torch.uint8)


@pytest.fixture(scope="module")
def passers() -> PassersBy:
    """Five people of one colour each, 100 to 140, who fill the middle third of their crops from top to bottom."""
    pixels = torch.stack([torch.full((3, 48, 24), 100 + 10 * i, dtype=torch.uint8) for i in range(5)])
    outlines = torch.zeros(5, 12, 6, dtype=torch.uint8)
    outlines[:, :, 2:4] = 255
    return PassersBy(pixels, torch.arange(5), outlines)


def cover(pixels: Tensor, seed: int = 0, *, shapes: float, people: PassersBy | None = None, passers_by: float = 0.0):
    site = torch.full((4, 3, 48, 24), 200, dtype=torch.uint8)
    return cover_crops(pixels, site, np.random.default_rng(seed), shapes, passers_by, people)


@pytest.mark.parametrize("shapes", [0.0, 0.5, 1.0])
def test_shapes_cover_as_much_as_boxes_and_leave_as_many_whole(crops: Tensor, shapes: float) -> None:
    pictures = torch.randint(0, 256, crops.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    before = pictures.clone()
    made, _ = cover(pictures, shapes=shapes)
    assert torch.equal(pictures, before) and made.dtype == torch.uint8
    share = (made != pictures).any(1).float().mean((1, 2))
    assert abs(float((share == 0).float().mean()) - WHOLE) < 0.05
    assert abs(float(share[share > 0].mean()) - sum(COVERED) / 2) < 0.06
    again, _ = cover(pictures, shapes=shapes)
    assert torch.equal(made, again), "seeded"


@pytest.mark.parametrize("shapes", [0.0, 1.0])
def test_what_is_under_something_is_what_changed(crops: Tensor, shapes: float) -> None:
    """Noise and other crops, 200 everywhere, never have the 7 of these crops in three channels but by chance."""
    made, under = cover(crops, shapes=shapes)
    changed = (made != crops).any(1)
    assert not changed[under == 0].any()
    filled = changed.flatten(1).any(1)  # shapes filled with crops of the batch change nothing: they cannot be told
    assert filled.float().mean() > 0.4
    firmly = (under > 0.5) & filled.view(-1, 1, 1)
    assert changed[firmly].float().mean() > 0.999


def test_half_of_the_things_are_boxes(crops: Tensor) -> None:
    """A box has straight sides: the rows of it are alike."""

    def straight(shapes: float) -> float:
        over = cover(crops, seed=1, shapes=shapes)[1] > 0
        rows = [one[one.any(1)].float() for one in over if 0 < one.float().mean() < 1]
        return float(np.mean([bool((part == part[0]).all()) for part in rows]))

    boxes, both, shapes = straight(0.0), straight(0.5), straight(1.0)
    assert boxes > 0.95 > both > shapes + 0.2


def test_a_passer_by_is_one_person_in_one_piece(crops: Tensor, passers: PassersBy) -> None:
    made, under = cover(crops, shapes=0.0, people=passers, passers_by=1.0)
    share, shown = under.mean((1, 2)), set()
    assert float(share.max()) <= MOST_COVERED
    assert 0.5 < float((share > 0).float().mean()) <= 1 - WHOLE + 0.05
    for picture, hides in zip(made[share > 0.05], under[share > 0.05]):
        values, counts = torch.unique(picture[:, hides == 1], return_counts=True)
        assert counts.max() > 0.8 * counts.sum(), "one colour but where the crop ends: one passer-by in each picture"
        shown.add(int(values[counts.argmax()]))
        assert (picture[:, hides == 0] == 7).all()
    assert shown == {100, 110, 120, 130, 140}


def test_passers_by_shapes_and_boxes_share_the_pictures(crops: Tensor, passers: PassersBy) -> None:
    made, _ = cover(crops, shapes=0.35, people=passers, passers_by=0.35)
    person = torch.stack([(made == value).all(1).flatten(1).sum(1) > 40 for value in (100, 110, 120, 130, 140)]).any(0)
    assert abs(float(person.float().mean()) - 0.35 * (1 - WHOLE)) < 0.09
    nobody, _ = cover(crops, shapes=0.35, people=None, passers_by=0.35)
    assert not ((nobody == 100).all(1).flatten(1).sum(1) > 40).any()


def test_people_are_found_where_there_are_people() -> None:
    """The rendered people that ship are found, a grey wall is not; they stand in the middle of their pictures."""
    if not hasattr(cv2.dnn, "readNetFromTFLite"):
        pytest.skip("this OpenCV cannot read the segmentation network")
    samples = sorted(Path(str(files("dpm_edge") / "assets" / "samples")).rglob("*.jpg"))[:8]
    people = [cv2.resize(cv2.imread(str(path))[:, :, ::-1], (96, 192)) for path in samples]
    pixels = np.stack([*people, np.full((192, 96, 3), 60, np.uint8)]).transpose(0, 3, 1, 2)
    names = [str(i) for i in range(9)]
    pictures = Pictures(torch.from_numpy(pixels.copy()), torch.arange(9), torch.zeros(9, dtype=torch.int64), names)
    found = find_passers_by(pictures, 0, quiet=True)
    assert found is not None and 4 <= len(found.rows) <= 8 and 8 not in found.rows.tolist()
    assert found.outlines[:, 12:40, 8:16].float().mean() > 2 * found.outlines[:, 12:40, :4].float().mean()
    drawn = found.draw(3, np.random.default_rng(0))
    assert drawn.shape == (3, 4, 192, 96) and 0 <= float(drawn[:, 3].min()) <= float(drawn[:, 3].max()) <= 1.0
    assert all(any(torch.equal(one[:3], pictures.pixels[row].float()) for row in found.rows) for one in drawn)
    assert find_passers_by(pictures.take(np.array([8])), 0, quiet=True) is None


def test_the_map_under_a_thing_moves_from_seen_to_hidden() -> None:
    """By hand: a patch that shows 0.6 of the person and hides 0.3, half under a thing, shows 0.3 and hides 0.6."""
    shares = torch.tensor([0.6, 0.3]).view(1, 2, 1, 1).expand(1, 2, 2, 1).clone()
    under = torch.zeros(1, 8, 4)
    under[0, :2] = 1.0
    torch.testing.assert_close(
        _under_covers(shares, under), torch.tensor([[0.3, 0.6], [0.6, 0.3]]).view(1, 2, 2).permute(0, 2, 1).unsqueeze(3)
    )
