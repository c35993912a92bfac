"""A tiny DPM++ network whose every weight and statistic is random."""

from __future__ import annotations

import torch

from dpm_edge.model.network import DPM
from dpm_edge.spec import ModelSpec, Preprocessing, WeightsCard

SPEC = ModelSpec(
    name="tiny",
    width=48,
    heads=3,
    layers=2,
    mask_blocks=(1, 2),
    joint_dim=16,
    hmg="lite",
    mask_mean=0.4,
    preprocessing=Preprocessing(height=64, width=64),
    weights=WeightsCard(licence="CC0-1.0", data="noise", recipe="tests"),
)


def network(**changes) -> DPM:
    """A tiny network whose every weight and statistic is random, so that nothing hides behind a zero or a one."""
    torch.manual_seed(0)
    net = DPM(SPEC.replace(**changes)).eval()
    with torch.no_grad():
        for name, tensor in net.mask_generator.state_dict().items():
            if name.endswith(("running_var", "bias", "running_mean")):
                tensor.uniform_(0.5, 1.0)
        net.mask_generator.linear.weight.normal_(std=0.1)
    return net
