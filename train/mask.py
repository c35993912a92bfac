"""Teach the mask generator alone, everything else of a checkpoint held still: minutes on a CPU.

dpm-edge train mask CHECKPOINT --data DIR … --out DIR

Prototype learning leaves masks that hardly differ from picture to picture: the prototypes fit the training people
without them. Here each gate is told instead whether its dimension of a covered picture's feature still agrees with the
picture's person (`losses.agreement`, ours [R]). The covers are boxes of noise, of one colour, or cut from other
training pictures; nothing of what the evaluation covers queries with.

n pictures · B batch · K blocks · N patches · d feature width
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.errors import DataError
from dpm_edge.model.network import DPM
from dpm_edge.progress import say
from dpm_edge.train import losses
from dpm_edge.train.data import Pictures, to_input
from dpm_edge.train.evaluate import embed
from dpm_edge.train.status import counted

COVERED = (0.1, 0.6)
"""Least and largest share of a picture under its box."""
WHOLE = 0.15
"""Share of the pictures that are taught as they are."""
ASPECT = (0.7, 5.5)
"""Least and largest height of a box over its width."""
CHANCE = f" (chance {np.log(2):.4f})"
"""Of a gate that says half every time."""


@dataclass(kw_only=True)
class Lesson:
    """How the mask generator is taught."""

    pictures: int = 6000
    """Training pictures, covered once each; their tokens are kept in memory."""
    epochs: int = 8
    """Passes over them."""
    batch: int = 128
    """Pictures of one step."""
    lr: float = 2e-3
    """AdamW's peak learning rate; cosine to zero."""
    weight_decay: float = 0.01
    """AdamW's."""
    sharpness: float = 2.0
    """Factor on the gates' logits over those of a calibrated yes or no; above 1 a mask closes more firmly. Not of an
    imported network."""
    seed: int = 0
    """Of the choice of pictures, their covers and the order of batches."""


def covered(pixels: Tensor, others: Tensor, draw: np.random.Generator) -> Tensor:
    """A copy of pixels (n, 3, H, W) uint8, most under a box of noise, of one colour or of `others` (M, 3, H, W)."""
    return covered_exactly(pixels, others, draw)[0]


def covered_exactly(pixels: Tensor, others: Tensor, draw: np.random.Generator) -> tuple[Tensor, Tensor]:
    """As `covered`; and which of the pixels are under a box, (n, H, W) bool."""
    made = pixels.clone()
    height, width = pixels.shape[2:]
    under = torch.zeros(len(pixels), height, width, dtype=torch.bool)
    for picture, hides in zip(made, under):
        if draw.random() < WHOLE:
            continue
        area = draw.uniform(*COVERED) * height * width
        tall = int(np.clip(np.sqrt(area * np.exp(draw.uniform(*np.log(ASPECT)))), area / width, height))
        wide = int(np.clip(area / tall, 1, width))
        top, left = draw.integers(height - tall + 1), draw.integers(width - wide + 1)
        box = picture[:, top : top + tall, left : left + wide]
        hides[top : top + tall, left : left + wide] = True
        kind = draw.integers(3)
        if kind == 2:
            box[:] = others[draw.integers(len(others)), :, top : top + tall, left : left + wide]
        else:
            size = box.shape if kind == 0 else (3, 1, 1)
            box[:] = torch.from_numpy(draw.integers(0, 256, size, dtype=np.uint8))
    return made, under


@torch.inference_mode()
def look(net: DPM, pixels: Tensor, what: str, *, tokens: bool, quiet: bool) -> tuple[Tensor, Tensor | None]:
    """Retrieval features before normalising (n, d) float32, and tokens (n, K, 1+N, d) float16 if asked for."""
    features, held = [], []
    parts = pixels.split(64)
    for part in counted(parts, what=what, total=len(parts), quiet=quiet):
        out = net.forward_train(to_input(part, net.spec.preprocessing))
        features.append(out.side(net.spec.neck))
        if tokens:
            held.append(torch.stack(out.tokens, 1).half())
    return torch.cat(features), torch.cat(held) if tokens else None


def people_of(features: Tensor, labels: Tensor) -> Tensor:
    """Each person's mean normalised feature (C, d), normalised again. features (n, d), labels (n,) 0..C−1."""
    total = torch.zeros(int(labels.max()) + 1, features.shape[1]).index_add_(0, labels, F.normalize(features, dim=1))
    return F.normalize(total, dim=1)


def teach(net: DPM, train: Pictures, lesson: Lesson, *, quiet: bool = False) -> DPM:
    """A copy of `net` (on the CPU) with a mask generator taught from the start, and its new mean mask.

    Raises:
        DataError: the pictures are of fewer than two people.
    """
    labels = train.labels()
    if int(labels.max()) < 1:
        raise DataError("expected pictures of two people or more to teach masks with, got one person's")
    draw = np.random.default_rng(lesson.seed)
    torch.manual_seed(lesson.seed)
    chosen = torch.from_numpy(draw.permutation(len(train))[: lesson.pictures])
    taught = copy.deepcopy(net).eval().requires_grad_(False)
    person = people_of(look(taught, train.pixels, "whole pictures", tokens=False, quiet=quiet)[0], labels)
    hidden = covered(train.pixels[chosen], train.pixels, draw)
    features, tokens = look(taught, hidden, "covered pictures", tokens=True, quiet=quiet)
    assert tokens is not None
    head = type(net.mask_generator)(net.spec.width, net.spec.grid, len(net.spec.mask_blocks)).train()

    def loss(rows: Tensor) -> Tensor:
        mask = head(tokens[rows].float().unbind(1))
        return losses.agreement(mask, features[rows], person[labels[chosen[rows]]], lesson.sharpness)

    fit(head, len(chosen), loss, lesson, "masks", CHANCE, quiet=quiet)
    taught.mask_generator = head.eval()
    sample = train.pixels[:: max(1, len(train) // 1000)]
    taught.spec = replace(taught.spec, mask_mean=float(embed(taught, sample)[1].mean()))
    return taught


def fit(
    head: nn.Module,
    count: int,
    loss_of: Callable[[Tensor], Tensor],
    lesson: Lesson,
    what: str,
    beside: str = "",
    *,
    quiet: bool,
) -> None:
    """Teach a module: epochs over `count` pictures, by the loss of a batch's rows (B,).

    Says each epoch's mean loss, with `beside` behind it.
    """
    optimiser = torch.optim.AdamW(head.parameters(), lr=lesson.lr, weight_decay=lesson.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, max(1, lesson.epochs * len(_batches(count, lesson.batch)))
    )
    for epoch in range(lesson.epochs):
        spent, name = [], f"{what}, epoch {epoch + 1}/{lesson.epochs}"
        for rows in counted(_batches(count, lesson.batch), what=name, quiet=quiet):
            loss = loss_of(rows)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            spent.append(float(loss.detach()))
        if not quiet:
            say(f"{name}: loss {np.mean(spent):.4f}{beside}")


def _batches(count: int, size: int) -> list[Tensor]:
    """Rows of an epoch's batches, in random order; a last one under half a batch is left out."""
    return [rows for rows in torch.randperm(count).split(size) if 2 * len(rows) >= min(size, count)]
