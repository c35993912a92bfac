"""The ablation table: what each part of the method is worth, everything else fixed.

    python -m dpm_edge.train.ablation --data MARKET [--rendered DIR | --init FILE] --out DIR --minutes M

Rows share one saliency file, one set of first weights, one number of steps and one set of covered queries. Several
rows train at a time on one GPU; how many epochs fit is measured first. ablation.json is rewritten after every row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge.env import machine_card
from dpm_edge.errors import DpmError, SpecError, nearest
from dpm_edge.files import write_whole
from dpm_edge.progress import say

ERASING = ["transfer.probability=0", "augment.erase=0.5"]
SPT = ["transfer.probability=0.5", "augment.erase=0"]
PLAIN = ["loss.masked=false"]
MASKED = ["loss.masked=true"]
NO_HEM, HEM = ["loss.hem=0"], ["loss.hem=0.1"]
ROWS: dict[str, list[str]] = {
    "baseline": ERASING + PLAIN + NO_HEM,
    "+SPT": SPT + PLAIN + NO_HEM,
    "+HMG": ERASING + MASKED + NO_HEM,
    "+HEM": ERASING + PLAIN + HEM,
    "full": SPT + MASKED + HEM,
    "full, erasing for SPT": ERASING + MASKED + HEM,
    "full, alternating": SPT + MASKED + HEM + ["optimiser.optimisation=alternating"],
    "full, from scratch": SPT + MASKED + HEM + ["model.init="],
}
ENDS = ("baseline", "full")
"""Rows that are trained with three seeds."""
DEFAULT = ("baseline", "full", "+SPT", "+HMG", "+HEM", "full, erasing for SPT", "full, from scratch")
KEPT = ("epochs", "steps", "pictures_per_second", "summary", "summary_other_neck", "occlusion", "history")
"""What ablation.json keeps of each run."""
COST = {"full, alternating": 2.0}
"""Steps of a row that cost more than others'."""
RESERVE = 0.86
"""Share of the remaining time that is planned for steps."""
SECONDS_PER_ROW = 12.0
"""Decoding, occlusion curves and saving of one row."""


def jobs(rows: list[str], seeds: int) -> list[tuple[str, int]]:
    """(row, seed) in the order of their worth: every row once, then the ends' other seeds."""
    first = [(row, 0) for row in rows]
    return first + [(row, seed) for seed in range(1, seeds) for row in rows if row in ENDS]


def job_folder(out: Path, row: str, seed: int) -> Path:
    """Where a row's run goes: letters, digits and dashes alone."""
    name = "".join(c if c.isalnum() else "-" for c in row).strip("-")
    return out / f"{name}-seed{seed}"


def train_row(recipe: str, data: Path, out: Path, overrides: list[str]) -> dict[str, Any]:
    """One run, in a worker process. Returns its results."""
    import torch

    from dpm_edge.train.cli import train

    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    return train(recipe, data, out, overrides, quiet=True)


