"""Ladder of dpm-n on a GPU, then its best settings trained longer: pack here, run there, in one command and no network.

    python benchmarks/gpu/train_nano.py pack --rendered DIR --validation MARKET --stem lite0.pth --out PACK
    python benchmarks/gpu/train_nano.py run --pack PACK --out OUT [--rung-seconds 150] [--final-seconds 360]
    python benchmarks/gpu/train_nano.py further --pack PACK --start dpm-n --out OUT [--seconds 480]
    python benchmarks/gpu/train_nano.py finish CHECKPOINT … --stem lite0.pth --back 0.2 --out dpm-n

`pack` puts rendered people (WebP, quality 60; masks at half size) and the validation people's own files into one folder
of a few dozen megabytes, for a machine that cannot be given the whole set. `run` trains every rung of RUNGS side by
side on one GPU for the same seconds, adopts what gained on the validation people, trains the finals, and means of the
finals' weights. A result is plain mAP of the averaged weights, whole and with 40 % of each query covered.
OUT/ladder.json holds all.
`further` trains the rows of FURTHER: some go on from a checkpoint, others start from ImageNet's weights again.
`finish` takes the mean of checkpoints, moves the stem's weights a part of the way back to ImageNet's, which loses less
on pictures of another kind than it was tuned on (Wortsman et al., arXiv 2109.01903), and leaves out the prototypes.

N pictures · H×W of the packed pictures
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from nano_means import finish, mean_of
from nano_pack import PLACES, SHARE, pack, unpack, validation
from nano_rungs import BASE, CHANGES, COMBINED, FURTHER, GAIN, LOOKS, NEVER_ADOPTED, ON, RUNGS

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.spec import WeightsCard
from dpm_edge.train import distributed, optimisation
from dpm_edge.train.augment import mix_styles
from dpm_edge.train.config import Config, override
from dpm_edge.train.criterion import Criterion
from dpm_edge.train.data import IdentitySampler, Pictures
from dpm_edge.train.evaluate import embed, occlusion_sets, scores
from dpm_edge.train.loop import train_step
from dpm_edge.train.moving_average import MovingAverage
from dpm_edge.train.recipes import recipe
from dpm_edge.train.run import Run
from dpm_edge.train.start import adopt, load_lite0, network

CHECKS = (0.6, 0.8)
"""Parts of the time after which a final is scored, besides the end; the best of them is kept."""


def resized(pixels: torch.Tensor, size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """(n, c, h, w) uint8 on any device → (n, c, H, W) uint8 on `device`, bilinear (area-like where it shrinks)."""
    done = []
    for part in pixels.split(2048):
        part = part.to(device)
        if part.shape[2:] != size:
            part = F.interpolate(part.float(), size=size, mode="bilinear", align_corners=False, antialias=True)
            part = part.round().clamp(0, 255).to(torch.uint8)
        done.append(part)
    return torch.cat(done)


def resized_pictures(pictures: Pictures, size: tuple[int, int], device: torch.device) -> Pictures:
    """The same pictures at (H, W) on `device`."""
    return dataclasses.replace(pictures, pixels=resized(pictures.pixels, size, device))


def prepared(config: Config, folder: Path, scratch: Path, out: Path) -> Run:
    """A run on the unpacked pictures; the config's device, or the GPU where there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    size = (config.model.height, config.model.width)
    with np.load(scratch / "labels.npz") as kept:
        people, cameras = torch.from_numpy(kept["people"]), torch.from_numpy(kept["cameras"])
    surroundings = PLACES if config.augment.panoramas else "backgrounds.npy"
    pixels, pieces = (
        resized(torch.from_numpy(np.load(scratch / name)), size, device) for name in ("pixels.npy", surroundings)
    )
    shares = torch.from_numpy(np.load(scratch / "shares.npy")).to(device)
    train = Pictures(pixels, people, cameras, [""] * len(pixels))
    query, gallery = (resized_pictures(part, size, device) for part in validation(folder, scratch))
    labels = train.labels()
    sampler = IdentitySampler(labels.numpy(), config.data.identities, config.data.pictures, config.seed)
    net = network(dataclasses.replace(config.model, init=""), len(sampler.rows), 1, config.seed)
    load_lite0(net.backbone.conv1, folder / "stem.pth")  # type: ignore[arg-type]
    if config.model.init:
        adopt(net, checkpoint.load(config.model.init))
    net = net.to(device)
    if device.type == "cuda" and (scratch / "channels_last").exists():
        net.backbone.conv1.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimisation.freeze(net, config.optimiser, masked=config.loss.masked, text=False)
    mix_styles(net, config.augment)
    taught = None
    if config.loss.distil or config.loss.own:
        teacher = checkpoint.load(Path(config.loss.teacher)).to(device)
        taught = embed(teacher, resized(pixels, size_of(teacher), device))[0].clone()
    return Run(
        config=config,
        out=out,
        device=device,
        processes=distributed.start(device),
        net=net,
        average=MovingAverage(net, config.optimiser.ema),
        steppers=optimisation.optimisers(net, config.optimiser),
        criterion=Criterion(config.loss, None, ""),
        forward=net.forward_train,
        train=train,
        labels=labels.to(device),
        cameras=cameras.to(device),
        masks=torch.zeros((len(train), *net.spec.grid), dtype=torch.bool, device=device),
        query=query,
        gallery=gallery,
        sampler=sampler,
        epochs=config.schedule.epochs,
        described="",
        shares=shares,
        taught=taught,
        backgrounds=pieces,
        quiet=True,
    )


