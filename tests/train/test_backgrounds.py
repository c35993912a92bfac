"""Other surroundings in training: who is seen stays, to the pixel; what else there was goes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch

from dpm_edge.spec import Preprocessing
from dpm_edge.train.backgrounds import bank, clutter, surround, surroundings
from dpm_edge.train.recipes import recipe


def people(count: int = 40) -> torch.Tensor:
    """(count, 5, 32, 16): a person of value 200 + k/10 in the middle, half of them behind something, on 10."""
    planes = torch.zeros(count, 5, 32, 16)
    planes[:, :3] = 10.0
    planes[:, :3, 8:24, 4:12] = 200 + torch.arange(count).view(-1, 1, 1, 1) / 10
    planes[:, 3, 8:24, 4:12] = 1.0
    planes[:, 4, 8:28, 4:12] = 1.0  # four rows more are hidden
    return planes


def test_the_person_and_the_shares_stay_and_the_rest_changes_in_the_chosen_pictures() -> None:
    planes, pieces = people(), torch.full((3, 3, 32, 16), 90, dtype=torch.uint8)
    done = surround(planes, pieces, 0.5, torch.Generator().manual_seed(0))
    assert torch.equal(done[:, 3:], planes[:, 3:])
    torch.testing.assert_close(done[:, :3, 9:23, 5:11], planes[:, :3, 9:23, 5:11])
    corner = done[:, 0, 0, 0]
    clear = corner == 90  # those with clutter; the others kept 10, or got the corner of another picture, 10 too
    assert 8 <= int(clear.sum()) <= 18
    feet = done[clear][:, :3, 26, 4:12]
    torch.testing.assert_close(feet, torch.full_like(feet, 90.0))  # what hid them went with the old surroundings


def test_another_picture_of_the_batch_stands_behind_some() -> None:
    planes = people()
    planes[:, :3, 0, 0] = torch.arange(40).view(-1, 1).float()
    planes[:, :3, 0, 15] = torch.arange(40).view(-1, 1).float()
    pieces = torch.full((3, 3, 32, 16), 90, dtype=torch.uint8)
    corner = surround(planes, pieces, 1.0, torch.Generator().manual_seed(1))[:, 0, 0, 0]
    own = (corner == torch.arange(40)).sum()
    assert 6 <= int((corner != 90).sum()) <= 22 and int(own) <= 3


def test_clutter_is_repeatable_and_busier_than_a_wall() -> None:
    first, again, other = bank(64, 32, 0, 4), bank(64, 32, 0, 4), bank(64, 32, 1, 4)
    assert first.dtype == torch.uint8 and first.shape == (4, 3, 64, 32)
    assert torch.equal(first, again) and not torch.equal(first, other)
    pieces = [clutter(np.random.default_rng(k), 128, 64).astype(float).mean(0) for k in range(8)]
    steps = [np.abs(np.diff(piece, axis=1)).mean() for piece in pieces]
    assert np.median(steps) > 4 and np.median([piece.std() for piece in pieces]) > 30


def test_views_of_places_stand_beside_the_clutter_where_panoramas_are_given(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "red.png"), np.full((16, 32, 3), (0, 0, 255), np.uint8))
    config, size = recipe("rendered_nano"), Preprocessing(height=32, width=16)
    plain = surroundings(config, size, quiet=True)
    config.augment.panoramas = str(tmp_path)
    both = surroundings(config, size, quiet=True)
    assert torch.equal(both[: len(plain)], plain)
    places = both[len(plain) :].float().mean((2, 3))
    assert len(places) == 2 * len(plain)
    assert (places[:, 0] > places[:, 1:].amax(1) + 50).all()  # red, whatever the exposure
