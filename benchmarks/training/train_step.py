"""Where a training step's time goes: milliseconds, operations and waits of each part, and of whole steps.

    python benchmarks/training/train_step.py [RECIPE] [field=value …]

It writes benchmarks/results/train_step-DEVICE-PRESET.json.

Random pictures of the recipe's size and random identities; medians over --steps steps, each part run alone and waited
for, so that parts add up to more than a whole step on a GPU. "saliency in the step" is what SPT costs when the saliency
model runs in every step, as its authors' released code does, instead of once for the training set. --compiled also
times torch.compile's two modes (optimiser.compile), which take a minute to compile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from step_counts import counts, launches
from torch import Tensor

from dpm_edge.env import machine_card
from dpm_edge.model.network import DPMOutput
from dpm_edge.progress import say
from dpm_edge.train import distributed, optimisation
from dpm_edge.train.config import Config, override
from dpm_edge.train.criterion import Criterion
from dpm_edge.train.data import IdentitySampler, Pictures
from dpm_edge.train.loop import autocast, batch_of, train_step, wait_for_gpu
from dpm_edge.train.moving_average import MovingAverage
from dpm_edge.train.recipes import recipe
from dpm_edge.train.run import Run, device_of, forward_of
from dpm_edge.train.saliency.learned import SaliencyHead
from dpm_edge.train.start import network

RESULTS = Path(__file__).resolve().parents[1] / "results"
WEIGHTLESS = ["model.clip=", "loss.i2t=0", "loss.anchor=0", "transfer.probability=0.5"]
"""What a recipe needs to run without weights and texts, and with SPT."""


def random_run(config: Config, identities: int) -> Run:
    """A run over random pictures, with a person in the middle half of each."""
    device = device_of(config)
    draw = torch.Generator().manual_seed(config.seed)
    count = identities * config.data.pictures
    shape = (count, 3, config.model.height, config.model.width)
    people = torch.arange(count) // config.data.pictures
    pixels = torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
    train = Pictures(pixels, people, torch.zeros(count, dtype=torch.int64), [str(i) for i in range(count)]).to(device)
    net = network(config.model, identities, 1, config.seed).to(device)
    optimisation.freeze(net, config.optimiser, masked=config.loss.masked, text=False)
    height, width = net.spec.grid
    masks = torch.zeros((count, height, width), dtype=torch.bool, device=device)
    masks[:, height // 8 :, width // 4 : width - width // 4] = True
    return Run(
        config=config,
        out=Path(),
        device=device,
        processes=distributed.Processes(),
        net=net,
        average=MovingAverage(net, config.optimiser.ema) if config.optimiser.ema else None,
        steppers=optimisation.optimisers(net, config.optimiser),
        criterion=Criterion(config.loss, None, config.optimiser.compile),
        forward=forward_of(net, config.optimiser.compile, 1),
        train=train,
        labels=people.to(device),
        cameras=train.cameras.to(device),
        masks=masks,
        query=train,
        gallery=train,
        sampler=IdentitySampler(people.numpy(), config.data.identities, config.data.pictures, config.seed),
        epochs=config.schedule.epochs,
    )


def median_ms(run: Run, what: Callable[[], object], steps: int) -> float:
    """Median milliseconds of `what`, waited for, after three runs that do not count."""
    found = []
    for number in range(steps + 3):
        begin = time.perf_counter()
        what()
        wait_for_gpu(run.device)
        if number >= 3:
            found.append(1000 * (time.perf_counter() - begin))
    return round(statistics.median(found), 3)


def parts(run: Run, steps: int) -> dict[str, dict[str, float]]:
    """Milliseconds, operations, views and waits by part."""
    config, net = run.config, run.net
    rows = torch.from_numpy(run.sampler.epoch(0)[0]).to(run.device)
    inputs, targets, _ = batch_of(run, rows)
    head = SaliencyHead(net.spec.width, len(net.spec.mask_blocks)).to(run.device)
    [stepper] = run.steppers
    parameters = optimisation.owned(stepper)

    def forward() -> DPMOutput:
        with autocast(run):
            return run.forward(inputs)

    def backbone() -> object:
        with autocast(run):
            return net.backbone(inputs, blocks=net.spec.mask_blocks, with_cls_attention=True)

    def generator() -> object:
        with autocast(run):
            return net.mask_generator(out.tokens)

    def saliency() -> object:
        with autocast(run), torch.no_grad():
            return head(net.backbone(inputs, blocks=net.spec.mask_blocks).tokens)

    def loss(out: DPMOutput) -> Tensor:
        return torch.stack(list(run.criterion(out, net, targets, 0.5).values())).sum()

    def backward() -> None:
        stepper.zero_grad(set_to_none=True)
        loss(forward()).backward()

    def update() -> None:
        torch.nn.utils.clip_grad_norm_(parameters, config.optimiser.clip)
        stepper.step()

    out = forward()
    timed: dict[str, Callable[[], object]] = {
        "batch: SPT and augmentation": lambda: batch_of(run, rows),
        "saliency in the step": saliency,
        "forward": forward,
        "forward: backbone": backbone,
        "forward: mask generator": generator,
        "losses": lambda: loss(out),
        "forward, losses and backward": backward,
        "clip and AdamW": update,
        "moving average": run.average.update if run.average is not None else lambda: None,
        "whole step": lambda: train_step(run, rows, 0.5),
    }
    return {name: {"ms": median_ms(run, what, steps), **counts(what)} for name, what in timed.items()}


def whole(run: Run, steps: int) -> dict[str, float]:
    """Milliseconds and pictures a second of whole steps that are waited for one by one, and of steps in a row."""
    rows = torch.from_numpy(run.sampler.epoch(0)[0]).to(run.device)
    waited = median_ms(run, lambda: train_step(run, rows, 0.5), steps)
    begin = time.perf_counter()
    for _ in range(steps):
        train_step(run, rows, 0.5)
    wait_for_gpu(run.device)
    ms = 1000 * (time.perf_counter() - begin) / steps
    asked = launches(lambda: train_step(run, rows, 0.5))
    return {"ms": waited, "ms_in_a_row": round(ms, 3), "pictures_per_second": round(1000 * len(rows) / ms, 1), **asked}


def variants(config: Config, identities: int, steps: int, compiled: bool) -> dict[str, Any]:
    """Whole steps of each way to optimise; a way that fails says why."""
    ways = {
        "joint": [],
        "alternating": ["optimiser.optimisation=alternating"],
        "joint, compiled": ["optimiser.compile=default"],
        "joint, compiled with CUDA graphs": ["optimiser.compile=reduce-overhead"],
    }
    found: dict[str, Any] = {}
    for way, words in ways.items():
        if "compile" in way and not compiled:
            continue
        try:
            found[way] = whole(random_run(override(config, words), identities), steps)
        except Exception as error:  # a way that a machine cannot go is a result
            found[way] = {"exception": f"{type(error).__name__}: {error}"[:500]}
        say(f"{way}: {found[way]}")
    return found


def main() -> int:
    """Measure parts and whole steps; the last line on stdout is the JSON."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("recipe", nargs="?", default="market_tiny")
    made.add_argument("overrides", nargs="*", metavar="field=value")
    made.add_argument("--identities", type=int, default=528, help="training identities")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--compiled", action="store_true", help="also torch.compile's modes")
    made.add_argument("--out", type=Path, default=RESULTS)
    options = made.parse_intermixed_args()
    config = override(recipe(options.recipe), [*WEIGHTLESS, *options.overrides])
    run = random_run(override(config, ["optimiser.optimisation=joint"]), options.identities)
    found: dict[str, Any] = {
        "recipe": options.recipe,
        "batch": config.data.identities * config.data.pictures,
        "parts": parts(run, options.steps),
        "steps": variants(config, options.identities, options.steps, options.compiled),
    }
    device = torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu"
    found.update(device=device, measured_steps=options.steps, config=config.to_dict(), machine=machine_card())
    options.out.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in device.lower())
    (options.out / f"train_step-{name}-{config.model.preset}.json").write_text(json.dumps(found, indent=1) + "\n")
    for part, values in found["parts"].items():
        print(f"{part:32s}" + "".join(f"{values[k]:>10} {k}" for k in values), file=sys.stderr)
    print(json.dumps({"parts": found["parts"], "steps": found["steps"], "device": device}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
