"""What a run says of itself: evaluations, checkpoints with their card, results.json."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.model import checkpoint
from dpm_edge.progress import say
from dpm_edge.spec import NECKS, WeightsCard
from dpm_edge.train import state
from dpm_edge.train.evaluate import (
    COLLAPSED,
    covering_seconds,
    embed,
    evaluate,
    occlusion_curves,
    occlusion_sets,
    scores,
    spread,
    summary,
)
from dpm_edge.train.occluders import KINDS as OCCLUDERS
from dpm_edge.train.run import EvaluationCosts, Run, snapshot
from dpm_edge.train.state import RunLog

UNKNOWN_LICENCE = "unknown"
"""What a card says where the user said nothing."""


def score_start(run: Run, log: RunLog | None, resume_from: Path) -> None:
    """Score the starting weights on the test that every later evaluation uses; save; measure what that costs."""
    net, batch, begin = run.judged, run.config.evaluate.batch, time.perf_counter()
    q, g = embed(net, run.query.pixels, batch), embed(net, run.gallery.pixels, batch)
    embedded = time.perf_counter()
    scored = scores(run.query, run.gallery, q, g)
    ranked = time.perf_counter()
    model = run.config.model
    run.start = {"weights": model.init or model.clip or "untrained", **scored}
    state.save(resume_from, snapshot(run))
    saving = 2 * (time.perf_counter() - ranked)  # the optimiser's state, as large again, is not there yet
    run.costs = EvaluationCosts(embedded - begin, ranked - embedded, saving)
    if log is not None:
        log.write("start", run.step, run.start)
    if not run.quiet:
        say(f"before training ({run.start['weights']}): {_in_words(scored)}")


def judge(run: Run, log: RunLog | None) -> None:
    """Evaluate, write last and, where the masked mAP rose, best."""
    scored = evaluate(run.judged, run.query, run.gallery, run.config.evaluate.batch)
    distance = spread(run.judged, run.gallery.pixels)
    entry = {"epoch": run.epoch, **scored, "spread": round(distance, 4)}
    run.history.append(entry)
    if log is not None:
        log.write("evaluation", run.step, entry)
    if not run.quiet:
        say(f"epoch {run.epoch}/{run.epochs}: {_in_words(scored)}")
        loss = run.config.loss
        if distance < COLLAPSED and loss.triplet and loss.triplet_side == "before":
            say(
                f"before the neck features lie {distance:.3f} of their length apart, nearly one point: the triplet "
                "loss tells nobody apart there; set loss.triplet_side=after"
            )
    keep(run, "last")
    if scored["masked"]["mAP"] > run.best:
        run.best = float(scored["masked"]["mAP"])
        keep(run, "best")


def _in_words(scored: dict[str, dict[str, float | int]]) -> str:
    return " · ".join(f"{m} Rank-1 {s['rank1']:.1f} mAP {s['mAP']:.1f}" for m, s in scored.items())


def comparison(results: dict[str, Any]) -> list[str]:
    """Say in lines whether training helped: both metrics before and after, and a verdict on the best checkpoint."""
    start, last = results["start"], results["history"][-1]
    best = max(results["history"], key=lambda entry: entry["masked"]["mAP"])
    lines = [f"before: {start['weights']} · after: epoch {last['epoch']} · the same queries and gallery"]
    for metric in ("plain", "masked"):
        parts = []
        for score, name in (("rank1", "Rank-1"), ("mAP", "mAP")):
            before, after = start[metric][score], last[metric][score]
            parts.append(f"{name} {before:.1f} → {after:.1f} ({after - before:+.1f})")
        lines.append(f"{metric}: {'  '.join(parts)}")
    gain = best["masked"]["mAP"] - start["masked"]["mAP"]
    if gain > 0:
        lines.append(f"training helped: best.safetensors (epoch {best['epoch']}) has {gain:.1f} points more masked mAP")
    else:
        lines.append(
            f"training did not help: the best epoch ({best['epoch']}) has {-gain:.1f} points less masked mAP than the "
            f"weights it started from. Keep {start['weights']}, or train on more people, longer or with a lower "
            "optimiser.lr"
        )
    return lines


def seconds_of_an_evaluation(run: Run) -> float:
    """Estimate how long `judge` takes where it keeps both checkpoints, from what the first evaluation cost."""
    if run.costs is None:
        return 0.0
    each = run.costs.embedding / (len(run.query) + len(run.gallery))
    return run.costs.embedding + run.costs.ranking + 2 * each * len(_sample(run))


def seconds_at_the_end(run: Run) -> float:
    """Estimate how long covering the queries and scoring them will take, from what the first evaluation cost."""
    config = run.config.evaluate
    if not config.occlusion or run.costs is None:
        return 0.0
    kept = bool(config.covered) and Path(config.covered).is_file()
    covering = 0.0 if kept else covering_seconds(run.query, run.train, config.shares)
    each = run.costs.embedding / (len(run.query) + len(run.gallery))
    sets = len(OCCLUDERS) * sum(share > 0 for share in config.shares)
    embedding = each * (len(run.gallery) + (sets + 1) * len(run.query))
    return covering + embedding + len(NECKS) * (sets + 1) * run.costs.ranking


def keep(run: Run, name: str) -> None:
    """Write the judged network as a checkpoint without prototypes, with its card and its mean mask."""
    net, config = run.judged, run.config
    card = WeightsCard(
        licence=config.data.licence or UNKNOWN_LICENCE,
        data=config.data.described or run.described,
        recipe=config.recipe,
        seed=config.seed,
    )
    mean = float(embed(net, _sample(run), config.evaluate.batch)[1].mean())
    prototypes, spec = net.prototypes, net.spec
    net.spec, net.prototypes = replace(spec, mask_mean=mean, weights=card), None
    try:
        checkpoint.save(net, run.out / name)
    finally:
        net.spec, net.prototypes = spec, prototypes


def _sample(run: Run) -> Tensor:
    """About a thousand training pictures, to measure the mean mask on."""
    return run.train.pixels[:: max(1, len(run.train) // 1000)]


def finish(run: Run, speed: float) -> dict[str, Any]:
    """Write results.json and return it: scores before and after, occlusion curves, speed, machine."""
    config = run.config
    curves: dict[str, list[dict[str, Any]]] = {}
    if config.evaluate.occlusion:
        cache = Path(config.evaluate.covered) if config.evaluate.covered else None
        sets = occlusion_sets(run.query, run.train, config.evaluate.shares, cache)
        curves = occlusion_curves(run.judged, run.query, run.gallery, sets, config.evaluate.batch)
    neck = run.judged.spec.neck
    results = {
        "recipe": config.recipe,
        "seed": config.seed,
        "epochs": run.epochs,
        "steps": run.step,
        "pictures_per_second": round(speed, 1),
        "start": run.start,
        "history": run.history,
        "occlusion": curves.get(neck, []),
        "summary": summary(curves[neck]) if curves else {},
        "summary_other_neck": {f"{side} neck": summary(rows) for side, rows in curves.items() if side != neck},
        "config": config.to_dict(),
        "machine": machine_card(),
    }
    write_whole(run.out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results
