"""One engine of one precision: its files, its golden crop, its manifest, and how it did against the reference."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dpm_edge import env
from dpm_edge.build import accept, cpu, graph, trt
from dpm_edge.build.people import People
from dpm_edge.build.source import Source, write_golden
from dpm_edge.build.trt import PlanOptions
from dpm_edge.build.verify import Budget
from dpm_edge.errors import SpecError
from dpm_edge.files import sha256
from dpm_edge.gpu import probe
from dpm_edge.manifest import CALIBRATED, NAME, WITH_MAP, BatchRange, Manifest
from dpm_edge.progress import say
from dpm_edge.spec import ModelSpec


@dataclass(frozen=True, kw_only=True)
class Job:
    """What was asked for, whatever the precision."""

    backend: str
    profiles: tuple[BatchRange, ...]
    options: PlanOptions
    mask_head: str
    """"native" or "plugin"."""
    people: People | None
    """Whom the engine tells apart by itself, with --closed-set."""
    calibration: list[Path]
    verification: list[Path]
    labelled: Path | None
    budget: Budget
    out: Path
    """The directory that the engine will lie in: what messages name."""
    quiet: bool


@dataclass(frozen=True)
class _Written:
    """The backend's files, and what the manifest says of them."""

    engine: str
    device: str
    facts: dict[str, Any]


def make(folder: Path, source: Source, job: Job, precision: str) -> Manifest:
    """Fill `folder`, which holds the portable ONNX, with an engine; nothing is refused yet for its accuracy.

    Raises:
        SpecError, MissingLibrary, EngineError: the backend cannot build it.
        DataError: the labelled folder has another layout.
    """
    if not job.quiet:
        say(f"building for {job.backend}, {precision}")
    written = _write(folder, source, job, precision)
    write_golden(folder, source, job.verification[0])
    batch = BatchRange.whole(job.profiles)
    manifest = Manifest(
        spec=source.spec,
        fingerprint=source.fingerprint,
        backend=job.backend,
        precision=precision,
        batch=batch,
        engine=written.engine,
        files={p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != NAME},
        device=written.device,
        libraries=env.versions(),
        built=env.machine_card(),
        verification={"golden_cosine": -1.0},
        outputs=_outputs(source.spec, job),
        options=_options(job),
        **written.facts,
    )
    manifest.write(folder)
    found = accept.examine(folder, source, job.verification, job.labelled, job.budget, quiet=job.quiet)
    if "not_verified" in found:
        found["not_verified"] = found["not_verified"].replace(str(folder), str(job.out))
    if precision in CALIBRATED:
        found["calibration_crops"] = len(job.calibration)
    manifest = replace(manifest, verification=found)
    manifest.write(folder)
    return manifest


def _outputs(spec: ModelSpec, job: Job) -> tuple[str, ...]:
    """What the engine gives, in the order of its graph. CPU engines alone hand on the map of what is seen."""
    seen = ("visibility",) if spec.visibility == "map" and job.backend in WITH_MAP else ()
    return ("feature", "mask", *seen, *(("logits",) if job.people else ()))


def _write(folder: Path, source: Source, job: Job, precision: str) -> _Written:
    """Write the backend's files."""
    pre = source.spec.preprocessing
    if job.backend == "torch":
        return _Written(_write_checkpoint(folder, source), "GPU" if probe() else cpu.DEVICE, {})
    typed, plugin = graph.assemble(
        source.model,
        source.spec,
        job.backend,
        precision,
        job.calibration,
        people=job.people,
        mask_head=job.mask_head,
        quiet=job.quiet,
    )
    if job.people:
        job.people.write_names(folder)
    batch = BatchRange.whole(job.profiles)
    if job.backend == "openvino":
        return _Written(cpu.write_openvino(typed, folder, source.spec, batch, precision), cpu.DEVICE, {})
    if job.backend == "onnxruntime":
        return _Written(cpu.write_onnxruntime(typed, folder, source.spec, batch, precision), cpu.DEVICE, {})
    plan = trt.write_plan(typed, folder, pre, job.profiles, job.backend, job.options, plugin=plugin, quiet=job.quiet)
    facts = {"profiles": job.profiles, "gpu": plan.card, "resources": plan.resources, "trtexec": plan.trtexec}
    return _Written(plan.file, plan.device, facts)


def _write_checkpoint(folder: Path, source: Source) -> str:
    """The checkpoint without its training prototypes, for the torch backend."""
    if source.path.suffix.lower() == ".onnx":
        raise SpecError(f"the torch backend runs a checkpoint; {source.path} is a portable ONNX")
    from dpm_edge.model import checkpoint

    net = checkpoint.load(source.path)
    net.prototypes = None
    return checkpoint.save(net, folder / "model").name


def _options(job: Job) -> tuple[str, ...]:
    """Options of `dpm-edge build` that a rebuild repeats, beside backend, precision and batch."""
    told = job.options.arguments() if job.backend.startswith("tensorrt") else ()
    if job.mask_head != "native":
        told += ("--mask-head", job.mask_head)
    if job.people:
        told += ("--closed-set", str(job.people.source))
    return told
