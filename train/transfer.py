"""SPT, saliency-guided patch transfer: put person i into person j's scene, behind whatever stands before j.

B pictures · h×w patch grid · N = h·w · w horizontal rolls.  Masks M are bool on the grid, true where the person is.
Source: SPT, AAAI 2024, and the roll of DPM++ (arXiv 2605.06637).

OIoU(i→j) = |M_i ∩ M_j| / |M_j|          the share of j's person region that i's person fills
x̃_i = roll(x_i, r) ⊙ M_j + x_j ⊙ (1 − M_j)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dpm_edge.train.config import TransferConfig


@dataclass(frozen=True)
class Transfer:
    """What SPT did to a batch."""

    pixels: Tensor
    """(B, 3, H, W): mixed pictures, and the untouched ones as they came."""
    donor: Tensor
    """(B,) int64 row of j; the row itself where nothing was mixed."""
    roll: Tensor
    """(B,) int64 columns of the grid that i was rolled by."""
    oiou: Tensor
    """(B,) float32 OIoU of the accepted pair after rolling; 0 where nothing was mixed."""

    @property
    def mixed(self) -> Tensor:
        """(B,) bool."""
        return self.donor != torch.arange(len(self.donor), device=self.donor.device)


def overlaps(masks: Tensor) -> Tensor:
    """OIoU of every pair under every roll: masks (B, h, w) bool → (B, B, w) float32, [i, j, r].

    A picture without any person region is nobody's donor: its column is 0.
    """
    count, height, width = masks.shape
    rolled = rolled_columns(masks)  # (w, B, h, w)
    flat = masks.reshape(count, height * width).float()
    common = rolled.reshape(width * count, height * width).float() @ flat.T
    share = common.view(width, count, count).permute(1, 2, 0) / flat.sum(1).clamp(min=1).view(1, -1, 1)
    return share


def rolled_columns(grids: Tensor) -> Tensor:
    """(B, h, w) → (w, B, h, w): [r] is the grid rolled right by r columns, wrapping around."""
    width = grids.shape[-1]
    columns = torch.arange(width, device=grids.device)
    source = (columns.view(1, -1) - columns.view(-1, 1)) % width  # (r, column)
    return grids[:, :, source].permute(2, 0, 1, 3)


def choose(masks: Tensor, config: TransferConfig, draw: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Donor, roll and OIoU of every picture, each (B,).

    Of a picture's B·w candidates (j, r) the best ⌊share·B⌋ by OIoU are kept; the very best, which is the picture
    itself, is left out, and so are donors whose person region is too small to show anybody. One is drawn from those
    with OIoU ≥ α2 before and ≥ α1 after the roll; drawing uniformly among them is what drawing again until one is
    accepted comes to. Where there is none, or with 1 − probability, donor is i itself.
    """
    count, _, width = masks.shape
    itself = torch.arange(count, device=masks.device)
    small = masks.flatten(1).float().mean(1) < config.smallest
    barred = small.unsqueeze(0) | (itself.unsqueeze(0) == itself.unsqueeze(1))  # (i, j)
    share = overlaps(masks).masked_fill(barred.unsqueeze(2), -1.0)
    best, place = share.reshape(count, -1).topk(max(1, int(config.share * count)), dim=1)
    donor, roll = place // width, place % width
    before = share[:, :, 0].gather(1, donor)
    fits = (best >= config.rolled) & (before >= config.unrolled)
    lots = torch.rand(best.shape, generator=draw, device=draw.device).masked_fill(~fits, -1.0)
    lot, winner = lots.max(dim=1)
    wanted = torch.rand(count, generator=draw, device=draw.device) < config.probability
    taken = wanted & (lot >= 0)
    chosen = winner.unsqueeze(1)
    donor = torch.where(taken, donor.gather(1, chosen).squeeze(1), itself)
    roll = torch.where(taken, roll.gather(1, chosen).squeeze(1), torch.zeros_like(itself))
    return donor, roll, torch.where(taken, best.gather(1, chosen).squeeze(1), torch.zeros_like(best[:, 0]))


def transfer(pixels: Tensor, masks: Tensor, config: TransferConfig, draw: torch.Generator) -> Transfer:
    """Mix a batch on the patch grid. pixels (B, 3, H, W) float; masks (B, h, w) bool, one cell for H/h × W/w pixels.

    Pixels are mixed rather than patch embeddings: where patches do not overlap this is the same, and a picture of it
    shows what was trained on.
    """
    count, _, height, width = pixels.shape
    donor, roll, oiou = choose(masks, config, draw)
    cell = width // masks.shape[2]
    columns = (torch.arange(width, device=pixels.device).view(1, -1) - cell * roll.view(-1, 1)) % width
    rolled = pixels.gather(3, columns.view(count, 1, 1, width).expand_as(pixels))
    region = masks[donor].repeat_interleave(height // masks.shape[1], 1).repeat_interleave(cell, 2).unsqueeze(1)
    if region.shape[2:] != (height, width):
        region = torch.nn.functional.interpolate(region.float(), (height, width)).bool()
    mixed = torch.where(region, rolled, pixels[donor])
    taken = donor != torch.arange(count, device=donor.device)
    return Transfer(torch.where(taken.view(-1, 1, 1, 1), mixed, pixels), donor, roll, oiou)
