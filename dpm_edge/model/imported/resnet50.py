"""fast-reid's ResNet-50 with its heads: bag of tricks (BoT), AGW and SBS, plain or with IBN; the blocks are timm's.

It differs from torchvision's ResNet-50 in its max-pool (no padding, rounded up) and its last stage (stride 1).
IBN-a: half of the channels after a block's first convolution pass an instance norm. Non-local blocks of one channel
stand behind the last blocks of stages 2 and 3. The feature is what stands behind the batch-norm neck.

Shapes: B images · H×W pixels · c channels · h×w feature map · D feature dimensions.
Sources: BoT arXiv 1903.07071 · AGW arXiv 2001.04193 · fast-reid arXiv 2006.02631 · IBN-Net arXiv 1807.09441 ·
non-local arXiv 1711.07971 · generalised mean pooling arXiv 1711.02512.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from dpm_edge.model.torchvision_users import import_user
from dpm_edge.spec import Preprocessing

WIDTH = 2048
BLOCKS = {1: 3, 2: 4, 3: 6, 4: 3}
"""Stage → its blocks."""
NON_LOCAL = {2: 2, 3: 3}
"""Stage → how many of its last blocks have a non-local block behind them."""
_TINY = 1e-6


class HalfInstanceNorm(nn.Module):
    """IBN-a: an instance norm on the first half of the channels, a batch norm on the other."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.normed = channels // 2
        self.IN = nn.InstanceNorm2d(self.normed, affine=True)
        self.BN = nn.BatchNorm2d(channels - self.normed)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.IN(x[:, : self.normed]), self.BN(x[:, self.normed :])], dim=1)


class NonLocal(nn.Module):
    """x + BN(W · mean over places of (θ(x) φ(x')) g(x')), all of one channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Conv2d(channels, 1, 1)
        self.theta = nn.Conv2d(channels, 1, 1)
        self.phi = nn.Conv2d(channels, 1, 1)
        self.W = nn.Sequential(nn.Conv2d(1, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, c, h, w) → the same. One channel: the mean over places of φ·g is one number."""
        shared = (self.phi(x) * self.g(x)).mean((2, 3), keepdim=True)
        return x + self.W(self.theta(x) * shared)


class ResNet50(nn.Module):
    """(B, 3, H, W) → (B, D), not normalised.

    `ibn`, `non_local`: as above. `power`: generalised mean pooling, whose exponent is a parameter; without it the mean.
    D under 2048: a 1×1 convolution reduces the pooled feature.
    """

    def __init__(
        self,
        *,
        ibn: bool,
        non_local: bool,
        power: bool,
        dimension: int,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.backbone = import_user("timm").create_model("resnet50", pretrained=False, num_classes=0, global_pool="")
        self.backbone.maxpool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.backbone.layer4[0].conv2.stride = (1, 1)
        self.backbone.layer4[0].downsample[0].stride = (1, 1)
        for stage in (1, 2, 3):
            blocks = getattr(self.backbone, f"layer{stage}")
            if ibn:
                for block in blocks:
                    block.bn1 = HalfInstanceNorm(block.bn1.num_features)
            for place in range(len(blocks) - NON_LOCAL.get(stage, 0), len(blocks)) if non_local else ():
                channels = blocks[place].conv3.out_channels
                blocks[place] = nn.Sequential(OrderedDict(block=blocks[place], non_local=NonLocal(channels)))
        self.power = nn.Parameter(torch.full((1,), 3.0)) if power else None
        self.reduce = nn.Conv2d(WIDTH, dimension, 1, bias=False) if dimension != WIDTH else nn.Identity()
        self.neck = nn.BatchNorm2d(dimension)

    def to_map(self, x: Tensor) -> tuple[Tensor, None]:
        """(B, 3, H, W) → (B, WIDTH, H/16, W/16)."""
        return self.backbone(x), None

    def from_map(self, x: Tensor, rest: None = None) -> Tensor:
        """(B, WIDTH, h, w) → (B, D)."""
        if self.power is None:
            pooled = x.mean((2, 3), keepdim=True)
        else:
            pooled = x.clamp(min=_TINY).pow(self.power).mean((2, 3), keepdim=True).pow(1 / self.power)
        return self.neck(self.reduce(pooled)).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.from_map(*self.to_map(x))
