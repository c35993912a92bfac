"""What a run says of itself: evaluations, checkpoints with their card, results.json."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.model import checkpoint
from dpm_edge.progress import say
from dpm_edge.spec import WeightsCard
from dpm_edge.train.evaluate import (
    COLLAPSED,
    embed,
    evaluate,
    occlusion_curves,
    occlusion_sets,
    other_side,
    spread,
    summary,
)
from dpm_edge.train.run import Run
from dpm_edge.train.state import RunLog


def judge(run: Run, log: RunLog | None) -> None:
    """Evaluate, write last and, where the masked mAP rose, best."""
    found = evaluate(run.judged, run.query, run.gallery, run.config.evaluate.batch)
    apart = spread(run.judged, run.gallery.pixels)
    entry = {"epoch": run.epoch, **found, "spread": round(apart, 4)}
    run.history.append(entry)
    if log is not None:
        log.write("evaluation", run.step, entry)
    if not run.quiet:
        text = " · ".join(f"{m} Rank-1 {s['rank1']:.1f} mAP {s['mAP']:.1f}" for m, s in found.items())
        say(f"epoch {run.epoch}/{run.epochs}: {text}")
        loss = run.config.loss
        if apart < COLLAPSED and loss.triplet and loss.triplet_side == "before":
            say(
                f"before the neck features lie {apart:.3f} of their length apart, nearly one point: the triplet loss "
                "tells nobody apart there; set loss.triplet_side=after"
            )
    keep(run, "last")
    if found["masked"]["mAP"] > run.best:
        run.best = float(found["masked"]["mAP"])
        keep(run, "best")


def keep(run: Run, name: str) -> None:
    """Write the judged network as a checkpoint without prototypes, with its card and its mean mask."""
    net, config = run.judged, run.config
    sample = run.train.pixels[:: max(1, len(run.train) // 1000)]
    card = WeightsCard(
        licence=config.data.licence,
        data=config.data.described
        or f"{config.data.layout}: {len(run.sampler.rows)} people, {len(run.train)} pictures",
        recipe=config.recipe,
        seed=config.seed,
    )
    mean = float(embed(net, sample, config.evaluate.batch)[1].mean())
    prototypes, spec = net.prototypes, net.spec
    net.spec, net.prototypes = replace(spec, mask_mean=mean, weights=card), None
    try:
        checkpoint.save(net, run.out / name)
    finally:
        net.spec, net.prototypes = spec, prototypes


def finish(run: Run, speed: float) -> dict[str, Any]:
    """The results of a run: scores, occlusion curves, speed, machine; written to results.json."""
    config = run.config
    curves: list[dict[str, Any]] = []
    other: dict[str, Any] = {}
    if config.evaluate.occlusion:
        cache = Path(config.evaluate.covered) if config.evaluate.covered else None
        sets = occlusion_sets(run.query, run.train, config.evaluate.shares, cache)
        net = run.judged
        curves = occlusion_curves(net, run.query, run.gallery, sets, config.evaluate.batch)
        spec = net.spec
        net.spec = other_side(spec)
        other = {
            f"{net.spec.neck} neck": summary(occlusion_curves(net, run.query, run.gallery, sets, config.evaluate.batch))
        }
        net.spec = spec
    results = {
        "recipe": config.recipe,
        "seed": config.seed,
        "epochs": run.epochs,
        "steps": run.step,
        "pictures_per_second": round(speed, 1),
        "history": run.history,
        "occlusion": curves,
        "summary": summary(curves) if curves else {},
        "summary_other_neck": other,
        "config": config.to_dict(),
        "machine": machine_card(),
    }
    write_whole(run.out / "results.json", (json.dumps(results, indent=1) + "\n").encode())
    return results
