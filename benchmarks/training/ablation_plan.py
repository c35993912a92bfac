"""What an ablation trains, how many runs at a time, and for how many epochs: chosen from measured step times.

Runs beside each other share one GPU: a step takes longer, but the host's work of one hides behind the GPU's of another.
For each number of runs at a time that was measured, the epochs that fit follow; the best number is taken.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge.errors import SpecError, nearest

ERASING = ["transfer.probability=0", "augment.erase=0.5"]
SPT = ["transfer.probability=0.5", "augment.erase=0"]
ERASING_AND_SPT = ["transfer.probability=0.5", "augment.erase=0.5"]
PLAIN = ["loss.masked=false"]
MASKED = ["loss.masked=true"]
NO_HEM, HEM = ["loss.hem=0"], ["loss.hem=0.1"]
ROWS: dict[str, list[str]] = {
    "baseline": ERASING + PLAIN + NO_HEM,
    "+SPT": SPT + PLAIN + NO_HEM,
    "+HMG": ERASING + MASKED + NO_HEM,
    "+HMG, masks held": ERASING + MASKED + NO_HEM + ["optimiser.mask_lr=0"],
    "+HEM": ERASING + PLAIN + HEM,
    "+anchoring": SPT + MASKED + HEM + ["loss.i2t=1", "loss.anchor=1"],
    "full": SPT + MASKED + HEM,
    "full + agreement": SPT + MASKED + HEM + ["loss.agreement=1"],
    "full + agreement + erasing": ERASING_AND_SPT + MASKED + HEM + ["loss.agreement=1"],
    "full, erasing for SPT": ERASING + MASKED + HEM,
    "full, triplet before the neck": SPT + MASKED + HEM + ["loss.triplet_side=before"],
    "full, alternating": SPT + MASKED + HEM + ["optimiser.optimisation=alternating"],
    "full, from scratch": SPT + MASKED + HEM + ["model.init="],
}
"""Row → what it sets. "masks held" trains the masked margin logits with the masks as they came: what it gains is the
logits' doing, what "+HMG" gains beyond it is the masks'."""
NEEDS_TEXTS = ("+anchoring",)
"""Rows that learn from texts: loss.texts=FILE must be given."""
ENDS = ("baseline", "full")
"""Rows that are trained with three seeds."""
DEFAULT = (
    "baseline",
    "full",
    "+SPT",
    "+HMG",
    "+HMG, masks held",
    "+HEM",
    "full + agreement",
    "full + agreement + erasing",
    "full, erasing for SPT",
    "full, from scratch",
)
COST = {"full, alternating": 2.0, "+anchoring": 1.1}
"""Steps of a row that cost more than others'."""
RESERVE = 0.95
"""Share of the remaining time that is planned for."""
CURVES = 90.0
"""Seconds of each run that are left for its occlusion curves and for saving."""
MEASURED_STEPS = 30
"""Steps that are timed, after as many that are not."""


def check_rows(rows: list[str], overrides: list[str]) -> None:
    """Raise SpecError for an unknown row, or one that needs texts where no file is named."""
    for row in rows:
        if row not in ROWS:
            raise SpecError(f"no ablation row {row!r}.{nearest(row, ROWS)}")
        if row in NEEDS_TEXTS and not any(word.startswith("loss.texts=") for word in overrides):
            raise SpecError(
                f"row {row!r} learns from texts, which need CLIP's weights: `dpm-edge train texts RECIPE --data DIR "
                "--out texts.safetensors model.clip=ViT-B-16.safetensors` (open_clip's ViT-B-16, tag openai), then "
                "loss.texts=texts.safetensors here, with a model that has CLIP's projection"
            )


def jobs(rows: list[str], seeds: int) -> list[tuple[str, int]]:
    """(row, seed): every row once, the cheapest first, then the ends' other seeds."""
    first = sorted(((row, 0) for row in rows), key=lambda job: COST.get(job[0], 1.0))
    return first + [(row, seed) for seed in range(1, seeds) for row in rows if row in ENDS]


