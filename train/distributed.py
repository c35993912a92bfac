"""Many processes that train as one: `torchrun --nproc-per-node N -m dpm_edge.train.cli …`.

Every process draws the same global batch, augments it alike, runs its own part of it through the network, and gathers
the outputs of all, so that triplets, prototypes and anchoring see the global batch; batch norm counts over it too. The
gradients of the global loss are then averaged. The result is what one process computes on the same batch.

    B pictures of the global batch · W processes · b = B / W
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as collective
from torch import Tensor, nn

from dpm_edge.errors import SpecError
from dpm_edge.model.network import DPMOutput

Result = TypeVar("Result")


@dataclass(frozen=True)
class Processes:
    """Who we are among how many."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        """Whether this process evaluates, saves and speaks."""
        return self.rank == 0

    def part(self, batch: int) -> slice:
        """This process's rows of a global batch. Raises SpecError where the batch does not divide."""
        if batch % self.world:
            raise SpecError(
                f"expected a batch that divides over {self.world} processes, got {batch}. Change data.identities"
            )
        share = batch // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    def gather(self, out: DPMOutput) -> DPMOutput:
        """The output of the global batch, every tensor (b, …) → (B, …), differentiable; `tokens` stay local."""
        if self.world == 1:
            return out
        changed: dict[str, Any] = {
            f.name: torch.cat(collective.all_gather(value.contiguous()))
            for f in dataclasses.fields(out)
            if isinstance(value := getattr(out, f.name), Tensor)
        }
        return dataclasses.replace(out, **changed)

    def average_gradients(self, parameters: list[nn.Parameter]) -> None:
        """Mean of the gradients over all processes, in one message."""
        if self.world == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients])):
            gradient.copy_(piece.view_as(gradient))

    def agree(self, number: int) -> int:
        """The first process's number, for all."""
        if self.world == 1:
            return number
        box = [number]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def first_then_others(self, make: Callable[[], Result]) -> Result:
        """What `make` returns, made by the first process before the others, which find its file."""
        if not self.first:
            self.wait()
        made = make()
        if self.first:
            self.wait()
        return made

    def wait(self) -> None:
        """Until all processes are here."""
        if self.world > 1:
            dist.barrier()


def start(device: torch.device) -> Processes:
    """Join the group that torchrun's environment describes; alone without one."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return Processes()
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Processes(dist.get_rank(), dist.get_world_size())


def local_device(device: torch.device) -> torch.device:
    """The GPU of this process on its machine, or the CPU."""
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    return device


class GlobalBatchNorm(nn.Module):
    """Batch norm over the global batch, for (b, c) and (b, c, h, w); torch's own does this on GPUs alone.

    Shares parameters, buffers and their names with the batch norm that it stands in for.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.eps, self.momentum = norm.eps, float(norm.momentum or 0.1)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            self.register_buffer(name, getattr(norm, name))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        axes = [0, *range(2, x.dim())]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() / x.shape[1] * dist.get_world_size()
        x32 = x.float()
        mean = collective.all_reduce(x32.sum(axes)) / count
        centred = x32 - mean.view(shape)
        variance = collective.all_reduce(centred.square().sum(axes)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
            self.num_batches_tracked += 1
        scaled = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (scaled * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


def share_batch_norm(module: nn.Module) -> None:
    """Replace every batch norm below module by one over the global batch."""
    for name, child in module.named_children():
        if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
            setattr(module, name, GlobalBatchNorm(child))
        else:
            share_batch_norm(child)
