"""Tensors by name out of somebody else's file: safetensors, or a torch archive that holds nothing but tensors.

No code is ever run: torch.load reads with weights_only, and NumPy's plain numbers, which training scripts write beside
the weights, are let through.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpm_edge.errors import CheckpointError
from dpm_edge.model.checkpoint import read_safetensors

_NESTED = ("state_dict", "model", "model_state_dict")
"""Names under which training scripts keep the weights beside other things."""
_WRAPPERS = ("module.",)
"""Prefixes that torch's parallel wrappers put before every name."""


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, by name, on the CPU.

    Raises:
        CheckpointError: the file is missing, damaged, a TorchScript archive, or holds what could run code.
    """
    if not path.is_file():
        raise CheckpointError(f"expected a file with weights, got {path}, which does not exist. Check the path")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any(name.endswith("constants.pkl") or "/code/" in name for name in archive.namelist()):
                raise CheckpointError(
                    f"{path} is a TorchScript archive, which holds code; it was not opened. Where you trust it, keep "
                    "its tensors alone: from safetensors.torch import save_file; save_file({k: v.contiguous() for k, v "
                    f"in torch.jit.load({str(path)!r}, 'cpu').state_dict().items()}}, 'weights.safetensors')"
                )
    try:
        with torch.serialization.safe_globals(_plain_numbers()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(_why(path, error)) from error
    for name in _NESTED:
        if isinstance(loaded, dict) and isinstance(loaded.get(name), dict):
            loaded = loaded[name]
    if not isinstance(loaded, dict) or not all(isinstance(k, str) for k in loaded):
        raise CheckpointError(f"expected a dictionary of named tensors in {path}, got a {type(loaded).__name__}")
    tensors = {name: value for name, value in loaded.items() if isinstance(value, Tensor)}
    for prefix in _WRAPPERS:
        if tensors and all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    return tensors


def _plain_numbers() -> list[Any]:
    """What NumPy's scalars are pickled with: training scripts keep Rank-1 or the loss as one."""
    scalar: Any = np.float64(0).__reduce__()[0]  # type: ignore[call-arg]
    scalars = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "?")]
    return [(scalar, "numpy.core.multiarray.scalar"), (scalar, "numpy._core.multiarray.scalar"), np.dtype, *scalars]


def _why(path: Path, error: Exception) -> str:
    """Say whether a file is damaged, or holds what could run code, and what to do."""
    wanted = re.search(r"(?:GLOBAL|[Gg]lobal:?) ([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and wanted:
        return (
            f"expected {path} to hold tensors alone, got a pickle with {wanted[1]}, which may run code; it was not "
            "opened. Where you trust it, save its state dict alone, as safetensors"
        )
    return (
        f"expected a whole file of weights, got {path} ({path.stat().st_size} bytes), which is damaged, cut short or "
        "something else. Copy it again from its source"
    )
