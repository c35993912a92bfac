"""CLIP's image encoder from a local file into our backbone; the position table is resized to our grid.

Reads open_clip's and OpenAI's layout: tensors under `visual.`, as safetensors or as a plain state dict. Nothing is
downloaded. Which activation a file was trained with is not written in it: OpenAI's weights want a spec with
quick_gelu=True, open_clip's own mostly do not.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.errors import CheckpointError
from dpm_edge.model.backbone import Backbone
from dpm_edge.model.checkpoint import load_strictly
from dpm_edge.model.weights_file import read_tensors

_PREFIX = "visual."


def load_clip(backbone: Backbone, path: str | Path) -> None:
    """Copy CLIP's visual weights into `backbone`, strictly; its camera embedding, if any, keeps its values.

    Raises:
        CheckpointError: the file is missing, damaged, a TorchScript archive, holds anything but tensors, has no
            visual tensors, or is of another size (the tensor is named).
    """
    path = Path(path)
    tensors = read_tensors(path)
    visual = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items() if name.startswith(_PREFIX)}
    if not visual:
        raise CheckpointError(
            f"expected CLIP weights in open_clip's or OpenAI's layout, but {path} holds no tensor named {_PREFIX}…; it "
            f"holds {', '.join(sorted(tensors)[:4]) or 'nothing'}…"
        )
    if "positional_embedding" in visual:
        visual["positional_embedding"] = resize_positions(visual["positional_embedding"], backbone.grid)
    if backbone.camera_embedding is not None:
        visual["camera_embedding"] = backbone.camera_embedding.detach()
    load_strictly(backbone, visual, source=str(path))


def resize_positions(table: Tensor, grid: tuple[int, int]) -> Tensor:
    """Resize a position table (1 + g·g, d), cls row first, to (1 + h·w, d), bilinearly; the cls row is kept.

    Raises:
        CheckpointError: the table is not that of a square grid.
    """
    side = math.isqrt(max(table.shape[0] - 1, 0))
    if table.dim() != 2 or side < 1 or side * side != table.shape[0] - 1:
        raise CheckpointError(f"expected positional_embedding (1 + g·g, d) of a square grid, got {tuple(table.shape)}")
    if (side, side) == tuple(grid):
        return table.float()
    cls, patches = table[:1].float(), table[1:].float()
    square = patches.T.reshape(1, -1, side, side)
    resized = F.interpolate(square, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([cls, resized.flatten(2).squeeze(0).T])