def size_of(net: DPM) -> tuple[int, int]:
    """(H, W) of a network's input."""
    return net.spec.preprocessing.height, net.spec.preprocessing.width


def judge(net: DPM, query: Pictures, gallery: Pictures, sets: dict[Any, Pictures]) -> dict[str, float]:
    """Plain and masked mAP, whole and covered, of a network; `score` is the mean of the plain ones."""
    size, device = size_of(net), gallery.pixels.device
    target = embed(net, gallery.pixels)
    whole = scores(query, gallery, embed(net, query.pixels), target)
    found: dict[str, list[float]] = {"plain": [], "masked": []}
    for pictures in sets.values():
        asked = embed(net, resized(pictures.pixels, size, device))
        for metric, s in scores(query, gallery, asked, target).items():
            found[metric].append(float(s["mAP"]))
    covered = {m: float(np.mean(v)) for m, v in found.items()}
    return {
        "whole": round(float(whole["plain"]["mAP"]), 2),
        "rank1": round(float(whole["plain"]["rank1"]), 2),
        "covered": round(covered["plain"], 2),
        "masked whole": round(float(whole["masked"]["mAP"]), 2),
        "masked covered": round(covered["masked"], 2),
        "score": round((float(whole["plain"]["mAP"]) + covered["plain"]) / 2, 2),
    }


def one(name: str, settings: list[str], seconds: float, checks: bool, folder: Path, scratch: Path, out: Path) -> None:
    """Train one row for `seconds` and write OUT/NAME.json and its best checkpoint, scored at the end or at `checks`."""
    torch.set_num_threads(1)
    config = override(recipe("rendered_nano"), [*BASE, *settings])
    run = prepared(config, folder, scratch, out)
    query, _ = validation(folder, scratch)
    sets = occlusion_sets(query, query, (SHARE,), scratch / "covered.safetensors")
    begin, losses, told, best, at = time.perf_counter(), [], [], -1.0, [*CHECKS] if checks else []
    while (part := (time.perf_counter() - begin) / seconds) < 1:
        for rows in torch.from_numpy(run.sampler.epoch(run.epoch)).to(run.device):
            part = (time.perf_counter() - begin) / seconds
            if part >= 1:
                break
            terms = train_step(run, rows, part * run.epochs)
            run.step += 1
            if run.step % 50 == 0:
                losses.append({n: round(float(v), 4) for n, v in terms.items()})
                if not all(np.isfinite(v) for v in losses[-1].values()):
                    raise SystemExit(f"{name}: a loss is not finite at step {run.step}: {losses[-1]}")
            if at and part >= at[0]:
                at.pop(0)
                scored = judge(run.judged, run.query, run.gallery, sets)
                told.append({"step": run.step, "part": round(part, 2), **scored})
                best = _keep(run, out / f"{name}-weights", told[-1]["score"], best)
        run.epoch += 1
    took = time.perf_counter() - begin
    told.append({"step": run.step, "part": 1.0, **judge(run.judged, run.query, run.gallery, sets)})
    _keep(run, out / f"{name}-weights", told[-1]["score"], best)
    pictures = run.step * config.data.identities * config.data.pictures
    row = {
        "settings": settings, "seconds": round(took, 1), "steps": run.step, "pictures": pictures,
        "pictures_per_second": round(pictures / took), "scores": told, "last_losses": losses[-1:],
        "people": len(run.sampler.rows), "training_pictures": len(run.train),
    }  # fmt: skip
    write_whole(out / f"{name}.json", json.dumps(row, indent=1).encode())


def _keep(run: Run, path: Path, score: float, best: float) -> float:
    """Write the averaged weights, rounded to float16, where they are the best so far; returns the best score."""
    if score <= best:
        return best
    net = run.judged
    was = net.spec
    data = run.config.data
    card = WeightsCard(licence=data.licence, data=data.described, recipe="rendered_nano", seed=run.config.seed)
    net.spec = dataclasses.replace(was, weights=card, mask_mean=float(embed(net, run.gallery.pixels)[1].mean()))
    kept = {n: p.data.clone() for n, p in net.named_parameters()}
    checkpoint.save(net, path, half=True)
    for n, p in net.named_parameters():
        p.data.copy_(kept[n])
    net.spec = was
    return score


