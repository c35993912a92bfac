"""One engine of one precision: its files, its golden crop, its manifest, and how it did against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpm_edge import env
from dpm_edge.build import cpu, graph, trt, verify
from dpm_edge.build.people import ClosedSet
from dpm_edge.build.source import Source, write_golden
from dpm_edge.build.trt import PlanOptions
from dpm_edge.build.verify import AccuracyBudget
from dpm_edge.errors import SpecError
from dpm_edge.files import sha256
from dpm_edge.gpu import probe
from dpm_edge.layouts import Dataset
from dpm_edge.manifest import CALIBRATED, NAME, BatchRange, Manifest
from dpm_edge.progress import say


@dataclass(frozen=True, kw_only=True)
class BuildRequest:
    """What is to be built, whatever the precision."""

    backend: str
    profiles: tuple[BatchRange, ...]
    options: PlanOptions
    mask_head: str
    """"native" or "plugin"."""
    people: ClosedSet | None
    """Whom the engine tells apart by itself, with --closed-set."""
    calibration: list[Path]
    verification: list[Path]
    labelled: Dataset | None
    budget: AccuracyBudget
    out: Path
    """The directory that the engine will lie in: what messages name."""
    quiet: bool


@dataclass(frozen=True)
class _Written:
    """The backend's files, and what the manifest says of them."""

    engine: str
    device: str
    facts: dict[str, Any]


def make(folder: Path, source: Source, request: BuildRequest, precision: str) -> Manifest:
    """Fill `folder`, which holds the portable ONNX, with an engine; nothing is refused yet for its accuracy.

    Raises:
        SpecError, MissingLibrary, EngineError: the backend cannot build it.
        DataError: no labelled query has a match.
    """
    if not request.quiet:
        say(f"building for {request.backend}, {precision}")
    written = _write(folder, source, request, precision)
    write_golden(folder, source, request.verification[0])
    batch = BatchRange.whole(request.profiles)
    manifest = Manifest(
        spec=source.spec,
        fingerprint=source.fingerprint,
        backend=request.backend,
        precision=precision,
        batch=batch,
        engine=written.engine,
        files={p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != NAME},
        device=written.device,
        libraries=env.versions(),
        built=env.machine_card(),
        verification={"golden_cosine": -1.0},
        outputs=("feature", "mask", "logits") if request.people else ("feature", "mask"),
        options=_options(request),
        **written.facts,
    )
    manifest.write(folder)
    verification = verify.examine(
        folder, source, request.verification, request.labelled, request.budget, quiet=request.quiet
    )
    if "not_verified" in verification:
        verification["not_verified"] = verification["not_verified"].replace(str(folder), str(request.out))
    if precision in CALIBRATED:
        verification["calibration_crops"] = len(request.calibration)
    manifest = replace(manifest, verification=verification)
    manifest.write(folder)
    return manifest


def _write(folder: Path, source: Source, request: BuildRequest, precision: str) -> _Written:
    """Write the backend's files."""
    pre = source.spec.preprocessing
    if request.backend == "torch":
        return _Written(_write_checkpoint(folder, source), "GPU" if probe() else cpu.DEVICE, {})
    typed, plugin = graph.assemble(
        source.model,
        source.spec,
        request.backend,
        precision,
        request.calibration,
        people=request.people,
        mask_head=request.mask_head,
        quiet=request.quiet,
    )
    if request.people:
        request.people.write_names(folder)
    batch = BatchRange.whole(request.profiles)
    if request.backend == "openvino":
        return _Written(cpu.write_openvino(typed, folder, source.spec, batch, precision), cpu.DEVICE, {})
    if request.backend == "onnxruntime":
        return _Written(cpu.write_onnxruntime(typed, folder, source.spec, batch, precision), cpu.DEVICE, {})
    plan = trt.write_plan(
        typed, folder, pre, request.profiles, request.backend, request.options, plugin=plugin, quiet=request.quiet
    )
    facts = {"profiles": request.profiles, "gpu": plan.card, "resources": plan.resources, "trtexec": plan.trtexec}
    return _Written(plan.file, plan.device, facts)


def _write_checkpoint(folder: Path, source: Source) -> str:
    """The checkpoint without its training prototypes, for the torch backend."""
    if source.path.suffix.lower() == ".onnx":
        raise SpecError(
            f"expected a checkpoint for the torch backend, got the portable ONNX {source.path}. "
            "Give the checkpoint that it was exported from, or build for openvino or onnxruntime"
        )
    from dpm_edge.model import checkpoint

    net = checkpoint.load(source.path)
    net.prototypes = None
    return checkpoint.save(net, folder / "model").name


def _options(request: BuildRequest) -> tuple[str, ...]:
    """Options of `dpm-edge build` that a rebuild repeats, beside backend, precision and batch."""
    options = request.options.arguments() if request.backend.startswith("tensorrt") else ()
    if request.mask_head != "native":
        options += ("--mask-head", request.mask_head)
    if request.people:
        options += ("--closed-set", str(request.people.source))
    return options
