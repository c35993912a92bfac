"""Whether an op runs its Triton kernel or its torch reference."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

from torch import Tensor


def runs_kernel(tensor: Tensor) -> bool:
    """Whether the kernel runs: on a GPU, and on a CPU under TRITON_INTERPRET=1. Otherwise the reference does.

    Raises:
        ModuleNotFoundError: the kernel is to run and Triton is not installed; the message says how to install it.
    """
    if not tensor.is_cuda and os.environ.get("TRITON_INTERPRET") != "1":
        return False
    if not _has_triton():
        raise ModuleNotFoundError(
            f"expected Triton, which runs the kernels on {tensor.device}, got a Python without it. "
            "Install it: pip install 'dpm-edge[gpu]'",
            name="triton",
        )
    return True


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
