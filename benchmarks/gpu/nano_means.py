"""What trained checkpoints become: their mean, its stem a part of the way back to ImageNet's weights."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import torch

from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.model.stem import OURS
from dpm_edge.train.start import load_lite0


def mean_of(paths: list[Path]) -> DPM:
    """The mean of several checkpoints' weights (model soups, arXiv 2203.05482), without prototypes."""
    nets = [checkpoint.load(path) for path in paths]
    states = [net.state_dict() for net in nets]
    made = DPM(dataclasses.replace(nets[0].spec, name="dpm-n"))
    made.load_state_dict({
        n: torch.stack([s[n].float() for s in states]).mean(0).to(t.dtype) if t.is_floating_point() else t
        for n, t in states[0].items() if n != "prototypes"
    })  # fmt: skip
    return made.eval()


def finish(paths: list[Path], stem: Path, back: float, out: Path, gates: float = 1.0) -> None:
    """Write the checkpoints' mean, its stem's weights `back` (0..1) of the way to first weights, without prototypes.

    The masks' logits are multiplied by `gates`: below 1, a mask weighs a feature's dimensions less.
    """
    net = mean_of(paths)
    first = copy.deepcopy(net.backbone.conv1)
    load_lite0(first, stem)  # type: ignore[arg-type]
    ours = net.backbone.conv1.state_dict()
    known = {n: t for n, t in first.state_dict().items() if not n.startswith(OURS)}
    mixed = {n: torch.lerp(ours[n], t, back) for n, t in known.items() if t.is_floating_point()}
    net.backbone.conv1.load_state_dict({**ours, **mixed})
    with torch.no_grad():
        for p in net.mask_generator.linear.parameters():
            p.mul_(gates)
    net.spec = dataclasses.replace(net.spec, mask_mean=0.5)
    print(checkpoint.save(net, out, half=True))
