"""`--precision auto`: the fastest engine that stays inside the accuracy budget, decided by building and timing each.

All candidates are open at once and take turns, so that a machine that warms up or gets busy slows all of them. The
fastest is the one with the least geometric mean of its times over the baseline's, over the best size of each profile;
it is only taken where it is faster than the baseline by more than the noise, and at no size slower.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import geometric_mean, median

from dpm_edge.build import candidate
from dpm_edge.build.candidate import BuildRequest
from dpm_edge.build.source import Source
from dpm_edge.errors import BuildRefused, EngineError, MissingLibrary, SpecError
from dpm_edge.images import read_image
from dpm_edge.manifest import CALIBRATED, PORTABLE, Manifest
from dpm_edge.progress import say, track
from dpm_edge.runtime import Engine

CANDIDATES = {
    "openvino": ("fp32", "bf16", "int8"),
    "onnxruntime": ("fp32", "int8"),
    "tensorrt": ("fp16", "bf16", "int8", "fp8", "fp32"),
    "tensorrt-rtx": ("fp16", "bf16", "int8", "fp8", "fp32"),
    "torch": ("fp16", "bf16", "fp32"),
}
"""Backend → precisions that are tried; the first is the baseline, which nothing slower replaces. fp32 comes last on a
GPU, for networks that no other precision holds."""
NOISE = 0.02
"""Part of the baseline's time by which a candidate must be faster: less is within what timings differ by."""
SECONDS = 10.0
"""About how long all timings together take, warm-up aside."""
ROUNDS = (5, 50)
"""Fewest and most turns of each candidate."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of the table that a manifest keeps."""

    precision: str
    milliseconds: dict[str, float] = field(default_factory=dict)
    """Crops in a call → median time of the call, ms, preprocessing included."""
    cosine_mean: float | None = None
    mask_max_error: float | None = None
    map_lost: float | None = None
    """mAP points, where there is a labelled folder."""
    within_budget: bool = False
    chosen: bool = False
    why_not: str = ""
    """Why it could not be built, or why it is not the one."""


def fastest(folder: Path, source: Source, request: BuildRequest) -> Manifest:
    """Fill `folder`, which holds the portable ONNX, with the engine of the best precision.

    Returns its manifest; `verification["candidates"]` holds the table.

    Raises:
        EngineError: the engines cannot be opened here, so nothing can be decided.
        BuildRefused: none stays inside the budget; the message has the table.
        SpecError, MissingLibrary: the baseline cannot be built.
    """
    scratch = folder / "candidates"
    rows: list[Candidate] = []
    manifests: dict[str, Manifest] = {}
    for precision in CANDIDATES[request.backend]:
        if rows and precision == "fp32" and any(row.within_budget for row in rows):
            rows.append(Candidate(precision=precision, why_not="not tried: what is above is accurate enough"))
            continue
        row, manifest = _try(scratch / precision, folder / PORTABLE, source, request, precision, first=not rows)
        rows.append(row)
        if manifest is not None:
            manifests[precision] = manifest
    times = measure({name: scratch / name for name in manifests}, source, request)
    rows = [replace(row, milliseconds=times.get(row.precision, {})) for row in rows]
    rows = choose(rows)
    if not request.quiet:
        say(table(rows))
    chosen = next((row.precision for row in rows if row.chosen), None)
    if chosen is None:
        raise BuildRefused(
            f"expected a precision inside the accuracy budget, got none. Give a wider one (--budget, --cosine)\n"
            f"{table(rows)}"
        )
    for path in (scratch / chosen).iterdir():
        path.replace(folder / path.name)
    shutil.rmtree(scratch)
    manifest = manifests[chosen]
    manifest = replace(manifest, verification=manifest.verification | {"candidates": [asdict(row) for row in rows]})
    manifest.write(folder)
    return manifest


def _try(
    folder: Path, portable: Path, source: Source, request: BuildRequest, precision: str, *, first: bool
) -> tuple[Candidate, Manifest | None]:
    """Build one candidate; a reason instead of a manifest where it cannot be built here."""
    if precision in CALIBRATED and not request.calibration:
        return Candidate(precision=precision, why_not="no crops to calibrate on (--calibrate DIR)"), None
    folder.mkdir(parents=True)
    shutil.copy(portable, folder / PORTABLE)
    try:
        manifest = candidate.make(folder, source, request, precision)
    except (SpecError, MissingLibrary, EngineError) as error:
        if first:
            raise
        return Candidate(precision=precision, why_not=f"cannot be built here: {error}"), None
    measured = manifest.verification
    if "not_verified" in measured:
        if first:
            raise EngineError(
                "expected to time the engines for --precision auto, got engines that cannot be opened here. Build on "
                f"the device that is to run the engine, or name a precision. The reason: {measured['not_verified']}"
            )
        return Candidate(precision=precision, why_not=f"cannot be opened here: {measured['not_verified']}"), None
    row = Candidate(
        precision=precision,
        cosine_mean=measured["cosine_mean"],
        mask_max_error=measured["mask_max_error"],
        map_lost=measured.get("labelled", {}).get("map_lost"),
        within_budget=measured["passed"],
        why_not="; ".join(measured["over_budget"]),
    )
    return row, manifest


