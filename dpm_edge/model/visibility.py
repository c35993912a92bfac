"""Which patches show the person: two shares a patch, learned from masks that training knows exactly.

    seen (B, h, w)     share of the patch's pixels that show the person
    hidden (B, h, w)   share that would show the person if nothing stood in front

visibility (B,) = Σ seen / (Σ seen + Σ hidden): the share of the person that is in sight, of what lies inside the crop.
A person whose feet the box cuts off, with nothing in front, has visibility 1.

Shapes: B images · h×w grid · N = h·w patch tokens · d width. The idea, and the form of it, are this project's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SEEN, HIDDEN = 0, 1


class VisibilityHead(nn.Module):
    """Patch tokens on their grid (B, d, h, w) → logits (B, 2, h, w) of `seen` and `hidden`.

    No batch norm: its statistics would be those of the training pictures alone.
    """

    def __init__(self, width: int, hidden: int = 64) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(width, hidden, 1)
        self.around = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.out = nn.Conv2d(hidden, 2, 1)
        nn.init.zeros_(self.out.weight)
        assert self.out.bias is not None, "a convolution with a bias"
        nn.init.zeros_(self.out.bias)

    def forward(self, grid: Tensor) -> Tensor:
        return self.out(torch.relu(self.around(torch.relu(self.reduce(grid)))))


class StripePooling(nn.Module):
    """Tokens on their grid, pooled over what is seen in each of K horizontal stripes: (B, d, h, w) → (B, d).

    Stripe k gives d / K of the dimensions, by a matrix of its own. Where next to nothing of a stripe is seen, its
    dimensions come near 0: `weight` is the patches that the mean counts beside the seen ones.
    """

    weight = 0.25

    def __init__(self, width: int, stripes: int) -> None:
        super().__init__()
        self.stripes = stripes
        self.centre = nn.Parameter(torch.zeros(stripes, width))
        self.project = nn.Parameter(torch.randn(stripes, width, width // stripes) * width**-0.5)

    def forward(self, grid: Tensor, seen: Tensor) -> Tensor:
        """grid (B, d, h, w), seen (B, h, w) in 0..1 → (B, d)."""
        parts = grid.unflatten(2, (self.stripes, -1))  # (B, d, K, h/K, w)
        shares = seen.unsqueeze(1).unflatten(2, (self.stripes, -1))
        total = shares.sum((3, 4))  # (B, 1, K)
        centre = self.centre.T.unsqueeze(0).to(grid.dtype)
        pooled = ((parts * shares).sum((3, 4)) - centre * total) / (total + self.weight)
        return torch.matmul(pooled.permute(2, 0, 1), self.project.to(grid.dtype)).transpose(0, 1).flatten(1)


def share_in_sight(seen: Tensor, hidden: Tensor) -> Tensor:
    """(B, h, w) shares → (B,) visibility in 0..1; 0 where there is no person at all."""
    shown, covered = seen.flatten(1).sum(1), hidden.flatten(1).sum(1)
    return shown / (shown + covered).clamp(min=1e-6)