def measure(recipe: str, data: Path, out: Path, overrides: list[str], steps: int) -> tuple[float, int]:
    """Seconds of a step, and steps of an epoch, in a worker while its neighbours measure too."""
    import torch

    from dpm_edge.train.config import override
    from dpm_edge.train.loop import train_step, wait_for_gpu
    from dpm_edge.train.recipes import recipe as named
    from dpm_edge.train.run import prepare

    run = prepare(override(named(recipe), overrides), data, out, quiet=True)
    batches = torch.from_numpy(
        np.concatenate([run.sampler.epoch(e) for e in range(1 + 2 * steps // run.sampler.batches)])
    )
    begin = 0.0
    for number, rows in enumerate(batches[: 2 * steps].to(run.device)):
        if number == steps:
            wait_for_gpu(run.device)
            begin = time.perf_counter()
        train_step(run, rows, 0.0)
        run.step += 1
    wait_for_gpu(run.device)
    return (time.perf_counter() - begin) / steps, run.sampler.batches


def saliency_file(recipe: str, data: Path, out: Path, overrides: list[str]) -> Path:
    """Train SPS once for all rows, in a worker; returns the cache, with a sheet of what SPT does with it beside it."""
    import cv2

    from dpm_edge.train.config import override
    from dpm_edge.train.data import decode
    from dpm_edge.train.preview import examples, sheet
    from dpm_edge.train.recipes import recipe as named
    from dpm_edge.train.run import device_of, training_people
    from dpm_edge.train.saliency import person_masks
    from dpm_edge.train.start import model_spec

    config = override(named(recipe), overrides)
    out.mkdir(parents=True, exist_ok=True)
    device = device_of(config)
    train = decode(training_people(config, data).train, model_spec(config.model).preprocessing, quiet=True)
    train = train.to(device)
    masks = person_masks(config, train, out, device)
    config.transfer.probability = 1.0
    cv2.imwrite(str(out / "transfer.jpg"), sheet(examples(config, train, masks)[0]))
    return out / "saliency.safetensors"


def covered_file(recipe: str, data: Path, out: Path, overrides: list[str]) -> Path:
    """Cover the queries once for all rows; returns the cache."""
    from dpm_edge.train.config import override
    from dpm_edge.train.data import decode
    from dpm_edge.train.evaluate import occlusion_sets
    from dpm_edge.train.recipes import recipe as named
    from dpm_edge.train.run import training_people
    from dpm_edge.train.start import model_spec

    config = override(named(recipe), overrides)
    people, pre = training_people(config, data), model_spec(config.model).preprocessing
    query, bodies = decode(people.query, pre, quiet=True), decode(people.train, pre, quiet=True)
    path = out / "covered.safetensors"
    occlusion_sets(query, bodies, config.evaluate.shares, path)
    return path


def table(found: dict[tuple[str, int], dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per row: mean and spread (standard deviation over seeds) of each summary score."""
    lines = []
    for row in [name for name in ROWS if any(row == name for row, _ in found)]:
        runs = [r for (name, _), r in found.items() if name == row]
        line: dict[str, Any] = {"row": row, "seeds": len(runs), "epochs": runs[0]["epochs"]}
        for part in runs[0]["summary"]:
            for score in runs[0]["summary"][part]:
                values = [r["summary"][part][score] for r in runs]
                line[f"{part}_{score}"] = round(float(np.mean(values)), 2)
                if len(runs) > 1:
                    line[f"{part}_{score}_spread"] = round(float(np.std(values, ddof=1)), 2)
        lines.append(line)
    return lines


def ablate(
    recipe: str,
    data: Path,
    out: Path,
    overrides: list[str],
    *,
    minutes: float,
    parallel: int,
    rows: list[str],
    seeds: int,
    rendered: Path | None = None,
    init: str = "",
    epochs: int = 0,
    saliency: str = "",
) -> dict[str, Any]:
    """Train all rows and write out/ablation.json. Raises SpecError for an unknown row."""
    for row in rows:
        if row not in ROWS:
            raise SpecError(f"no ablation row {row!r}.{nearest(row, ROWS)}")
    begin = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    todo = jobs(rows, seeds)
    shared = list(overrides)
    timing: dict[str, float] = {}

    def lap(name: str) -> None:
        timing[name] = round(time.perf_counter() - begin, 1)
        say(f"{name}: done after {timing[name]} s")

    with ProcessPoolExecutor(parallel, context) as pool:
        covered = covered_file(recipe, data, out, overrides)
        lap("covering the queries")
        if rendered is not None and not init:
            share = [f"schedule.minutes={0.25 * minutes}", "evaluate.every=1000", "evaluate.occlusion=false"]
            pool.submit(train_row, "rendered_tiny", rendered, out / "rendered", [*overrides, *share]).result()
            init = str(out / "rendered" / "last")
            lap("pretraining on rendered people")
        shared += [f"model.init={init}", f"evaluate.covered={covered}"] if init else [f"evaluate.covered={covered}"]
        if any("transfer.probability=0.5" in ROWS[row] for row in rows):
            path = saliency or str(pool.submit(saliency_file, recipe, data, out, shared).result())
            shared.append(f"saliency.masks={path}")
            lap("saliency")
        if not epochs:
            runs = [
                pool.submit(measure, recipe, data, out / f"measure-{i}", [*shared, *ROWS["full"]], 40)
                for i in range(parallel)
            ]
            per_step, per_epoch = np.mean([r.result()[0] for r in runs]), runs[0].result()[1]
            lap("measuring")
            left = 60 * minutes - (time.perf_counter() - begin)
            cost = sum(COST.get(row, 1.0) for row, _ in todo)
            seconds = RESERVE * left * parallel / cost - SECONDS_PER_ROW
            epochs = max(1, int(seconds / (per_step * per_epoch)))
            say(f"{1000 * per_step:.1f} ms a step, {parallel} at a time: {epochs} epochs for each of {len(todo)} runs")
        shared += [f"schedule.epochs={epochs}", f"evaluate.every={max(1, epochs // 4)}", "save_every=100000"]
        running: dict[Future, tuple[str, int]] = {
            pool.submit(train_row, recipe, data, job_folder(out, row, seed), [*shared, *ROWS[row], f"seed={seed}"]): (
                row,
                seed,
            )
            for row, seed in todo
        }
        found: dict[tuple[str, int], dict[str, Any]] = {}
        failed: dict[str, str] = {}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                row, seed = running.pop(future)
                try:
                    found[row, seed] = future.result()
                except DpmError as error:
                    failed[f"{row}, seed {seed}"] = str(error)
                lap(f"{row}, seed {seed}")
                result = report(found, failed, timing, epochs, minutes)
                write_whole(out / "ablation.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def report(
    found: dict[tuple[str, int], dict[str, Any]],
    failed: dict[str, str],
    timing: dict[str, float],
    epochs: int,
    minutes: float,
) -> dict[str, Any]:
    """What ablation.json holds."""
    runs = [
        {
            "row": row,
            "seed": seed,
            **{k: r[k] for k in KEPT},
        }
        for (row, seed), r in found.items()
    ]
    first = next(iter(found.values()), None)
    return {
        "table": table(found),
        "runs": runs,
        "failed": failed,
        "rows": ROWS,
        "epochs": epochs,
        "minutes": minutes,
        "seconds_after": timing,
        "config": first["config"] if first else {},
        "machine": first["machine"] if first else machine_card(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Parse, run, print the table as JSON on stdout."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("overrides", nargs="*", metavar="field=value")
    made.add_argument("--recipe", default="market_tiny")
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--rendered", type=Path, help="rendered people to pretrain on, for a quarter of the time")
    made.add_argument("--init", default="", help="first weights of all rows, instead of --rendered")
    made.add_argument(
        "--saliency", default="", help="a saliency.safetensors of these pictures, instead of training SPS"
    )
    made.add_argument("--out", type=Path, required=True)
    made.add_argument("--minutes", type=float, default=9.0)
    made.add_argument("--epochs", type=int, default=0, help="of every row; 0: as many as fit")
    made.add_argument("--parallel", type=int, default=4)
    made.add_argument("--seeds", type=int, default=3, help="of the two ends")
    made.add_argument("--rows", default=";".join(DEFAULT), help="row names with ; between")
    options = vars(made.parse_intermixed_args(arguments))
    options["rows"] = [r.strip() for r in options["rows"].split(";")]
    try:
        result = ablate(
            options.pop("recipe"), options.pop("data"), options.pop("out"), options.pop("overrides"), **options
        )
    except DpmError as error:
        print(f"ablation: {error}", file=sys.stderr)
        return 1
    print(json.dumps(result["table"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
