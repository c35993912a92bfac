"""SPS, salient patch selection: which patches show the person, learned from identity labels alone.

    B pictures · N = h·w patches · C identities.   Source: SPT, AAAI 2024.

The patch tokens of the mask blocks, detached, go through one 1×1 convolution and a sigmoid: s ∈ (0, 1)^N. Each batch
passes three times: whole; patch embeddings × s; patch embeddings × (1 − s). What is kept must tell the identity, what
is discarded must not, and about `usage` of the patches are kept. M = [s ≥ threshold] is computed once for a training
set and cached.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from dpm_edge.files import write_whole
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.progress import say
from dpm_edge.train import losses, state
from dpm_edge.train.augment import augment, flip
from dpm_edge.train.config import AugmentConfig, Config, SaliencyConfig
from dpm_edge.train.data import IdentitySampler, Pictures, to_input
from dpm_edge.train.optimisation import freeze_lower, optimisers, rate, set_rate, step
from dpm_edge.train.start import network
from dpm_edge.train.status import counted

HEAD = "head.safetensors"
"""The file of the 1×1 convolution beside the network's checkpoint."""
RESUME = "saliency-resume.pt"
"""The state of SPS after its last whole epoch; removed when it is trained."""


class SaliencyHead(nn.Module):
    """The 1×1 convolution over the tokens of several blocks."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.score = nn.Linear(blocks * width, 1)

    def forward(self, tokens: list[Tensor]) -> Tensor:
        """K × (B, 1+N, d), cls first → (B, N) float32 in (0, 1). Gradients stop at the tokens."""
        patches = torch.cat([F.layer_norm(t[:, 1:].detach().float(), t.shape[2:]) for t in tokens], dim=2)
        with torch.autocast(patches.device.type, enabled=False):
            return torch.sigmoid(self.score(patches).squeeze(2))


class PassOutput(Protocol):
    """What SPS reads of one pass."""

    @property
    def f(self) -> Tensor: ...

    @property
    def logits(self) -> Tensor | None: ...


class Pass(NamedTuple):
    """One pass of a batch without its mask, which SPS has no use for."""

    f: Tensor
    """(B, d): the cls token after the last LayerNorm."""
    logits: Tensor | None
    """(B, C) float32."""
    tokens: list[Tensor]
    """K × (B, 1+N, d)."""


def one_pass(net: DPM, inputs: Tensor, scale: Tensor | None = None) -> Pass:
    """Backbone, neck and classifier. inputs (B, 3, H, W); scale (B, N): factors on the patch embeddings."""
    assert net.prototypes is not None
    blocks = net.spec.mask_blocks if scale is None else ()
    out = net.backbone(inputs, blocks=blocks, patch_scale=scale)
    with torch.autocast(inputs.device.type, enabled=False):
        return Pass(out.cls, F.linear(net.neck(out.cls.float()), net.prototypes.float()), out.tokens)


def saliency_losses(
    whole: PassOutput, kept: PassOutput, discarded: PassOutput, saliency: Tensor, labels: Tensor, config: SaliencyConfig
) -> dict[str, Tensor]:
    """Weighted terms by name: identity on whole and kept, triplet on whole, overlap, usage."""
    assert whole.logits is not None and kept.logits is not None and discarded.logits is not None
    alike = (whole.logits.softmax(1) * discarded.logits.softmax(1)).sum(1).mean()
    return {
        "whole": F.cross_entropy(whole.logits, labels),
        "kept": F.cross_entropy(kept.logits, labels),
        "triplet": losses.batch_hard_triplet(whole.f, labels),
        "overlap": config.overlap_weight * alike,
        "usage": config.usage_weight * (saliency.mean() - config.usage).square(),
    }


def train_saliency(
    config: Config, pictures: Pictures, device: torch.device, out: Path, quiet: bool = False
) -> tuple[DPM, SaliencyHead]:
    """Train SPS on the pictures, or on those of the first people alone; goes on after the last epoch kept in `out`."""
    labels = pictures.labels()
    if config.saliency.identities:
        labels = torch.where(labels < config.saliency.identities, labels, -1)
    net = network(config.model, int(labels.max()) + 1, 0, config.seed).to(device)
    torch.manual_seed(config.seed)
    head = SaliencyHead(net.spec.width, len(net.spec.mask_blocks)).to(device)
    net.mask_generator.requires_grad_(False)
    if net.backbone.proj is not None:
        net.backbone.proj.requires_grad_(False)
    freeze_lower(net, config.optimiser.frozen_blocks)
    [stepper] = optimisers(net, config.optimiser)[:1]
    stepper.add_param_group({"params": list(head.parameters()), "weight_decay": 0.0, "factor": config.saliency.head_lr})
    sampler = IdentitySampler(labels.numpy(), config.data.identities, config.data.pictures, config.seed)
    first = _restore(out / RESUME, config, net, head, stepper)
    draw = torch.Generator(device)
    plain = AugmentConfig(pad=config.augment.pad, erase=0.0, colour=config.augment.colour)
    nothing = torch.zeros(
        (config.data.identities * config.data.pictures, *net.spec.grid), dtype=torch.bool, device=device
    )
    labels = labels.to(device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and config.optimiser.bf16)
    for epoch in counted(range(first, config.saliency.epochs), what="saliency", quiet=quiet):
        for number, rows in enumerate(torch.from_numpy(sampler.epoch(epoch)).to(device)):
            done = epoch + number / sampler.batches
            set_rate([stepper], config.saliency.lr * rate(config.schedule, done, config.saliency.epochs))
            draw.manual_seed((config.seed << 32) + epoch * sampler.batches + number)
            torch.manual_seed((config.seed << 32) + epoch * sampler.batches + number)
            pixels, _ = flip(pictures.pixels[rows].float(), nothing, config.augment.flip, draw)
            inputs = to_input(augment(pixels, plain, draw), net.spec.preprocessing)
            with autocast:
                whole = one_pass(net, inputs)
                saliency = head(whole.tokens)
                kept = one_pass(net, inputs, saliency)
                discarded = one_pass(net, inputs, 1 - saliency)
            terms = saliency_losses(whole, kept, discarded, saliency, labels[rows], config.saliency)
            step(stepper, torch.stack(list(terms.values())).sum(), config.optimiser.clip)
        kept_state = {"net": net.state_dict(), "head": head.state_dict(), "stepper": stepper.state_dict()}
        state.save(out / RESUME, {"config": json.dumps(config.to_dict()), "epoch": epoch + 1, **kept_state})
        if not quiet:
            say("saliency " + " ".join(f"{k} {v.item():.3f}" for k, v in terms.items()) + f" s {saliency.mean():.3f}")
    return net, head


def _restore(path: Path, config: Config, net: DPM, head: SaliencyHead, stepper: torch.optim.Optimizer) -> int:
    """Put the state kept in `path` back, if there is one; returns the epochs done. Raises CheckpointError as
    `state.load` does."""
    if not path.is_file():
        return 0
    saved = state.load(path, config)
    net.load_state_dict(saved["net"])
    head.load_state_dict(saved["head"])
    stepper.load_state_dict(saved["stepper"])
    return int(saved["epoch"])


@torch.inference_mode()
def saliency_of(net: DPM, head: SaliencyHead, pixels: Tensor, batch: int = 256) -> Tensor:
    """(n, 3, H, W) uint8 → (n, h, w) float32 on the CPU."""
    net.eval()
    found, blocks = [], net.spec.mask_blocks
    for part in pixels.split(batch):
        out = net.backbone(to_input(part.to(head.score.weight.device), net.spec.preprocessing), blocks=blocks)
        found.append(head(out.tokens).view(-1, *net.spec.grid).cpu())
    return torch.cat(found)


def save_saliency_model(path: Path, net: DPM, head: SaliencyHead) -> None:
    """Keep SPS, for pictures of other people: a folder with a checkpoint of its network and its head."""
    path.mkdir(parents=True, exist_ok=True)
    net.prototypes = None
    checkpoint.save(net, path / "network")
    head_state = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    write_whole(path / HEAD, to_safetensors(head_state))


def load_saliency_model(path: Path) -> tuple[DPM, SaliencyHead]:
    """What save_saliency_model kept, on the CPU. Raises CheckpointError where it is missing or damaged."""
    net = checkpoint.load(path / "network")
    head = SaliencyHead(net.spec.width, len(net.spec.mask_blocks))
    checkpoint.load_strictly(head, checkpoint.read_safetensors(path / HEAD), source=str(path / HEAD))
    return net, head
