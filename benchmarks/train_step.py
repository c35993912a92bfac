"""Where a training step's time goes: picture by picture work, forward, mask generator, losses, backward, update.

    python benchmarks/train_step.py [RECIPE] [field=value …]     writes benchmarks/results/train_step-DEVICE-PRESET.json

Random pictures of the recipe's size and random identities; medians over --steps steps, each part run alone and waited
for, so that parts add up to more than a whole step on a GPU. "saliency in the step" is what SPT costs when the saliency
model runs in every step, as its authors' released code does, instead of once for the training set.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from dpm_edge.env import machine_card
from dpm_edge.train import distributed, optimisation
from dpm_edge.train.augment import augment, flip
from dpm_edge.train.config import Config, override
from dpm_edge.train.criterion import Criterion
from dpm_edge.train.data import IdentitySampler, Pictures, to_input
from dpm_edge.train.loop import autocast, batch_of, train_step
from dpm_edge.train.recipes import recipe
from dpm_edge.train.run import Run, device_of
from dpm_edge.train.saliency import SaliencyHead
from dpm_edge.train.start import network
from dpm_edge.train.transfer import transfer

RESULTS = Path(__file__).parent / "results"


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
        average=None,
        steppers=optimisation.optimisers(net, config.optimiser),
        criterion=Criterion(config.loss),
        train=train,
        labels=people.to(device),
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
        if run.device.type == "cuda":
            torch.cuda.synchronize()
        if number >= 3:
            found.append(1000 * (time.perf_counter() - begin))
    return round(statistics.median(found), 3)


def parts(run: Run, steps: int) -> dict[str, float]:
    """Milliseconds by part."""
    config, net = run.config, run.net
    rows = torch.from_numpy(run.sampler.epoch(0)[0]).to(run.device)
    draw = torch.Generator(run.device).manual_seed(0)
    pixels, masks = flip(run.train.pixels[rows].float(), run.masks[rows], 0.5, draw)
    inputs, targets, _ = batch_of(run, rows)
    head = SaliencyHead(net.spec.width, len(net.spec.mask_blocks)).to(run.device)

    def forward() -> object:
        with autocast(run):
            return net.forward_train(inputs)

    def backbone() -> object:
        with autocast(run):
            return net.backbone(inputs, blocks=net.spec.mask_blocks, with_cls_attention=True)

    def generator() -> object:
        with autocast(run):
            return net.mask_generator(out.tokens)

    def saliency() -> object:
        with autocast(run), torch.no_grad():
            return head(net.backbone(inputs, blocks=net.spec.mask_blocks).tokens)

    def backward() -> None:
        sum(run.criterion(net.forward_train(inputs), net, targets, 0.5).values()).backward()

    out = forward()
    timed: dict[str, Callable[[], object]] = {
        "augmentation": lambda: to_input(augment(pixels, config.augment, draw), net.spec.preprocessing),
        "SPT, masks at hand": lambda: transfer(pixels, masks, config.transfer, draw),
        "saliency in the step": saliency,
        "forward": forward,
        "forward: backbone": backbone,
        "forward: mask generator": generator,
        "losses": lambda: run.criterion(out, net, targets, 0.5),
        "forward, losses and backward": lambda: _autocast(run, backward),
        "whole step": lambda: train_step(run, rows, 0.5),
    }
    return {name: median_ms(run, what, steps) for name, what in timed.items()}


def _autocast(run: Run, what: Callable[[], None]) -> None:
    with autocast(run):
        what()


def main() -> int:
    """Measure joint and alternating optimisation; the last line on stdout is the JSON."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("recipe", nargs="?", default="market_tiny")
    made.add_argument("overrides", nargs="*", metavar="field=value")
    made.add_argument("--identities", type=int, default=528, help="training identities")
    made.add_argument("--steps", type=int, default=20)
    made.add_argument("--out", type=Path, default=RESULTS)
    options = made.parse_intermixed_args()
    weightless = ["model.clip=", "loss.i2t=0", "loss.anchor=0", "transfer.probability=0.5"]
    config = override(recipe(options.recipe), [*weightless, *options.overrides])
    found: dict[str, object] = {"recipe": options.recipe, "batch": config.data.identities * config.data.pictures}
    for mode in ("joint", "alternating"):
        run = random_run(override(config, [f"optimiser.optimisation={mode}"]), options.identities)
        found[mode] = parts(run, options.steps) if mode == "joint" else _whole(run, options.steps)
    device = torch.cuda.get_device_name() if run.device.type == "cuda" else "cpu"
    found.update(device=device, steps=options.steps, config=config.to_dict(), machine=machine_card())
    options.out.mkdir(parents=True, exist_ok=True)
    name = "".join(c if c.isalnum() else "-" for c in device.lower())
    (options.out / f"train_step-{name}-{config.model.preset}.json").write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps({"joint": found["joint"], "alternating": found["alternating"], "device": device}))
    return 0


def _whole(run: Run, steps: int) -> dict[str, float]:
    rows = torch.from_numpy(run.sampler.epoch(0)[0]).to(run.device)
    return {"whole step": median_ms(run, lambda: train_step(run, rows, 0.5), steps)}


if __name__ == "__main__":
    sys.exit(main())
