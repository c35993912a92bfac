"""SOLIDER's Swin Transformer; the attention inside a window is timm's.

Unlike timm's whole network it fills the map up to whole windows first and shifts it then, and it shifts where one
window covers the map, too. SOLIDER's semantic weight is a setting, so that what it does to the map between two stages
is one factor and one addition a channel: both are in the merging's weights.

Shapes: B images · H×W pixels · h×w feature map · c channels · D feature dimensions.
Sources: Swin arXiv 2103.14030 · SOLIDER arXiv 2303.17602.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.model.torchvision_users import import_user
from dpm_edge.spec import Preprocessing

PATCH, WINDOW, HEAD = 4, 7, 32
"""Pixels of a patch's side, places of a window's, dimensions of an attention head."""
_MLP = 4
_FORBIDDEN = -100.0
"""What is added to the logit of two places that were no neighbours before the shift."""


class WindowBlock(nn.Module):
    """Attention within windows, shifted by half of one if `shifted`, then an MLP: (B, h, w, c) → the same."""

    forbidden: Tensor | None

    def __init__(self, channels: int, grid: tuple[int, int], *, shifted: bool) -> None:
        super().__init__()
        swin, layers = import_user("timm.models.swin_transformer"), import_user("timm.layers")
        self.shift = WINDOW // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attn = swin.WindowAttention(channels, channels // HEAD, window_size=WINDOW)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = layers.Mlp(channels, _MLP * channels)
        height, width = (-(-side // WINDOW) * WINDOW for side in grid)
        self.filled = (height, width)
        self.register_buffer("forbidden", _forbidden(height, width, self.shift) if shifted else None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, channels = x.shape
        rows, columns = self.filled
        y = F.pad(self.norm1(x), (0, 0, 0, columns - width, 0, rows - height))
        if self.shift:
            y = torch.roll(y, (-self.shift, -self.shift), (1, 2))
        y = self.attn(windows(y), mask=self.forbidden)
        y = y.view(batch, rows // WINDOW, columns // WINDOW, WINDOW, WINDOW, channels).transpose(2, 3)
        y = y.reshape(batch, rows, columns, channels)
        if self.shift:
            y = torch.roll(y, (self.shift, self.shift), (1, 2))
        x = x + y[:, :height, :width]
        return x + self.mlp(self.norm2(x))


class Merging(nn.Module):
    """Four neighbours become one place of twice the channels: (B, h, w, c) → (B, h/2, w/2, 2c)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """The channels of the four come one after the other for each channel: c, then row, then column."""
        x = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).permute(0, 1, 3, 5, 2, 4).flatten(3)
        return self.reduction(self.norm(x))


class Swin(nn.Module):
    """(B, 3, H, W) → (B, D), not normalised: the mean of the last map.

    `depths`: blocks of each of the four stages. Raises ValueError for a size that cannot be halved three times, or
    where `width` and `dimension` do not belong together.
    """

    def __init__(self, *, width: int, depths: Sequence[int], dimension: int, preprocessing: Preprocessing) -> None:
        super().__init__()
        sides = (preprocessing.height, preprocessing.width)
        if len(depths) != 4 or dimension != 8 * width or width % HEAD:
            raise ValueError(f"width {width}, depths {depths} and dimension {dimension}")
        if any(side % (8 * PATCH) for side in sides):
            raise ValueError(f"input {sides[0]}x{sides[1]}, which does not divide by {8 * PATCH}")
        self.patch = nn.Conv2d(3, width, PATCH, PATCH)
        self.patch_norm = nn.LayerNorm(width)
        self.stages = nn.ModuleList()
        self.merges = nn.ModuleList(Merging(width * 2**number) for number in range(3))
        for number, depth in enumerate(depths):
            grid = (sides[0] // (PATCH * 2**number), sides[1] // (PATCH * 2**number))
            blocks = [WindowBlock(width * 2**number, grid, shifted=place % 2 == 1) for place in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
        self.norm = nn.LayerNorm(dimension)

    def to_map(self, x: Tensor) -> tuple[Tensor, None]:
        """(B, 3, H, W) → (B, D, H/32, W/32)."""
        x = self.patch_norm(self.patch(x).permute(0, 2, 3, 1))
        for number, stage in enumerate(self.stages):
            x = stage(self.merges[number - 1](x) if number else x)
        return self.norm(x).permute(0, 3, 1, 2), None

    def from_map(self, grid: Tensor, rest: None = None) -> Tensor:
        """(B, D, h, w) → (B, D)."""
        return grid.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.from_map(*self.to_map(x))


def windows(x: Tensor) -> Tensor:
    """(B, h, w, c), whole windows → (B · windows, WINDOW², c)."""
    x = x.unflatten(2, (-1, WINDOW)).unflatten(1, (-1, WINDOW)).transpose(2, 3)
    return x.reshape(-1, WINDOW * WINDOW, x.shape[-1])


def _forbidden(height: int, width: int, shift: int) -> Tensor:
    """(windows, WINDOW², WINDOW²): 0 between places of one piece of the shifted map, _FORBIDDEN between pieces."""
    row, column = (_pieces(side, shift) for side in (height, width))
    piece = windows((3 * row[:, None] + column).view(1, height, width, 1)).squeeze(2)
    return torch.where(piece.unsqueeze(1) == piece.unsqueeze(2), 0.0, _FORBIDDEN)


def _pieces(side: int, shift: int) -> Tensor:
    """(side,) numbers of the three pieces that a shifted side falls into."""
    place = torch.arange(side)
    return (place >= side - WINDOW).long() + (place >= side - shift).long()