def job_folder(out: Path, row: str, seed: int) -> Path:
    """Where a row's run goes: letters, digits and dashes alone."""
    name = "".join(c if c.isalnum() else "-" for c in row).strip("-")
    return out / f"{name}-seed{seed}"


@dataclass(frozen=True)
class Measured:
    """One number of runs at a time: seconds of a step of each, seconds until a run's first step, steps of an epoch."""

    seconds: float
    start: float
    steps: int


@dataclass(frozen=True)
class AblationPlan:
    """What was chosen: runs at a time, epochs of each, seconds that one run will take."""

    parallel: int
    epochs: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """For plan.json."""
        return asdict(self)


def waves(todo: list[tuple[str, int]], parallel: int) -> float:
    """Runs one after the other, in units of a run of cost 1, when each goes to the place that is free first."""
    places = [0.0] * parallel
    for row, _ in todo:
        places[places.index(min(places))] += COST.get(row, 1.0)
    return max(places)


def choose(measured: Mapping[int, Measured], todo: list[tuple[str, int]], seconds: float) -> AblationPlan:
    """The plan with the most epochs in `seconds`, CURVES of each run left for its curves; at least one epoch.

    Raises SpecError where not even that fits: the message says how many minutes would do.
    """
    plans, least = [], math.inf
    for parallel, found in measured.items():
        rounds = waves(todo, parallel)
        epoch = found.seconds * found.steps
        fixed = found.start + CURVES
        epochs = int((RESERVE * seconds / rounds - fixed) / epoch)
        least = min(least, rounds * (fixed + epoch) / RESERVE)
        if epochs >= 1:
            plans.append(AblationPlan(parallel, epochs, fixed + epochs * epoch))
    if not plans:
        raise SpecError(
            f"{len(todo)} runs do not fit in {seconds / 60:.1f} minutes, of which {CURVES:.0f} s a run are for curves; "
            f"{math.ceil(least / 60)} minutes fit one epoch each. Give more --minutes, fewer --rows or --seeds 1"
        )
    return max(plans, key=lambda plan: (plan.epochs, -plan.parallel))


def candidates(most: int) -> list[int]:
    """Numbers of runs at a time to measure: 2, 4, 8, … and the most; 1 only where 2 is the most."""
    return sorted({2**k for k in range(most > 2, most.bit_length()) if 2**k < most} | {most})


@lru_cache(maxsize=1)
def _prepared(recipe: str, data: Path, out: Path, overrides: tuple[str, ...]) -> tuple[Any, float]:
    from dpm_edge.train.config import override
    from dpm_edge.train.recipes import recipe as named
    from dpm_edge.train.run import prepare

    begin = time.perf_counter()
    return prepare(override(named(recipe), list(overrides)), data, out, quiet=True), time.perf_counter() - begin


def measure(recipe: str, data: Path, out: Path, overrides: list[str], together: Any) -> Measured:
    """In a worker, while its neighbours measure too; together: a barrier that they all wait at, or None for one."""
    import torch

    from dpm_edge.train.loop import train_step, wait_for_gpu

    run, start = _prepared(recipe, data, out, tuple(overrides))
    epochs = 1 + 2 * MEASURED_STEPS // run.sampler.batches
    batches = torch.from_numpy(np.concatenate([run.sampler.epoch(e) for e in range(epochs)])).to(run.device)
    begin = 0.0
    for number, rows in enumerate(batches[: 2 * MEASURED_STEPS]):
        if number == MEASURED_STEPS:
            wait_for_gpu(run.device)
            if together is not None:
                together.wait(timeout=300)
            begin = time.perf_counter()
        train_step(run, rows, 0.0)
        run.step += 1
    wait_for_gpu(run.device)
    return Measured((time.perf_counter() - begin) / MEASURED_STEPS, start, run.sampler.batches)


def mean(found: list[Measured]) -> Measured:
    """Of the neighbours."""
    return Measured(float(np.mean([f.seconds for f in found])), max(f.start for f in found), found[0].steps)
