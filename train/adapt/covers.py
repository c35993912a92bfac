"""What stands in front of crops while a model adapts: boxes, shapes and passers-by, so that it finds covered people.

n crops · B pictures of a batch · M passers-by · H×W pixels
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.errors import MissingLibrary
from dpm_edge.train.config import CoveringConfig
from dpm_edge.train.covering import cover_pictures
from dpm_edge.train.data import Pictures
from dpm_edge.train.mask import COVERED, WHOLE, covered_exactly
from dpm_edge.train.saliency.segmentation import segmented_saliency

MOST_CROPS = 4000
"""Crops that are looked through for people who can stand in front of others."""
OUTLINE = 4
"""Pixels a side for which one value of an outline is kept."""
LEAST_PERSON, MOST_PERSON = 0.15, 0.8
"""Least and largest share of a crop that its person fills; outside of it the segmentation saw nobody, or a crowd."""
MOST_COVERED = 0.7
"""Share of a picture under a passer-by beyond which it stays whole: it would show that other person alone."""
OTHERS = 32
"""Crops that a batch's boxes are cut from."""


@dataclass(frozen=True)
class PassersBy:
    """People of the site, cut out, to stand in front of others."""

    pixels: Tensor
    """(n, 3, H, W) uint8: the site's crops."""
    rows: Tensor
    """(M,) int64: which of them."""
    outlines: Tensor
    """(M, H/4, W/4) uint8: how much of each place shows the person, of 255."""

    def draw(self, count: int, draw: np.random.Generator) -> Tensor:
        """Some of them, (count, 4, H, W) float32: pixels 0..255, and how much of each shows the person, 0..1."""
        chosen = torch.from_numpy(draw.integers(0, len(self.rows), count))
        shown = self.outlines[chosen].unsqueeze(1).float() / 255
        outlines = F.interpolate(shown, self.pixels.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([self.pixels[self.rows[chosen]].float(), outlines], 1)


def find_passers_by(pictures: Pictures, seed: int, *, quiet: bool = False) -> PassersBy | None:
    """The crops in which a small segmentation network that ships finds a person; None where there are none.

    Without a network, where OpenCV is too old to read it, there are none either.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(pictures))[:MOST_CROPS])
    height, width = pictures.pixels.shape[2:]
    try:
        shares = segmented_saliency(pictures.take(rows), (height // OUTLINE, width // OUTLINE), quiet)
    except MissingLibrary:
        return None
    filled = shares.mean((1, 2))
    usable = (filled >= LEAST_PERSON) & (filled <= MOST_PERSON)
    if not usable.any():
        return None
    return PassersBy(pictures.pixels, torch.from_numpy(rows)[usable], (shares[usable] * 255).round().byte())


def cover_crops(
    pixels: Tensor,
    site: Tensor,
    draw: np.random.Generator,
    shapes: float,
    passers_by: float,
    people: PassersBy | None,
) -> tuple[Tensor, Tensor]:
    """Put things in front of pictures (B, 3, H, W) uint8: copies, and how much of each pixel is under one, (B, H, W).

    With the chance `shapes` a thing of dpm_edge.train.covering: half-planes, turned boxes, ellipses, blobs and bars
    with hard or soft edges; with the chance `passers_by` one of `people`, where there are any; or else a box of
    dpm_edge.train.mask: noise, one colour, or cut from a crop of `site`, (n, 3, H, W) uint8. Boxes and shapes cover
    the same shares of a picture; all three leave as many whole.
    """
    made, under = pixels.clone(), torch.zeros(len(pixels), *pixels.shape[2:])
    chance = draw.random(len(pixels))
    passes = torch.from_numpy(chance < (passers_by if people else 0.0))
    shaped = torch.from_numpy(chance >= 1 - shapes) & ~passes
    boxed = ~passes & ~shaped
    if boxed.any():
        others = site[torch.from_numpy(draw.integers(0, len(site), OTHERS))]
        made[boxed], hides = covered_exactly(pixels[boxed], others, draw)
        under[boxed] = hides.float()
    config = CoveringConfig(probability=1 - WHOLE, least=COVERED[0], most=COVERED[1])
    if shaped.any():
        made[shaped], under[shaped] = cover_pictures(pixels[shaped], config, _torch_draw(draw))
    if people and passes.any():
        config.passers_by = 1.0
        made[passes], under[passes] = cover_pictures(
            pixels[passes], config, _torch_draw(draw), people.draw(int(passes.sum()), draw)
        )
        hardly = passes & (under.mean((1, 2)) > MOST_COVERED)
        made[hardly], under[hardly] = pixels[hardly], 0.0
    return made, under


def _torch_draw(draw: np.random.Generator) -> torch.Generator:
    return torch.Generator().manual_seed(int(draw.integers(2**31)))
