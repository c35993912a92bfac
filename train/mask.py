"""Teach the mask generator alone, everything else of a checkpoint held still: minutes on a CPU.

dpm-edge train mask CHECKPOINT --data DIR … --out DIR

Prototype learning leaves masks that hardly differ from picture to picture: the prototypes fit the training people
without them. Here each gate is told instead whether its dimension of a covered picture's feature still agrees with the
picture's person (`losses.agreement`, ours [R]). The covers are boxes of noise, of one colour, or cut from other
training pictures; nothing of what the evaluation covers queries with.

n pictures · B batch · K blocks · N patches · d feature width
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.env import machine_card
from dpm_edge.errors import CheckpointError, DataError, DpmError
from dpm_edge.files import write_whole
from dpm_edge.labels import AUTO
from dpm_edge.layouts import LAYOUTS, read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.progress import say
from dpm_edge.train import losses
from dpm_edge.train.data import Pictures, decode, to_input
from dpm_edge.train.evaluate import curves, embed, occlusion_sets, scores, summary
from dpm_edge.train.status import counted

COVERED = (0.1, 0.6)
"""Least and largest share of a picture under its box."""
WHOLE = 0.15
"""Share of the pictures that are taught as they are."""
ASPECT = (0.7, 5.5)
"""Least and largest height of a box over its width."""


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
    """Factor on the gates' logits over those of a calibrated yes or no; above 1 a mask closes more firmly."""
    seed: int = 0
    """Of the choice of pictures, their covers and the order of batches."""


def covered(pixels: Tensor, others: Tensor, draw: np.random.Generator) -> Tensor:
    """A copy of pixels (n, 3, H, W) uint8, most under a box of noise, of one colour or of `others` (M, 3, H, W)."""
    made = pixels.clone()
    height, width = pixels.shape[2:]
    for picture in made:
        if draw.random() < WHOLE:
            continue
        area = draw.uniform(*COVERED) * height * width
        tall = int(np.clip(np.sqrt(area * np.exp(draw.uniform(*np.log(ASPECT)))), area / width, height))
        wide = int(np.clip(area / tall, 1, width))
        top, left = draw.integers(height - tall + 1), draw.integers(width - wide + 1)
        box = picture[:, top : top + tall, left : left + wide]
        kind = draw.integers(3)
        if kind == 2:
            box[:] = others[draw.integers(len(others)), :, top : top + tall, left : left + wide]
        else:
            size = box.shape if kind == 0 else (3, 1, 1)
            box[:] = torch.from_numpy(draw.integers(0, 256, size, dtype=np.uint8))
    return made


