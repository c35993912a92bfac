"""What stands in front of crops while a model adapts: boxes and shapes, so that it finds covered people, too.

B pictures · M others · H×W pixels
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dpm_edge.train.config import CoveringConfig
from dpm_edge.train.covering import cover_pictures
from dpm_edge.train.mask import COVERED, WHOLE, covered


def hidden(pixels: Tensor, others: Tensor, shapes: float, draw: np.random.Generator) -> Tensor:
    """A copy of pixels (B, 3, H, W) uint8, most with something in front.

    A picture gets a box (dpm_edge.train.mask: noise, one colour, or one of `others`, (M, 3, H, W)), or with the chance
    `shapes` a thing of dpm_edge.train.covering: half-planes, turned boxes, ellipses, blobs and bars with hard or soft
    edges. Both cover the same shares, and leave as many pictures whole.
    """
    if not shapes:
        return covered(pixels, others, draw)
    made = pixels.clone()
    boxes = torch.from_numpy(draw.random(len(pixels)) < 1 - shapes)
    if boxes.any():
        made[boxes] = covered(pixels[boxes], others, draw)
    if not boxes.all():
        made[~boxes] = _under_shapes(pixels[~boxes], draw)
    return made


def _under_shapes(pixels: Tensor, draw: np.random.Generator) -> Tensor:
    torch_draw = torch.Generator().manual_seed(int(draw.integers(2**31)))
    config = CoveringConfig(probability=1 - WHOLE, least=COVERED[0], most=COVERED[1])
    return cover_pictures(pixels, config, torch_draw)[0]
