"""TransReID's ViT with its jigsaw patch module: the feature of the whole picture beside those of four shuffled parts.

Without that module the network is our own backbone (dpm_edge.model.imported.vision_transformers makes it one).

Shapes: B images · H×W pixels · N patch tokens · d width · D = 5 d.
Source: TransReID arXiv 2102.04378.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dpm_edge.model.backbone import EPS, ResidualAttentionBlock
from dpm_edge.spec import Preprocessing

PARTS = 4
SHIFT, GROUPS = 5, 2
"""How far the patches are shifted before they are dealt out, and to how many hands."""
_MLP = 4


class TransReID(nn.Module):
    """(B, 3, H, W) → (B, 5 d), not normalised: the whole picture's cls token, and a quarter of each part's.

    `depth` counts the blocks before the two last ones, of which one sees the whole picture and one each part.
    """

    def __init__(
        self, *, width: int, heads: int, depth: int, stride: int, dimension: int, preprocessing: Preprocessing
    ) -> None:
        super().__init__()
        if dimension != (1 + PARTS) * width:
            raise ValueError(f"dimension {dimension} with width {width}")
        eps = EPS["imagenet"]
        rows, columns = ((side - 16) // stride + 1 for side in (preprocessing.height, preprocessing.width))
        self.grid = (rows, columns)
        self.conv1 = nn.Conv2d(3, width, 16, stride)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(1 + rows * columns, width))

        def block() -> ResidualAttentionBlock:
            return ResidualAttentionBlock(width, heads, _MLP * width, False, eps)

        self.blocks = nn.ModuleList(block() for _ in range(depth))
        self.whole, self.whole_norm = block(), nn.LayerNorm(width, eps=eps)
        self.part, self.part_norm = block(), nn.LayerNorm(width, eps=eps)

    def to_map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) → the patch tokens before the last blocks (B, d, h, w), and the cls token (B, 1, d)."""
        x = self.conv1(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + self.positional_embedding
        for block in self.blocks:
            x = block(x)[0]
        return x[:, 1:].transpose(1, 2).unflatten(2, self.grid), x[:, :1]

    def from_map(self, grid: Tensor, cls: Tensor) -> Tensor:
        """What `to_map` gave → (B, 5 d)."""
        x = torch.cat([cls, grid.flatten(2).transpose(1, 2)], dim=1)
        whole = self.whole_norm(self.whole(x)[0][:, 0])
        patches = dealt(x[:, 1:])
        length = (x.shape[1] - 1) // PARTS
        parts = [patches[:, i * length : (i + 1) * length] for i in range(PARTS)]
        seen = [self.part_norm(self.part(torch.cat([cls, part], dim=1))[0][:, 0]) / PARTS for part in parts]
        return torch.cat([whole, *seen], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.from_map(*self.to_map(x))


def dealt(patches: Tensor) -> Tensor:
    """(B, N, d) → the patches shifted by SHIFT − 1 places, then taken alternately from GROUPS equal runs of them.

    TransReID shifts by one place less than its setting says. Where the runs cannot be equal, the last but one of the
    shifted patches counts twice.
    """
    shifted = torch.roll(patches, 1 - SHIFT, 1)
    if shifted.shape[1] % GROUPS:
        shifted = torch.cat([shifted, shifted[:, -2:-1]], dim=1)
    return shifted.unflatten(1, (GROUPS, -1)).transpose(1, 2).flatten(1, 2)