def side_by_side(rows: dict[str, list[str]], seconds: float, checks: bool, where: dict[str, Path]) -> dict[str, Any]:
    """Train all rows at once, a process each. A row that fails is named and left out."""
    started = {}
    for name, settings in rows.items():
        told = json.dumps({"name": name, "settings": settings, "seconds": seconds, "checks": checks})
        command = [sys.executable, __file__, "one", told, *(str(where[k]) for k in ("folder", "scratch", "out"))]
        log = (where["out"] / f"{name}.log").open("w")
        started[name] = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "OMP_NUM_THREADS": "1"})
    made = {}
    for name, process in started.items():
        if process.wait():
            tail = (where["out"] / f"{name}.log").read_text()[-1500:]
            print(f"row {name!r} failed:\n{tail}", flush=True)
        else:
            made[name] = json.loads((where["out"] / f"{name}.json").read_text())
            last = made[name]["scores"][-1]
            print(f"{name:>24}: {made[name]['steps']} steps, {last}", flush=True)
    if not made:
        raise SystemExit("expected rows that train, got none: see above")
    return made


def score_of(made: dict[str, Any], name: str) -> float:
    """The best score of a row; −1 where it failed."""
    return max((s["score"] for s in made[name]["scores"]), default=-1.0) if name in made else -1.0


def finals(made: dict[str, Any], out: Path) -> dict[str, list[str]]:
    """What the finals are, from the rungs' scores: the best looks with the changes that gained.

    Five go on from the best rung's weights, each with other draws and one other setting; two start from ImageNet's.
    """
    looks = max(LOOKS, key=lambda name: score_of(made, name))
    gained = [n for n in CHANGES if score_of(made, n) > score_of(made, "both") + GAIN and n not in NEVER_ADOPTED]
    settings = [*RUNGS[looks], *(field for n in gained for field in CHANGES[n])]
    best = max(made, key=lambda name: score_of(made, name))
    print(f"adopted: {looks}, {', '.join(gained) or 'no change'}; five finals go on from {best!r}", flush=True)
    on = [*RUNGS[best], f"model.init={out / f'{best}-weights'}", "optimiser.lr=5e-4"]
    rows = {name: [*on, *fields, f"seed={k + 1}"] for k, (name, fields) in enumerate(ON.items())}
    rows["again"] = [*settings, "seed=9"]
    rows["again, larger"] = [*settings, "model.height=256", "model.width=128", "model.stripes=8", "seed=9"]
    return rows


def _further(name: str, fields: list[str], start: Path) -> list[str]:
    """Settings of a row of FURTHER or COMBINED; "on" rows go on from `start`."""
    on = [f"model.init={start}", "optimiser.lr=5e-4"] if name.startswith("on") else []
    return ["model.preset=dpm-n", *LOOKS["surroundings"], *on, *fields]


