"""What the model's tests share: a tiny spec, and open_clip as the independent implementation."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

from dpm_edge.model.torchvision_users import import_user
from dpm_edge.spec import ModelSpec, Preprocessing


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def tiny() -> ModelSpec:
    """d = 48, 3 heads, 3 blocks, 64×64 pixels: a 4×4 grid."""
    return ModelSpec(
        name="tiny",
        width=48,
        heads=3,
        layers=3,
        mask_blocks=(1, 3),
        joint_dim=32,
        preprocessing=Preprocessing(height=64, width=64),
    )


@pytest.fixture(scope="session")
def open_clip_transformer() -> ModuleType:
    """open_clip.transformer; beside a CPU build of torch its torchvision needs two operators declared first."""
    import_user("open_clip")
    import open_clip.transformer

    return open_clip.transformer
