"""The averaged weights that are evaluated and kept: a few fused operations a step, whatever the number of weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from dpm_edge.model.network import DPM


class MovingAverage:
    """An exponential average of a network's weights, whose decay rises from 0.1 with the number of updates.

    The first update copies the weights; buffers (batch norm's statistics) are the network's own at every update.
    Nothing is read back from the device.
    """

    def __init__(self, net: DPM, decay: float) -> None:
        """net: the network that will train; which of its parameters do is settled."""
        self.module: DPM = copy.deepcopy(net).requires_grad_(False)
        self.decay, self.count = decay, 0
        trained = [(a, p) for a, p in zip(self.module.parameters(), net.parameters()) if p.requires_grad]
        self._averaged: list[Tensor] = [a for a, _ in trained]
        self._current: list[Tensor] = [p for _, p in trained]
        buffers: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for ours, theirs in zip(self.module.buffers(), net.buffers()):
            pair = buffers.setdefault(ours.dtype, ([], []))
            pair[0].append(ours)
            pair[1].append(theirs)
        self._buffers = list(buffers.values())

    @torch.no_grad()
    def update(self) -> None:
        """After a step of the network."""
        if self.count:
            weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
            torch._foreach_lerp_(self._averaged, self._current, weight)
        else:
            torch._foreach_copy_(self._averaged, self._current)
        for ours, theirs in self._buffers:
            torch._foreach_copy_(ours, theirs)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs."""
        return {"count": self.count, "module": self.module.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put state_dict's values back."""
        self.count = state["count"]
        self.module.load_state_dict(state["module"])
