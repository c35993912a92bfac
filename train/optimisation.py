"""Parameter groups, learning-rate schedule, and the step: joint, or alternating between mask generator and the rest."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dpm_edge.errors import SpecError
from dpm_edge.model.network import DPM
from dpm_edge.model.stem import ConvStem
from dpm_edge.train.config import OptimiserConfig, ScheduleConfig
from dpm_edge.train.distributed import Processes

NOT_DECAYED = ("class_embedding", "positional_embedding", "camera_embedding")


def freeze(net: DPM, config: OptimiserConfig, *, masked: bool, text: bool) -> None:
    """Switch off the gradients of what is not trained; an untrained mask generator is set to 0.5 everywhere."""
    net.mask_generator.requires_grad_(masked)
    if not masked:
        nn.init.zeros_(net.mask_generator.linear.weight)
        nn.init.zeros_(net.mask_generator.linear.bias)
    if net.backbone.proj is not None:
        net.backbone.proj.requires_grad_(text)
    if config.frozen_stages or config.fixed_statistics:
        if not isinstance(net.backbone.conv1, ConvStem):
            raise SpecError(
                f"expected a model with a convolutional stem for optimiser.frozen_stages={config.frozen_stages}, "
                f"got {net.spec.name!r}. Set optimiser.frozen_stages=0 optimiser.fixed_statistics=false"
            )
        net.backbone.conv1.freeze(config.frozen_stages, config.fixed_statistics)
    freeze_lower(net, config.frozen_blocks)


def freeze_lower(net: DPM, blocks: int) -> None:
    """Switch off the gradients of the lowest `blocks` blocks and of all before them; 0 leaves everything as it is."""
    if not blocks:
        return
    backbone = net.backbone
    for part in (backbone.conv1, backbone.ln_pre, *backbone.transformer.resblocks[:blocks]):
        part.requires_grad_(False)
    backbone.class_embedding.requires_grad_(False)
    backbone.positional_embedding.requires_grad_(False)


def optimisers(net: DPM, config: OptimiserConfig) -> list[torch.optim.AdamW]:
    """One AdamW for all, or [the rest, the mask generator] for alternating optimisation."""
    mask: list[dict] = []
    rest: list[dict] = []
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            decay = config.weight_decay if parameter.dim() > 1 and not name.endswith(NOT_DECAYED) else 0.0
            factor = config.backbone_lr if name.startswith("backbone.") else 1.0
            if name.startswith("backbone.conv1.") and isinstance(net.backbone.conv1, ConvStem):
                factor *= config.stem_lr if not name.startswith("backbone.conv1.tokens.") else 1.0
            factor = config.prototype_lr if name == "prototypes" else factor
            of_mask = name.startswith("mask_generator.")
            if of_mask:
                factor, decay = config.mask_lr, decay * config.mask_weight_decay
            group = {"params": [parameter], "weight_decay": decay, "factor": factor}
            (mask if of_mask else rest).append(group)
    parts = [rest, mask] if config.optimisation == "alternating" and mask else [rest + mask]
    return [torch.optim.AdamW(_merged(p), lr=config.lr, betas=config.betas, fused=True) for p in parts]


def _merged(groups: list[dict]) -> list[dict]:
    """Groups of equal settings made one."""
    merged: dict[tuple, dict] = {}
    for group in groups:
        key = (group["weight_decay"], group["factor"])
        merged.setdefault(key, {**group, "params": []})["params"] += group["params"]
    return list(merged.values())


def rate(config: ScheduleConfig, epoch: float, epochs: int) -> float:
    """Factor on the learning rate at a fractional epoch: linear warm-up, then cosine to zero or steps."""
    warm = min(config.warmup_epochs, epochs / 4)
    if epoch < warm:
        return max(epoch, 1e-2) / warm
    if config.shape == "step":
        return config.step_factor ** sum(epoch >= at for at in config.step_at)
    return 0.5 * (1 + math.cos(math.pi * (epoch - warm) / max(epochs - warm, 1e-9)))


def set_rate(steppers: list[torch.optim.AdamW], lr: float) -> None:
    """Every group's learning rate: lr times the group's own factor."""
    for optimiser in steppers:
        for group in optimiser.param_groups:
            group["lr"] = lr * group["factor"]


def owned(optimiser: torch.optim.Optimizer) -> list[nn.Parameter]:
    """The parameters that an optimiser steps."""
    return [p for group in optimiser.param_groups for p in group["params"]]


def step(optimiser: torch.optim.Optimizer, loss: Tensor, clip: float, processes: Processes | None = None) -> Tensor:
    """Backward into this optimiser's parameters alone, average over processes, clip, step.

    Returns the gradient's norm before clipping, a scalar on the device.
    """
    parameters = owned(optimiser)
    optimiser.zero_grad(set_to_none=True)
    loss.backward(inputs=parameters)
    if processes is not None:
        processes.average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    optimiser.step()
    return norm
