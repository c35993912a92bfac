"""The mask head in plain torch, in float32 or float64: what runs on a CPU and what every test trusts.

Shapes: B images · H×W grid · d width · tokens four of (B, 1 + H·W, d) · mask (B, d).
Source: DPM, ACM MM 2022 (arXiv 2207.09046); the `lite` form is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .pack import unpack_convolution


def mask_head(tokens: Sequence[Tensor], head: str, weights: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Mask (B, d) in the dtype of the computation: float64 if the tokens are, else float32.

    Args:
        tokens: four tensors (B, 1 + height·width, d), cls first.
        head: "paper" or "lite".
        weights: the tensors of a `PackedHead`.
        height, width: the grid of patches.
    """
    dtype = torch.float64 if tokens[0].dtype == torch.float64 else torch.float32
    w = [tensor.to(dtype) for tensor in weights]
    x = torch.cat([block[:, 1:].to(dtype) for block in tokens], dim=2).transpose(1, 2).unflatten(2, (height, width))
    if head == "paper":
        x = F.max_pool2d(_convolve(x, w[0], w[1]), 2)
        x = F.max_pool2d(_convolve(x, w[2], w[3]), 2)
        x = _convolve(x, w[4], w[5])
    else:
        x = _convolve(x, w[0], w[1])
        x = F.max_pool2d(_separable(x, w[2:6]), 2)
        x = F.max_pool2d(_separable(x, w[6:10]), 2)
        x = _separable(x, w[10:14])
    return torch.sigmoid(x.amax(dim=(2, 3)) @ w[-2] + w[-1])


def match_inputs(mask: Tensor, feature: Tensor) -> tuple[Tensor, Tensor]:
    """What matching reads next: feature⊙mask and mask⊙mask, both (B, d) in the mask's dtype."""
    return feature.to(mask.dtype) * mask, mask * mask


def _convolve(x: Tensor, packed: Tensor, bias: Tensor) -> Tensor:
    weight = unpack_convolution(packed)
    return F.relu(F.conv2d(x, weight, bias, padding=weight.shape[2] // 2))


def _separable(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    depth, depth_bias, point, point_bias = weights
    channels = depth.shape[1]
    x = F.relu(F.conv2d(x, depth.T.reshape(channels, 1, 3, 3), depth_bias, padding=1, groups=channels))
    return _convolve(x, point, point_bias)
