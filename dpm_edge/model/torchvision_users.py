"""Libraries that import torchvision, imported where its operators are missing."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

import torch


def import_user(name: str) -> ModuleType:
    """Import timm, open_clip or another library that imports torchvision.

    Beside a CPU build of torch, PyPI's torchvision wants two operators declared first.

    Raises:
        ImportError: the library, or torchvision, is not installed.
    """
    if torch.version.cuda is None:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for operator in ("nms", "qnms"):
            if not hasattr(torch.ops.torchvision, operator):
                library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return import_module(name)
