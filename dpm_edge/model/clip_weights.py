"""CLIP's image encoder from a local file into our backbone; the position table is resized to our grid.

Reads open_clip's and OpenAI's layout: tensors under `visual.`, as safetensors or as a plain state dict. Nothing is
downloaded. Which activation a file was trained with is not written in it: OpenAI's weights want a spec with
quick_gelu=True, open_clip's own mostly do not.
"""

from __future__ import annotations

import math
import pickle
import zipfile
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.errors import CheckpointError
from dpm_edge.model.backbone import Backbone
from dpm_edge.model.checkpoint import load_strictly, read_safetensors

_PREFIX = "visual."


def load_clip(backbone: Backbone, path: str | Path) -> None:
    """Copy CLIP's visual weights into `backbone`, strictly; its camera embedding, if any, keeps its values.

    Raises:
        CheckpointError: the file is missing, damaged, a TorchScript archive, holds anything but tensors, has no
            visual tensors, or is of another size (the tensor is named).
    """
    path = Path(path)
    tensors = _read(path)
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


def _read(path: Path) -> dict[str, Tensor]:
    """Tensors by name from safetensors or a tensors-only torch archive."""
    if not path.is_file():
        raise CheckpointError(f"expected a file with CLIP weights, but {path} does not exist")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist()):
                raise CheckpointError(
                    f"{path} is a TorchScript archive, which holds code; it was not opened. Where you trust it, keep "
                    "its tensors alone: from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v "
                    f"in torch.jit.load({str(path)!r}, 'cpu').state_dict().items()}}, 'clip.safetensors')"
                )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is damaged, or holds more than tensors ({reason}). Save it as safetensors"
        ) from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(k, str) for k in loaded):
        raise CheckpointError(f"expected a dictionary of named tensors in {path}, got a {type(loaded).__name__}")
    tensors = {name.removeprefix("module."): value for name, value in loaded.items()}
    return {name: value for name, value in tensors.items() if isinstance(value, Tensor)}