def measure(engines: dict[str, Path], source: Source, request: BuildRequest) -> dict[str, dict[str, float]]:
    """Median milliseconds of a call, for each engine and each profile's best size; the engines take turns."""
    sizes = sorted({batch.best for batch in request.profiles})
    pictures = [read_image(path) for path in request.verification]
    crops = [pictures[i % len(pictures)] for i in range(max(sizes))]
    taken: dict[str, dict[str, list[float]]] = {name: {str(size): [] for size in sizes} for name in engines}
    with ExitStack() as stack:
        opened = {name: stack.enter_context(Engine.load(path, trusted=True)) for name, path in engines.items()}
        once = 0.0
        for size in sizes:
            for engine in opened.values():
                engine.embed(crops[:size])
                start = time.perf_counter()
                engine.embed(crops[:size])
                once += time.perf_counter() - start
        rounds = int(min(max(SECONDS / once, ROUNDS[0]), ROUNDS[1]))
        for turn in track(range(rounds), what="timing the candidates", quiet=request.quiet):
            names = list(opened)
            names = names[turn % len(names) :] + names[: turn % len(names)]
            for size in sizes:
                for name in names:
                    start = time.perf_counter()
                    opened[name].embed(crops[:size])
                    taken[name][str(size)].append(1000 * (time.perf_counter() - start))
    return {name: {size: round(median(all_), 3) for size, all_ in by.items()} for name, by in taken.items()}


def choose(rows: Sequence[Candidate]) -> list[Candidate]:
    """The rows with one of them chosen, or none where none is inside the budget; the first row is the baseline.

    Inside the budget, the baseline is replaced only by what is faster than it. Where the baseline is over the budget,
    the fastest of the others is taken, whatever the baseline's time.
    """
    baseline = rows[0]
    inside = [row for row in rows if row.within_budget and row.milliseconds]
    if baseline.within_budget:
        faster = [row for row in inside if row is not baseline and _faster(row, baseline)]
        best = min(faster, key=lambda row: _ratio(row, baseline), default=baseline)
    elif inside:
        best = min(inside, key=lambda row: _ratio(row, baseline))
    else:
        return list(rows)
    decided = []
    for row in rows:
        why = row.why_not
        if row is not best and row in inside:
            why = f"not faster than {best.precision}"
        decided.append(replace(row, chosen=row is best, why_not=why))
    return decided


def _ratio(row: Candidate, baseline: Candidate) -> float:
    """Geometric mean over the sizes of a candidate's time over the baseline's."""
    return geometric_mean([ms / baseline.milliseconds[size] for size, ms in row.milliseconds.items()])


def _faster(row: Candidate, baseline: Candidate) -> bool:
    """Faster than the baseline by more than the noise, and at no size slower."""
    slower = any(ms > baseline.milliseconds[size] for size, ms in row.milliseconds.items())
    return not slower and _ratio(row, baseline) < 1 - NOISE


def table(rows: Sequence[Candidate]) -> str:
    """The candidates as text: time of a call by its crops, cosine, mAP points lost, and what became of each."""
    sizes = next((list(row.milliseconds) for row in rows if row.milliseconds), [])
    head = ["precision", *(f"{size} crops, ms" for size in sizes), "cosine", "mAP lost", ""]
    lines = [head]
    for row in rows:
        verdict = "chosen" if row.chosen else row.why_not
        times = [f"{row.milliseconds[size]:.2f}" if size in row.milliseconds else "–" for size in sizes]
        cosine = "–" if row.cosine_mean is None else f"{row.cosine_mean:.5f}"
        lost = "–" if row.map_lost is None else f"{row.map_lost:.2f}"
        lines.append([row.precision, *times, cosine, lost, verdict])
    wide = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    return "\n".join(
        "  ".join([line[0].ljust(wide[0]), *(c.rjust(w) for c, w in zip(line[1:-1], wide[1:])), line[-1]]).rstrip()
        for line in lines
    )