@torch.inference_mode()
def look(net: DPM, pixels: Tensor, what: str, *, tokens: bool, quiet: bool) -> tuple[Tensor, Tensor | None]:
    """Retrieval features before normalising (n, d) float32, and tokens (n, K, 1+N, d) float16 if asked for."""
    features, held = [], []
    parts = pixels.split(64)
    for part in counted(parts, what=what, total=len(parts), quiet=quiet):
        out = net.forward_train(to_input(part, net.spec.preprocessing))
        features.append(out.neck if net.spec.neck == "after" else out.f)
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
    optimiser = torch.optim.AdamW(head.parameters(), lr=lesson.lr, weight_decay=lesson.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, max(1, lesson.epochs * len(_batches(len(chosen), lesson.batch)))
    )
    for epoch in range(lesson.epochs):
        spent = []
        for rows in counted(
            _batches(len(chosen), lesson.batch), what=f"epoch {epoch + 1}/{lesson.epochs}", quiet=quiet
        ):
            mask = head(tokens[rows].float().unbind(1))
            loss = losses.agreement(mask, features[rows], person[labels[chosen[rows]]], lesson.sharpness)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            spent.append(float(loss.detach()))
        if not quiet:
            say(f"epoch {epoch + 1}/{lesson.epochs}: loss {np.mean(spent):.4f} (chance {np.log(2):.4f})")
    taught.mask_generator = head.eval()
    sample = train.pixels[:: max(1, len(train) // 1000)]
    taught.spec = replace(taught.spec, mask_mean=float(embed(taught, sample)[1].mean()))
    return taught


def _batches(count: int, size: int) -> list[Tensor]:
    """Rows of an epoch's batches, in random order; a last one under half a batch is left out."""
    return [rows for rows in torch.randperm(count).split(size) if 2 * len(rows) >= min(size, count)]


def judge(net: DPM, query: Pictures, gallery: Pictures, sets: dict[tuple[str, float], Pictures]) -> dict[str, Any]:
    """Scores, curves and their summary; `another's mask` scores whole and covered queries under other queries' masks:
    what it lacks beside `masked` is what a mask says of its own picture."""
    g = embed(net, gallery.pixels)
    q = {key: embed(net, pictures.pixels) for key, pictures in {("whole", 0.0): query, **sets}.items()}
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(query)))
    swapped = [
        scores(query, gallery, (feature, mask[order]), g, kinds=("masked",))["masked"]["mAP"]
        for feature, mask in q.values()
    ]
    rows = curves(query, gallery, q, g)
    return {
        "occlusion": rows,
        "summary": summary(rows),
        "another's mask, mAP": {
            "whole": round(float(swapped[0]), 3),
            "occluded": round(float(np.mean(swapped[1:])), 3) if sets else None,
        },
        "spread of a gate over queries": round(float(q["whole", 0.0][1].std(0).mean()), 4),
    }


def main(arguments: list[str] | None = None) -> int:
    """Teach, compare, write. Returns the exit code."""
    made = argparse.ArgumentParser(
        prog="dpm-edge train mask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("checkpoint", type=Path)
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--layout", choices=[AUTO, *sorted(LAYOUTS)], default=AUTO)
    made.add_argument("--out", type=Path, required=True, help="directory for the checkpoint and results.json")
    made.add_argument("--shares", default="0.2,0.4,0.6", help="covered shares to compare at; empty: none")
    for name, value in vars(Lesson()).items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = made.parse_args(arguments)
    lesson = Lesson(**{name: getattr(options, name) for name in vars(Lesson())})
    try:
        net = checkpoint.load(options.checkpoint)
        people, pre = read_dataset(options.data, options.layout, train=True), net.spec.preprocessing
        if people.train is None:
            raise DataError(
                f"expected a data set with a training part, got {options.data} of layout {people.layout!r} with none"
            )
        if net.spec.cameras:
            raise CheckpointError(f"expected a checkpoint without camera embedding, got {options.checkpoint} with one")
        train, query, gallery = (decode(part, pre) for part in (people.train, people.query, people.gallery))
        taught = teach(net, train, lesson)
        options.out.mkdir(parents=True, exist_ok=True)
        recipe = f"{net.spec.weights.recipe}, then train mask (seed {lesson.seed})"
        card = replace(taught.spec.weights, recipe=recipe)
        taught.spec = replace(taught.spec, weights=card)
        checkpoint.save(taught, options.out / "model")
        shares = tuple(float(share) for share in options.shares.split(",") if share)
        sets = occlusion_sets(query, train, shares, options.out / "covered.safetensors") if shares else {}
        found = {"before": judge(net, query, gallery, sets), "after": judge(taught, query, gallery, sets)}
    except (DpmError, ValueError) as error:
        print(f"dpm-edge train mask: {error}", file=sys.stderr)
        return 1
    held = {
        "recipe": recipe,
        "lesson": vars(lesson),
        "taught on": {"people": int(train.labels().max()) + 1, "pictures": len(train)},
        **found,
        "machine": machine_card(),
    }
    write_whole(options.out / "results.json", (json.dumps(held, indent=1) + "\n").encode())
    for when, scored in found.items():
        for part in ("whole", "occluded"):
            if part in scored["summary"]:
                mean = scored["summary"][part]
                print(f"{when}, {part}: mAP plain {mean['plain_mAP']:.2f} masked {mean['masked_mAP']:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
