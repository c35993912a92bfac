"""Covering in training: the share that was asked for, masks that agree with the pixels, and nothing else touched."""

from __future__ import annotations

import pytest
import torch

from dpm_edge.train.config import CoveringConfig
from dpm_edge.train.covering import cover


def planes(count: int = 64) -> torch.Tensor:
    """Pictures of one value that no fill has, and a person in the middle who is all in sight."""
    made = torch.full((count, 5, 64, 32), -1000.0)
    made[:, 3:] = 0
    made[:, 3:, 8:60, 10:22] = 1
    return made


def drawn(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_covers_the_share_that_was_asked_for(share: float) -> None:
    done = cover(planes(), CoveringConfig(probability=1.0, least=share, most=share, soft=0.0), drawn())
    torch.testing.assert_close(done.share, torch.full((64,), share), atol=0.03, rtol=0)


def test_what_is_seen_is_what_was_not_painted_over() -> None:
    before = planes()
    done = cover(before, CoveringConfig(probability=1.0, soft=0.0), drawn())
    painted = done.planes[:, 0] != -1000.0
    hard = (done.planes[:, 3] == 0) | (done.planes[:, 3] == 1)
    assert hard.float().mean() > 0.99
    person = before[:, 4] == 1
    agree = painted == (done.planes[:, 3] == 0)
    # where the fill is another picture of this set, painting changes nothing: such pictures cannot be told
    told = painted.flatten(1).any(1)
    assert told.float().mean() > 0.4
    assert (agree | ~person | ~hard)[told].all()


def test_the_whole_person_and_uncovered_pictures_stay_as_they_were() -> None:
    before = planes()
    done = cover(before, CoveringConfig(probability=0.5), drawn())
    assert torch.equal(done.planes[:, 4], before[:, 4])
    assert torch.equal(done.planes[~done.covered], before[~done.covered])
    assert 0.25 < done.covered.float().mean() < 0.75
    assert (done.share[~done.covered] == 0).all() and (done.share[done.covered] > 0).all()


def test_soft_edges_hide_in_parts_and_hard_ones_do_not() -> None:
    def between(soft: float) -> float:
        done = cover(planes(), CoveringConfig(probability=1.0, soft=soft), drawn())
        seen = done.planes[:, 3]
        return float(((seen > 0.01) & (seen < 0.99)).float().mean())

    assert between(0.0) < 0.002
    assert between(1.0) > 0.01


def test_the_same_draw_covers_alike_and_another_does_not() -> None:
    config = CoveringConfig(probability=1.0)
    first, again, other = (cover(planes(8), config, drawn(seed)).planes for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pixels_stay_in_range() -> None:
    pictures = torch.rand(32, 5, 64, 32) * torch.tensor([255.0, 255, 255, 1, 1]).view(1, 5, 1, 1)
    done = cover(pictures, CoveringConfig(probability=1.0), drawn()).planes
    assert done[:, :3].min() >= 0 and done[:, :3].max() <= 255
    assert done[:, 3:].min() >= 0 and done[:, 3:].max() <= 1


def test_passers_by_are_one_other_person_cut_out_by_the_mask() -> None:
    before = torch.zeros(64, 5, 64, 32)
    before[:, :3] = torch.arange(1.0, 65.0).view(-1, 1, 1, 1)  # every picture has a value of its own
    before[:, 3:, 8:60, 10:22] = 1
    done = cover(before, CoveringConfig(probability=1.0, passers_by=1.0), drawn()).planes
    shown = 0
    for number, picture in enumerate(done):
        person = before[number, 4] == 1
        hidden, free = person & (picture[3] == 0), person & (picture[3] == 1)
        assert (picture[0][free] == number + 1).all()
        if hidden.any():
            value = picture[0][hidden].median()
            inside = picture[0][hidden]
            assert value != number + 1 and value == value.round()
            assert (inside == value).float().mean() > 0.5  # the rest is the outline, mixed with what lies outside it
            rows = (picture[0] == value).any(1).sum()
            columns = (picture[0] == value).any(0).sum()
            assert rows > 20 and columns <= 12 * 1.6 + 1  # no more than the largest size of the person that was cut out
            shown += 1
    assert shown > 32
