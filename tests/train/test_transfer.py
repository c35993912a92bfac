"""SPT against a loop over pairs, rolls and pixels."""

from __future__ import annotations

import pytest
import torch

from dpm_edge.train.config import TransferConfig
from dpm_edge.train.transfer import choose, overlaps, transfer


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    masks = torch.rand(7, 4, 3, generator=draw) < 0.5
    masks[2] = False  # a picture in which no person was found
    pixels = torch.rand(7, 3, 8, 6, generator=draw) * 255
    return pixels, masks


def test_overlaps_are_the_shares_that_loops_count(batch):
    _, masks = batch
    found = overlaps(masks)
    for i in range(7):
        for j in range(7):
            for r in range(3):
                rolled = masks[i].roll(r, dims=1)
                wanted = (rolled & masks[j]).sum() / max(1, masks[j].sum())
                assert found[i, j, r].item() == pytest.approx(wanted.item())


def test_what_is_chosen_fits_and_is_never_the_picture_itself(batch):
    _, masks = batch
    config = TransferConfig(probability=1.0, rolled=0.6, unrolled=0.4, share=0.5, smallest=0.0)
    share = overlaps(masks)
    some = 0
    for seed in range(50):
        donor, roll, oiou = choose(masks, config, torch.Generator().manual_seed(seed))
        for i in range(7):
            if donor[i] == i:
                assert oiou[i] == 0 and roll[i] == 0
                continue
            some += 1
            assert share[i, donor[i], roll[i]] == oiou[i] >= 0.6
            assert share[i, donor[i], 0] >= 0.4
            better = (share[i][torch.arange(7) != i] > oiou[i]).sum()
            assert better < 3  # among the best ⌊0.5 · 7⌋
    assert some > 50


def test_every_accepted_candidate_is_drawn(batch):
    _, masks = batch
    config = TransferConfig(probability=1.0, rolled=0.5, unrolled=0.0, share=0.8, smallest=0.0)
    seen = {tuple(int(x[0]) for x in choose(masks, config, torch.Generator().manual_seed(s))[:2]) for s in range(300)}
    share = overlaps(masks)
    best = sorted(((share[0, j, r].item(), j, r) for j in range(1, 7) for r in range(3)), reverse=True)[:5]
    assert len([b for b in best if b[0] >= 0.5]) == len(seen)


def test_pixels_are_the_rolled_person_inside_the_donors_region_and_the_donor_outside(batch):
    pixels, masks = batch
    config = TransferConfig(probability=1.0, rolled=0.3, unrolled=0.0, share=0.8, smallest=0.0)
    done = transfer(pixels, masks, config, torch.Generator().manual_seed(3))
    assert done.mixed.any()
    for i in range(7):
        j, r = int(done.donor[i]), int(done.roll[i])
        if i == j:
            assert torch.equal(done.pixels[i], pixels[i])
            continue
        for y in range(8):
            for x in range(6):
                person = masks[j, y // 2, x // 2]
                wanted = pixels[i, :, y, (x - 2 * r) % 6] if person else pixels[j, :, y, x]
                assert torch.equal(done.pixels[i, :, y, x], wanted)


def test_nothing_is_mixed_without_probability_or_without_a_fit(batch):
    pixels, masks = batch
    for config in (TransferConfig(probability=0.0), TransferConfig(probability=1.0, rolled=1.01)):
        done = transfer(pixels, masks, config, torch.Generator().manual_seed(0))
        assert not done.mixed.any() and torch.equal(done.pixels, pixels)


def test_pictures_with_next_to_no_person_are_nobodys_donors(batch):
    _, masks = batch
    masks = masks.clone()
    masks[4] = False
    masks[4, 0, 0] = True  # filled by every person who covers one patch: the best fit for many
    for smallest, chosen in ((0.0, True), (0.2, False)):
        config = TransferConfig(probability=1.0, rolled=0.5, unrolled=0.0, share=0.8, smallest=smallest)
        donors = {int(d) for s in range(60) for d in choose(masks, config, torch.Generator().manual_seed(s))[0][:4]}
        assert (4 in donors) == chosen