def means(made: dict[str, Any], where: dict[str, Path]) -> dict[str, Any]:
    """Score means of the finals that went on from one rung: of the best two, three, …."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    query, gallery = validation(where["folder"], where["scratch"])
    sets = occlusion_sets(query, query, (SHARE,), where["scratch"] / "covered.safetensors")
    ranked = sorted((n for n in made if n.startswith("on")), key=lambda n: -score_of(made, n))
    groups = {f"best {k}": ranked[:k] for k in range(2, len(ranked) + 1)}
    paths = {n: where["out"] / f"{n}-weights" for n in ranked}
    size = size_of(checkpoint.load(next(iter(paths.values()))))
    query, gallery = (resized_pictures(part, size, device) for part in (query, gallery))
    told = {}
    for name, members in groups.items():
        net = mean_of([paths[n] for n in members]).to(device)
        told[name] = {"members": members, **judge(net, query, gallery, sets)}
        print(f"{name:>24}: {told[name]}", flush=True)
        checkpoint.save(net.cpu(), where["out"] / f"{name}-weights", half=True)
    return told


def choose_layout(folder: Path, scratch: Path) -> None:
    """Time a few steps in both memory layouts; the file `channels_last` says that it is the faster one."""
    if not torch.cuda.is_available():
        return
    times = {}
    for name in ("plain", "channels_last"):
        (scratch / "channels_last").unlink(missing_ok=True)
        if name == "channels_last":
            (scratch / "channels_last").touch()
        run = prepared(override(recipe("rendered_nano"), BASE), folder, scratch, scratch)
        batches = torch.from_numpy(run.sampler.epoch(0)).to(run.device)
        for k in range(25):
            if k == 10:
                torch.cuda.synchronize()
                begin = time.perf_counter()
            train_step(run, batches[k % len(batches)], 1.0)
        torch.cuda.synchronize()
        times[name] = round((time.perf_counter() - begin) / 15 * 1e3, 2)
    if times["plain"] <= times["channels_last"]:
        (scratch / "channels_last").unlink()
    print(f"milliseconds a step alone: {times}", flush=True)


def main() -> int:
    """Pack, run, or train one row."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser("pack")
    for name in ("rendered", "validation", "stem", "out"):
        packing.add_argument(f"--{name}", type=Path, required=True)
    packing.add_argument("--most-megabytes", type=float, default=50.0)
    packing.add_argument("--panoramas", type=Path, help="a folder of panoramas, to put people before real places")
    packing.add_argument("--most-files", type=int, default=10**9, help="of each validation part, to try the script out")
    running = commands.add_parser("run")
    running.add_argument("--pack", type=Path, required=True)
    running.add_argument("--out", type=Path, required=True)
    running.add_argument("--scratch", type=Path, default=Path("/tmp/dpm-train-nano"))
    running.add_argument("--rung-seconds", type=float, default=150.0)
    running.add_argument("--final-seconds", type=float, default=360.0)
    running.add_argument("--only", nargs="*", default=[], help="rungs to train; default all")
    going_on = commands.add_parser("further")
    for name in ("pack", "start", "out"):
        going_on.add_argument(f"--{name}", type=Path, required=True)
    going_on.add_argument("--scratch", type=Path, default=Path("/tmp/dpm-train-nano"))
    going_on.add_argument("--seconds", type=float, default=480.0)
    going_on.add_argument("--combined", action="store_true", help="the rows that take together what gained")
    going_on.add_argument("--only", nargs="*", default=[], help="rows to train; default all")
    finishing = commands.add_parser("finish")
    finishing.add_argument("checkpoints", type=Path, nargs="+")
    finishing.add_argument("--stem", type=Path, required=True)
    finishing.add_argument("--back", type=float, default=0.2)
    finishing.add_argument("--gates", type=float, default=1.0, help="factor on the masks' logits")
    finishing.add_argument("--out", type=Path, required=True)
    single = commands.add_parser("one")
    single.add_argument("told")
    single.add_argument("where", type=Path, nargs=3)
    options = parser.parse_args()
    if options.command == "pack":
        pack(
            options.rendered, options.validation, options.stem, options.out, options.most_megabytes, options.most_files,
            options.panoramas,
        )  # fmt: skip
        return 0
    if options.command == "finish":
        finish(options.checkpoints, options.stem, options.back, options.out, options.gates)
        return 0
    if options.command == "one":
        one(**json.loads(options.told), **dict(zip(("folder", "scratch", "out"), options.where)))
        return 0
    begin = time.perf_counter()
    options.out.mkdir(parents=True, exist_ok=True)
    where = {"folder": options.pack, "scratch": options.scratch, "out": options.out}
    unpack(options.pack, options.scratch)
    print(f"unpacked after {time.perf_counter() - begin:.0f} s", flush=True)
    if options.command == "further":
        rows = {
            name: [*_further(name, fields, options.start), f"seed={k + 21}"]
            for k, (name, fields) in enumerate((COMBINED if options.combined else FURTHER).items())
            if not options.only or name in options.only
        }
        (options.scratch / "channels_last").touch()
        last = side_by_side(rows, options.seconds, True, where)
        told = {"machine": card(), "base": BASE, "finals": last}
        write_whole(options.out / "further.json", json.dumps(told, indent=1).encode())
        print(f"all after {time.perf_counter() - begin:.0f} s", flush=True)
        return 0
    choose_layout(options.pack, options.scratch)
    rungs = {n: s for n, s in RUNGS.items() if not options.only or n in options.only}
    made = side_by_side(rungs, options.rung_seconds, False, where)
    write_whole(options.out / "ladder.json", json.dumps({"machine": card(), "rungs": made}, indent=1).encode())
    print(f"rungs after {time.perf_counter() - begin:.0f} s", flush=True)
    last = side_by_side(finals(made, options.out), options.final_seconds, True, where)
    told = {"machine": card(), "base": BASE, "rungs": made, "finals": last}
    write_whole(options.out / "ladder.json", json.dumps(told, indent=1).encode())
    told["means"] = means(last, where)
    write_whole(options.out / "ladder.json", json.dumps(told, indent=1).encode())
    print(f"all after {time.perf_counter() - begin:.0f} s", flush=True)
    return 0


def card() -> dict[str, Any]:
    """The machine, with its GPU's name."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {**machine_card(), "gpu": gpu, "torch": torch.__version__, "date": time.strftime("%Y-%m-%d")}


if __name__ == "__main__":
    sys.exit(main())
