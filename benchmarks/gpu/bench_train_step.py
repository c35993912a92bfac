"""The training step: bf16 losses against float32's, then milliseconds, operations and waits of its parts and ways.

A host hands thousands of small operations to the GPU in each step; where a step takes longer than its arithmetic, the
number of operations says why. Rows of whole steps are named by their way: joint, alternating, compiled.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

import train_step

from dpm_edge.train.config import Config, override
from dpm_edge.train.loop import batch_of
from dpm_edge.train.recipes import recipe

TOLERANCE = 2e-2
"""Of each loss in bf16, over float32's: eight bits of a mantissa through twelve blocks."""
TOY = ["model.height=64", "model.width=64", "data.identities=2", "device=cpu"]


def config(quick: bool) -> Config:
    """dpm-t at batch 128, every part of the method but texts; at toy size a batch of 8."""
    return override(recipe("market_tiny"), [*train_step.WEIGHTLESS, *(TOY if quick else [])])


def check(device: str, quick: bool) -> list[dict[str, Any]]:
    """Each loss of one batch, network in bf16 autocast, against the same in float32."""
    run = train_step.random_run(config(quick), 8 if quick else 64)
    inputs, targets, _ = batch_of(run, torch.from_numpy(run.sampler.epoch(0)[0]).to(run.device))
    found = []
    for half in (False, True):
        torch.manual_seed(0)  # stochastic depth
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=half):
            found.append(run.criterion(run.net.forward_train(inputs), run.net, targets, 0.0))
    rows = []
    for name, wanted in found[0].items():
        error = abs(float(found[1][name] - wanted)) / abs(float(wanted))
        rows.append(
            {
                "name": f"train_step loss {name}",
                "dtype": "bfloat16",
                "shape": [len(inputs)],
                "error": error,
                "tolerance": TOLERANCE,
                "ok": error < TOLERANCE,
            }
        )
    return rows


def timings(device: str, quick: bool) -> list[dict[str, Any]]:
    """One row a part and a way; `operations` are dispatched, `views` launch nothing, `waits` stop the host."""
    settings, identities, steps = config(quick), 8 if quick else 528, 1 if quick else 20
    batch = settings.data.identities * settings.data.pictures
    about = {"dtype": "float32" if quick else "bfloat16", "shape": [batch]}
    parts = train_step.parts(train_step.random_run(settings, identities), steps)
    ways = train_step.variants(settings, identities, steps, compiled=not quick)
    return [
        *({"name": f"train_step part: {name}", **about, **values} for name, values in parts.items()),
        *({"name": f"train_step dpm-t: {way}", **about, **values} for way, values in ways.items()),
    ]
