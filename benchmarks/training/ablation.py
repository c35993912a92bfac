"""The ablation table: what each part of the method is worth, everything else fixed.

    python benchmarks/training/ablation.py --data MARKET [--rendered DIR | --init FILE] --out DIR --minutes M

Rows share one saliency file, one set of first weights, one number of steps and one set of covered queries. How many
rows train at a time on one GPU, and for how many epochs, follows from step times that are measured first. ablation.json
is rewritten after every row with the table of those that are done; the same command again goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.context import SpawnContext
from pathlib import Path
from typing import Any

import numpy as np
from ablation_plan import (
    DEFAULT,
    ROWS,
    AblationPlan,
    candidates,
    check_rows,
    choose,
    job_folder,
    jobs,
    mean,
    measure,
)

from dpm_edge.env import machine_card
from dpm_edge.errors import DpmError, SpecError
from dpm_edge.files import write_whole
from dpm_edge.progress import say

KEPT = ("epochs", "steps", "pictures_per_second", "summary", "summary_other_neck", "occlusion", "history")
"""What ablation.json keeps of each run."""


def train_row(recipe: str, data: Path, out: Path, overrides: list[str]) -> dict[str, Any]:
    """One run, in a worker process. Returns its results."""
    import torch

    from dpm_edge.train.cli import train

    torch.set_num_threads(max(1, torch.get_num_threads() // 2))
    return train(recipe, data, out, overrides, quiet=True)


def saliency_file(recipe: str, data: Path, out: Path, overrides: list[str]) -> Path:
    """Train SPS once for all rows, in a worker; returns the cache, with a sheet of what SPT does with it beside it."""
    import cv2

    from dpm_edge.train.config import override
    from dpm_edge.train.data import decode
    from dpm_edge.train.preview import examples, sheet
    from dpm_edge.train.recipes import recipe as named
    from dpm_edge.train.run import device_of, training_set
    from dpm_edge.train.saliency.person_masks import SOURCES, person_masks
    from dpm_edge.train.start import model_spec

    config = override(named(recipe), overrides)
    out.mkdir(parents=True, exist_ok=True)
    device = device_of(config)
    train = decode(training_set(config, data).train, model_spec(config.model).preprocessing, quiet=True)
    train = train.to(device)
    masks = person_masks(config, train, data, out, device)
    config.transfer.probability = 1.0
    cv2.imwrite(str(out / "transfer.jpg"), sheet(examples(config, train, masks)[0]))
    return out / SOURCES[config.saliency.source]


def covered_file(recipe: str, data: Path, out: Path, overrides: list[str]) -> Path:
    """Cover the queries once for all rows; returns the cache."""
    from dpm_edge.train.config import override
    from dpm_edge.train.data import decode
    from dpm_edge.train.evaluate import occlusion_sets
    from dpm_edge.train.recipes import recipe as named
    from dpm_edge.train.run import training_set
    from dpm_edge.train.start import model_spec

    config = override(named(recipe), overrides)
    people, pre = training_set(config, data), model_spec(config.model).preprocessing
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


@dataclass(frozen=True, kw_only=True)
class AblationBudget:
    """How long and how much: minutes of all, the most runs at a time, epochs of each run (0: as many as fit)."""

    minutes: float = 9.0
    parallel: int = 6
    epochs: int = 0


def ablate(
    recipe: str,
    data: Path,
    out: Path,
    overrides: list[str],
    *,
    budget: AblationBudget,
    rows: list[str],
    seeds: int,
    rendered: Path | None = None,
    init: str = "",
    saliency: str = "",
) -> dict[str, Any]:
    """Train all rows and write out/ablation.json after each; the same call again goes on where it was stopped.

    No run starts that would not end within the minutes; those left out are named, and a later call trains them.
    Raises SpecError for an unknown row, for minutes that fit nothing, or where `out` holds another ablation.
    """
    check_rows(rows, overrides)
    begin = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    todo = jobs(rows, seeds)
    settings: dict[str, Any] = {
        "recipe": recipe,
        "data": str(data),
        "overrides": overrides,
        "init": init,
        "rendered": str(rendered or ""),
    }
    settings["epochs"] = budget.epochs
    plan = _kept_plan(out, settings)
    found = finished(out, todo) if plan is not None else {}
    todo = [job for job in todo if job not in found]
    failed: dict[str, str] = {}
    timing: dict[str, float] = {}
    if not todo:
        return _write(out, report(found, failed, [], timing, plan))

    def lap(name: str) -> None:
        timing[name] = round(time.perf_counter() - begin, 1)
        say(f"{name}: done after {timing[name]} s")

    def left() -> float:
        return 60 * budget.minutes - (time.perf_counter() - begin)

    with ProcessPoolExecutor(budget.parallel, context) as pool:
        shared = [*overrides, "schedule.minutes=0"]  # a recipe's own budget would shorten the plan's epochs
        covered = covered_file(recipe, data, out, overrides)
        lap("covering the queries")
        if rendered is not None and not init:
            share = [f"schedule.minutes={0.25 * budget.minutes}", "evaluate.every=1000", "evaluate.occlusion=false"]
            pool.submit(train_row, "rendered_tiny", rendered, out / "rendered", [*overrides, *share]).result()
            init = str(out / "rendered" / "last")
            lap("pretraining on rendered people")
        shared += [f"model.init={init}", f"evaluate.covered={covered}"] if init else [f"evaluate.covered={covered}"]
        if any("transfer.probability=0.5" in ROWS[row] for row, _ in todo):
            path = saliency or str(pool.submit(saliency_file, recipe, data, out, shared).result())
            shared.append(f"saliency.masks={path}")
            lap("saliency")
        if plan is None:
            plan = _measured_plan(pool, context, recipe, data, out, shared, todo, budget, left)
            _keep_plan(out, settings, plan)
            lap("measuring")
        say(f"{plan.epochs} epochs, {plan.parallel} runs at a time, {plan.seconds:.0f} s each: {len(todo)} runs")
        part = max(1, plan.epochs // 4)
        shared += [f"schedule.epochs={plan.epochs}", f"evaluate.every={part}", f"save_every={part}"]
        waiting = list(todo)
        running: dict[Future[dict[str, Any]], tuple[str, int]] = {}
        result = report(found, failed, waiting, timing, plan)
        while waiting or running:
            while waiting and len(running) < plan.parallel and (budget.epochs or left() >= 0.9 * plan.seconds):
                row, seed = waiting.pop(0)
                words = [*shared, *ROWS[row], f"seed={seed}"]
                running[pool.submit(train_row, recipe, data, job_folder(out, row, seed), words)] = (row, seed)
            if not running:
                say(f"no time is left for {len(waiting)} runs: the same command trains them")
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                row, seed = running.pop(future)
                try:
                    found[row, seed] = future.result()
                except DpmError as error:
                    failed[f"{row}, seed {seed}"] = str(error)
                lap(f"{row}, seed {seed}")
                result = _write(out, report(found, failed, [*running.values(), *waiting], timing, plan))
    return result


def _measured_plan(
    pool: Executor,
    context: SpawnContext,
    recipe: str,
    data: Path,
    out: Path,
    shared: list[str],
    todo: list[tuple[str, int]],
    budget: AblationBudget,
    left: Callable[[], float],
) -> AblationPlan:
    """Measure each number of runs at a time, and choose; with given epochs all of budget.parallel run at a time."""
    if budget.epochs:
        return AblationPlan(budget.parallel, budget.epochs, 0.0)
    dearest = max((row for row, _ in todo), key=lambda row: "loss.masked=true" in ROWS[row])
    words, measured = [*shared, *ROWS[dearest]], {}
    with context.Manager() as manager:
        for count in candidates(min(budget.parallel, len(todo))):
            together = manager.Barrier(count) if count > 1 else None
            running = [pool.submit(measure, recipe, data, out / "measure", words, together) for _ in range(count)]
            measured[count] = mean([r.result() for r in running])
            say(f"{1000 * measured[count].seconds:.1f} ms a step, {count} at a time")
    return choose(measured, todo, left())


def finished(out: Path, todo: list[tuple[str, int]]) -> dict[tuple[str, int], dict[str, Any]]:
    """Results of the runs that an earlier call ended."""
    found = {}
    for row, seed in todo:
        path = job_folder(out, row, seed) / "results.json"
        if path.is_file():
            found[row, seed] = json.loads(path.read_text(encoding="utf-8"))
    return found


def _keep_plan(out: Path, settings: dict[str, Any], plan: AblationPlan) -> None:
    write_whole(
        out / "plan.json", (json.dumps({"settings": settings, "plan": plan.to_dict()}, indent=1) + "\n").encode()
    )


def _kept_plan(out: Path, settings: dict[str, Any]) -> AblationPlan | None:
    """An earlier call's plan, so that rows trained today and tomorrow have equal epochs.

    Raises SpecError where that call was for another ablation.
    """
    path = out / "plan.json"
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    changed = [
        f"{name} (was {kept['settings'].get(name)!r})"
        for name in settings
        if kept["settings"].get(name) != settings[name]
    ]
    if changed:
        raise SpecError(f"{out} holds an ablation with another {', '.join(changed)}: give another --out")
    return AblationPlan(**kept["plan"])


def _write(out: Path, result: dict[str, Any]) -> dict[str, Any]:
    write_whole(out / "ablation.json", (json.dumps(result, indent=1) + "\n").encode())
    return result


def report(
    found: dict[tuple[str, int], dict[str, Any]],
    failed: dict[str, str],
    left: list[tuple[str, int]],
    timing: dict[str, float],
    plan: AblationPlan | None,
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
        "left": [f"{row}, seed {seed}" for row, seed in left],
        "rows": ROWS,
        "plan": plan.to_dict() if plan is not None else {},
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
    made.add_argument("--epochs", type=int, default=0, help="of every row; 0: as many as fit the minutes")
    made.add_argument("--parallel", type=int, default=6, help="the most runs at a time; fewer where that is faster")
    made.add_argument("--seeds", type=int, default=3, help="of the two ends")
    made.add_argument("--rows", default=";".join(DEFAULT), help="row names with ; between")
    options = vars(made.parse_intermixed_args(arguments))
    options["rows"] = [r.strip() for r in options["rows"].split(";")]
    options["budget"] = AblationBudget(**{name: options.pop(name) for name in ("minutes", "epochs", "parallel")})
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
