"""Train a checkpoint further on a pack of rendered people, on a CPU, and score what it leaves.

    python benchmarks/gpu/train_nano.py pack --rendered DIR --validation MARKET --stem lite0.pth --out PACK
    python benchmarks/training/tune.py train PACK [FIELD=VALUE …] --start dpm_edge/assets/dpm-n --minutes 40 --out OUT
    python benchmarks/training/tune.py score shipped=dpm_edge/assets/dpm-n … --data VALIDATION --out RESULTS

`train` uses the recipe `rendered_nano` with the ladder's settings (train_nano.BASE) and one thread, and keeps the
averaged weights after each quarter of the minutes: OUT/25, OUT/50, OUT/75, OUT/100. `score` runs checkpoints as
OpenVINO float32 on one thread on the queries and gallery of VALIDATION (Market-1501's layout), whole and covered by
40 % with the three held-out kinds, as ladder.py does.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

import ladder
import torch

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.layouts import read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.progress import say
from dpm_edge.spec import WeightsCard
from dpm_edge.train import optimisation
from dpm_edge.train.config import override
from dpm_edge.train.data import decode
from dpm_edge.train.evaluate import occlusion_sets
from dpm_edge.train.loop import train_step
from dpm_edge.train.moving_average import MovingAverage
from dpm_edge.train.recipes import recipe
from dpm_edge.train.run import Run
from dpm_edge.train.sight import run_frozen_stages

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "gpu"))
import nano_pack
import train_nano

PARTS = (0.25, 0.5, 0.75, 1.0)
SHARE = 0.4


def keep(run: Run, path: Path) -> None:
    """Write the averaged weights, rounded to float16; those in training stay as they are."""
    net, data = run.judged, run.config.data
    was, kept = net.spec, {name: p.data.clone() for name, p in net.named_parameters()}
    card = WeightsCard(licence=data.licence, data=data.described, recipe=run.config.recipe, seed=run.config.seed)
    net.spec = dataclasses.replace(was, weights=card, mask_mean=0.5)
    checkpoint.save(net, path, half=True)
    for name, p in net.named_parameters():
        p.data.copy_(kept[name])
    net.spec = was


def train(pack: Path, start: Path, minutes: float, out: Path, settings: list[str]) -> None:
    """Train for `minutes` of wall-clock time and write OUT/25 … OUT/100 and OUT/train.json."""
    torch.set_num_threads(1)
    config = override(recipe("rendered_nano"), [*train_nano.BASE, *train_nano.LOOKS["surroundings"], *settings])
    out.mkdir(parents=True, exist_ok=True)
    scratch = out / "unpacked"
    if not (scratch / "pixels.npy").exists():
        nano_pack.unpack(pack, scratch)
    run = train_nano.prepared(config, pack, scratch, out)
    state, own = checkpoint.load(start).state_dict(), run.net.state_dict()
    run.net.load_state_dict({n: state[n] if n != "prototypes" else t for n, t in own.items()})
    run.average = MovingAverage(run.net, config.optimiser.ema)
    run.steppers = optimisation.optimisers(run.net, config.optimiser)
    run_frozen_stages(run.net, run.device)
    begin, parts, told = time.perf_counter(), list(PARTS), 0.0
    while parts:
        for rows in torch.from_numpy(run.sampler.epoch(run.epoch)):
            part = (time.perf_counter() - begin) / (60 * minutes)
            if part >= parts[0]:
                keep(run, out / str(round(100 * parts.pop(0))))
            if not parts:
                break
            terms = train_step(run, rows, min(part, 1.0) * run.epochs)
            run.step += 1
            if time.perf_counter() - told > 8:
                told = time.perf_counter()
                said = ", ".join(f"{name} {float(value):.3f}" for name, value in terms.items())
                say(f"step {run.step}, {100 * part:.0f} % of {minutes:g} minutes: {said}")
        run.epoch += 1
    pictures = run.step * config.data.identities * config.data.pictures
    facts = {
        "start": str(start), "minutes": minutes, "steps": run.step, "pictures": pictures, "settings": settings,
        "people": len(run.sampler.rows), "training_pictures": len(run.train), "machine": machine_card(),
    }  # fmt: skip
    write_whole(out / "train.json", (json.dumps(facts, indent=1) + "\n").encode())


def score(checkpoints: list[str], data: Path, out: Path) -> None:
    """Write RESULTS with one row a checkpoint; rows of the same name are replaced."""
    torch.set_num_threads(1)
    ladder.SHARES = (SHARE,)  # type: ignore[assignment]
    people = read_dataset(data, "market", train=False)
    query, gallery = (decode(part, ladder.SIZE, workers=1, quiet=True) for part in (people.query, people.gallery))
    sets = occlusion_sets(query, query, (SHARE,), out.with_suffix(".covered.safetensors"), workers=1)
    found = json.loads(out.read_text()) if out.is_file() else {"rows": {}}
    for word in checkpoints:
        name, _, path = word.partition("=")
        row = ladder.judge(ladder.Model(path), query, gallery, sets)
        facts = Path(path).parent / "train.json"
        if facts.is_file():
            row["train"] = json.loads(facts.read_text())
        found["rows"][name] = row
        say(f"{name}: plain {row['plain']}, masked {row['masked']}, Rank-1 whole {row['rank1_whole']}")
        found |= {"machine": machine_card(), "queries": len(query), "gallery": len(gallery), "share": SHARE}
        write_whole(out, (json.dumps(found, indent=1) + "\n").encode())


def main() -> int:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    what = parser.add_subparsers(dest="what", required=True)
    training = what.add_parser("train")
    training.add_argument("pack", type=Path)
    training.add_argument("--start", type=Path, required=True)
    training.add_argument("--minutes", type=float, default=40)
    training.add_argument("--out", type=Path, required=True)
    training.add_argument("settings", nargs="*", metavar="FIELD=VALUE")
    scoring = what.add_parser("score")
    scoring.add_argument("checkpoints", nargs="+", metavar="NAME=CHECKPOINT")
    scoring.add_argument("--data", type=Path, required=True)
    scoring.add_argument("--out", type=Path, required=True)
    said = parser.parse_args()
    if said.what == "train":
        train(said.pack, said.start, said.minutes, said.out, said.settings)
    else:
        score(said.checkpoints, said.data, said.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
