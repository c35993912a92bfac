"""HMG: from the patch tokens of several blocks to a prototype mask, one gate in (0, 1) per feature dimension.

Shapes: B images · h×w grid · N = h·w patch tokens · d width · K blocks that are read (4).
Source: DPM, ACM MM 2022 (arXiv 2207.09046). The `lite` form is this project's own: a 1×1 reduction, then
depthwise-separable blocks, for devices where the paper's 3×3 convolutions cost too much.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def tokens_to_grid(tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """K × (B, 1+N, d), cls first → (B, K·d, h, w), the blocks one after the other along the channels."""
    patches = torch.cat([block[:, 1:] for block in tokens], dim=2)
    return patches.transpose(1, 2).unflatten(2, grid)


def _gates(x: Tensor, linear: nn.Linear) -> Tensor:
    """(B, d, h', w') → (B, d): global max, linear, sigmoid; the sigmoid in float32 under autocast."""
    return torch.sigmoid(linear(x.amax(dim=(2, 3))).float())


class MaskGenerator(nn.Module):
    """The paper's form: three 3×3 convolutions 4d → 2d → d → d with two 2×2 max-pools, then max, linear, sigmoid.

    The linear's weight and bias start at zero, so every gate starts at 0.5 and the masked metric as the plain one.
    """

    def __init__(self, width: int, grid: tuple[int, int], blocks: int = 4) -> None:
        super().__init__()
        self.grid = grid
        self.conv1 = nn.Conv2d(blocks * width, 2 * width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(2 * width)
        self.conv2 = nn.Conv2d(2 * width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.linear = nn.Linear(width, width)
        _start_half_open(self)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """K token tensors (B, 1+N, d) → mask (B, d) float32 in (0, 1)."""
        x = tokens_to_grid(tokens, self.grid)
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.relu(self.bn3(self.conv3(x)))
        return _gates(x, self.linear)


class _Separable(nn.Module):
    """Depthwise 3×3, BN, ReLU, then pointwise 1×1, BN, ReLU: (B, c, h, w) → (B, out, h, w)."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.pointwise = nn.Conv2d(channels, out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.depthwise(x)))
        return F.relu(self.bn2(self.pointwise(x)))


class LiteMaskGenerator(nn.Module):
    """The cheap form: 1×1 reduction 4d → d/2, three depthwise-separable blocks with two 2×2 max-pools between them."""

    def __init__(self, width: int, grid: tuple[int, int], blocks: int = 4) -> None:
        super().__init__()
        self.grid = grid
        half = width // 2
        self.reduce = nn.Conv2d(blocks * width, half, 1, bias=False)
        self.bn0 = nn.BatchNorm2d(half)
        self.block1 = _Separable(half, half)
        self.block2 = _Separable(half, half)
        self.block3 = _Separable(half, width)
        self.linear = nn.Linear(width, width)
        _start_half_open(self)

    def forward(self, tokens: Sequence[Tensor]) -> Tensor:
        """K token tensors (B, 1+N, d) → mask (B, d) float32 in (0, 1)."""
        x = F.relu(self.bn0(self.reduce(tokens_to_grid(tokens, self.grid))))
        x = F.max_pool2d(self.block1(x), 2)
        x = F.max_pool2d(self.block2(x), 2)
        return _gates(self.block3(x), self.linear)


MASK_GENERATORS: dict[str, type[MaskGenerator] | type[LiteMaskGenerator]] = {
    "paper": MaskGenerator,
    "lite": LiteMaskGenerator,
}


def _start_half_open(head: MaskGenerator | LiteMaskGenerator) -> None:
    """Convolutions from Kaiming's rule for ReLU (arXiv 1502.01852), last linear from zero."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
