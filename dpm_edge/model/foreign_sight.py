"""What an imported network sees of a person: a map of seen and hidden, and gates, from its last feature map.

The network itself stays as it is. Where it has no feature map, a small network of convolutions beside it looks at the
picture. `dpm-edge train mask` teaches both; the idea, and the form of it, are this project's own.

Shapes: B images · H×W pixels · c channels · h×w map · D feature dimensions · K what the gates read.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.model.visibility import HIDDEN, SEEN, VisibilityHead

POOLS = ("all", "seen")
PICTURE_CHANNELS = (16, 32, 64, 64)
"""Of the convolutions that look at the picture; each halves it."""
TINY = 0.02
"""What a place counts at least in a mean over the seen or the hidden ones."""
BESIDE = 0.2
"""With pool "seen", what every place counts beside the share of it that shows the person: where nothing is seen, all
places count alike. Of 0.05, 0.2 and 0.5 it found most covered people of Market-1501's training part."""


class Gates(nn.Module):
    """What places show, what is hidden and the feature, (B, K) → one gate in (0, 1) per dimension (B, D).

    The last linear starts at zero, so that every gate starts at 0.5 and the masked metric as the plain one. While it
    learns, each gate's mean over the batch is taken off its logits, `centre` takes the mean off for good: what all
    masks have in common would weigh the dimensions anew for these people, and says nothing of a picture.
    """

    def __init__(self, channels: int, rows: int, dimension: int, hidden: int = 256) -> None:
        super().__init__()
        self.hidden = nn.Linear(3 * channels + 2 * rows + dimension, hidden)
        self.out = nn.Linear(hidden, dimension)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @staticmethod
    def inputs(grid: Tensor, shares: Tensor, raw: Tensor) -> Tensor:
        """Map (B, c, h, w), shares of seen and hidden (B, 2, h, w), feature (B, D) of any norm → (B, K): the map's mean
        over all places, over the seen and over the hidden ones, both shares by row, and the feature."""
        parts = [grid.mean((2, 3))]
        for which in (SEEN, HIDDEN):
            weight = shares[:, which : which + 1] + TINY
            parts.append((grid * weight).sum((2, 3)) / weight.sum((2, 3)))
        dimension = raw.shape[1]
        return torch.cat([*parts, shares.mean(3).flatten(1), F.normalize(raw, dim=1) * dimension**0.5], 1)

    def forward(self, inputs: Tensor) -> Tensor:
        logits = self.out(torch.relu(self.hidden(inputs))).float()
        return torch.sigmoid(logits - logits.mean(0) if self.training else logits)

    @torch.no_grad()
    def centre(self, inputs: Tensor) -> None:
        """Take the mean over these inputs (n, K) off each gate's logits."""
        self.out.bias.sub_(self.out(torch.relu(self.hidden(inputs))).mean(0))


class ForeignSight(nn.Module):
    """Reads a feature map (B, c, h, w), or with `picture` pictures (B, 3, H, W).

    Args:
        channels: c.
        rows: h of the map.
        dimension: D.
        gates: whether there are gates; without, the mask is ones.
        pool: one of POOLS. "seen": the network goes on with more of the places that show the person and less of
            others; their mean weight is 1.
        picture: look at the picture.

    Raises:
        ValueError: `pool` is none of POOLS, or changes a map with `picture`.
    """

    def __init__(
        self, *, channels: int, rows: int, dimension: int, gates: bool, pool: str = POOLS[0], picture: bool = False
    ) -> None:
        super().__init__()
        if pool not in POOLS or (picture and pool != POOLS[0]):
            raise ValueError(f"pool {pool!r} with picture {picture}")
        self.dimension, self.pool, self.picture = dimension, pool, picture
        self.channels = PICTURE_CHANNELS[-1] if picture else channels
        self.look: nn.Module = _looking() if picture else nn.Identity()
        self.visibility = VisibilityHead(self.channels)
        self.gates = Gates(self.channels, rows, dimension) if gates else None

    @property
    def pools(self) -> bool:
        """Whether the network goes on with another map than its own."""
        return self.pool != POOLS[0]

    def forward(self, grid: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of `seen` and `hidden` (B, 2, h, w) (dpm_edge.model.visibility), and the map (B, c, h, w) that the
        network goes on with."""
        logits = self.visibility(self.look(grid))
        if not self.pools:
            return logits, grid
        weight = torch.sigmoid(logits[:, SEEN : SEEN + 1]) + BESIDE
        return logits, grid * (weight / weight.mean((2, 3), keepdim=True))

    def mask(self, grid: Tensor, logits: Tensor, raw: Tensor) -> Tensor:
        """What it reads, what it says of it, and the network's feature (B, D) → gates (B, D) float32, or ones."""
        if self.gates is None:
            return torch.ones_like(raw)
        return self.gates(self.gate_inputs(grid, logits, raw))

    def gate_inputs(self, grid: Tensor, logits: Tensor, raw: Tensor) -> Tensor:
        """As `mask`, before the gates: (B, K)."""
        return Gates.inputs(self.look(grid), torch.sigmoid(logits), raw)


def _looking() -> nn.Sequential:
    """Pictures (B, 3, H, W) → (B, c, H/16, W/16), rounded up. No batch norm: a few hundred pictures may teach it."""
    layers: list[nn.Module] = []
    for inputs, outputs in zip((3, *PICTURE_CHANNELS), PICTURE_CHANNELS):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)
