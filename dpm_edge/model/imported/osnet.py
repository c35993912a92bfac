"""OSNet: omni-scale features for person re-identification. Written from the papers; no library that is kept has it.

The names of the parameters are those of torchreid's checkpoints, so that they load as they are.

Shapes: B images · H×W pixels · c channels of a stage · D feature dimensions.
Sources: OSNet arXiv 1905.00953 · with instance norms (OSNet-IBN): arXiv 1910.06827, IBN-Net arXiv 1807.09441.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.spec import Preprocessing

CHANNELS = {
    "x1_0": (64, 256, 384, 512),
    "x0_75": (48, 192, 288, 384),
    "x0_5": (32, 128, 192, 256),
    "x0_25": (16, 64, 96, 128),
}
"""Name of a width → channels after the first convolution and after each of the three stages."""
_BRANCHES = 4
"""Streams of a block; stream t sees a field of 2t + 1 pixels."""
_REDUCTION = 16
"""Of the gate's hidden layer."""


class Convolution(nn.Module):
    """A convolution without bias, a norm, and ReLU unless `linear`."""

    def __init__(
        self, inputs: int, outputs: int, size: int = 1, *, stride: int = 1, linear: bool = False, instance: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.bn = nn.InstanceNorm2d(outputs, affine=True) if instance else nn.BatchNorm2d(outputs)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x if self.linear else torch.relu(x)


class LightConvolution(nn.Module):
    """A 3×3 convolution in two factors: 1×1, then depthwise; batch norm and ReLU follow."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 1, bias=False)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv2(self.conv1(x))))


class Gate(nn.Module):
    """One factor in (0, 1) per channel, from the channel means; the streams of a block share it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(channels, channels // _REDUCTION, 1)
        self.fc2 = nn.Conv2d(channels // _REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class OmniScaleBlock(nn.Module):
    """Four streams of growing field over a quarter of the channels, gated, added, and added to the input."""

    def __init__(self, inputs: int, outputs: int, instance: bool) -> None:
        super().__init__()
        narrow = outputs // 4
        self.conv1 = Convolution(inputs, narrow)
        self.conv2a = LightConvolution(narrow)
        for number, name in enumerate("bcd", start=2):
            self.add_module(f"conv2{name}", nn.Sequential(*(LightConvolution(narrow) for _ in range(number))))
        self.gate = Gate(narrow)
        self.conv3 = Convolution(narrow, outputs, linear=True)
        self.downsample = Convolution(inputs, outputs, linear=True) if inputs != outputs else None
        self.IN = nn.InstanceNorm2d(outputs, affine=True) if instance else None

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, h, w) → (B, outputs, h, w)."""
        narrow = self.conv1(x)
        streams = [self.gate(getattr(self, f"conv2{name}")(narrow)) for name in "abcd"[:_BRANCHES]]
        made = self.conv3(sum(streams[1:], streams[0])) + (x if self.downsample is None else self.downsample(x))
        return torch.relu(made if self.IN is None else self.IN(made))


class OSNet(nn.Module):
    """(B, 3, H, W) → (B, D), not normalised.

    `size` is a name of CHANNELS; `instance_norm` puts instance norms where OSNet-IBN has them. Raises ValueError for an
    unknown size.
    """

    def __init__(
        self, *, size: str, instance_norm: bool = False, dimension: int, preprocessing: Preprocessing | None = None
    ) -> None:
        super().__init__()
        if size not in CHANNELS:
            raise ValueError(f"size {size!r}")
        first, *stages = CHANNELS[size]
        self.conv1 = Convolution(3, first, 7, stride=2, instance=instance_norm)
        self.conv2 = _stage(first, stages[0], halved=True, instance=instance_norm)
        self.conv3 = _stage(stages[0], stages[1], halved=True)
        self.conv4 = _stage(stages[1], stages[2], halved=False)
        self.conv5 = Convolution(stages[2], stages[2])
        self.fc = nn.Sequential(nn.Linear(stages[2], dimension), nn.BatchNorm1d(dimension), nn.ReLU())

    def to_map(self, x: Tensor) -> tuple[Tensor, None]:
        """(B, 3, H, W) → (B, c, H/16, W/16)."""
        x = F.max_pool2d(self.conv1(x), 3, stride=2, padding=1)
        return self.conv5(self.conv4(self.conv3(self.conv2(x)))), None

    def from_map(self, grid: Tensor, rest: None = None) -> Tensor:
        """(B, c, h, w) → (B, D)."""
        return self.fc(grid.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.from_map(*self.to_map(x))


def _stage(inputs: int, outputs: int, *, halved: bool, instance: bool = False) -> nn.Sequential:
    """Two blocks and, if `halved`, a 1×1 convolution with a 2×2 mean."""
    parts: Sequence[nn.Module] = (
        OmniScaleBlock(inputs, outputs, instance),
        OmniScaleBlock(outputs, outputs, instance),
    )
    if halved:
        parts = (*parts, nn.Sequential(Convolution(outputs, outputs), nn.AvgPool2d(2)))
    return nn.Sequential(*parts)
