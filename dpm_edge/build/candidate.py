"""One engine of one precision: its files, its golden crop, its manifest, and how it did against the reference."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
from onnx import ModelProto

from dpm_edge import env
from dpm_edge.build import low_precision, trt, verify
from dpm_edge.build.closed_set import ClosedSet
from dpm_edge.build.source import Source, write_golden
from dpm_edge.build.trt import PlanOptions
from dpm_edge.build.verify import AccuracyBudget
from dpm_edge.errors import SpecError
from dpm_edge.files import sha256
from dpm_edge.gpu import probe
from dpm_edge.layouts import Dataset
from dpm_edge.manifest import CALIBRATED, NAME, WITH_MAP, BatchRange, Manifest
from dpm_edge.progress import say
from dpm_edge.spec import ModelSpec
from dpm_edge.telemetry import import_onnxruntime, import_openvino


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
        outputs=_outputs(source.spec, request),
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


def _outputs(spec: ModelSpec, request: BuildRequest) -> tuple[str, ...]:
    """What the engine gives, in the order of its graph. CPU engines alone hand on the map of what is seen."""
    seen = ("visibility",) if spec.visibility == "map" and request.backend in WITH_MAP else ()
    return ("feature", "mask", *seen, *(("logits",) if request.people else ()))


def _write(folder: Path, source: Source, request: BuildRequest, precision: str) -> _Written:
    """Write the backend's files."""
    pre = source.spec.preprocessing
    if request.backend == "torch":
        return _Written(_write_checkpoint(folder, source), "GPU" if probe() else DEVICE, {})
    typed, plugin = low_precision.assemble(
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
        return _Written(write_openvino(typed, folder, source.spec, batch, precision), DEVICE, {})
    if request.backend == "onnxruntime":
        return _Written(write_onnxruntime(typed, folder, source.spec, batch, precision), DEVICE, {})
    plan = trt.write_plan(
        typed, folder, pre, request.profiles, request.backend, request.options, plugin=plugin, quiet=request.quiet
    )
    facts = {"profiles": request.profiles, "gpu": plan.card, "resources": plan.resources, "trtexec": plan.trtexec}
    return _Written(plan.file, plan.device, facts)


def _write_checkpoint(folder: Path, source: Source) -> str:
    """The checkpoint without its training prototypes, for the torch backend."""
    if source.path.suffix.lower() in (".onnx", ".xml"):
        raise SpecError(
            f"expected a checkpoint for the torch backend, got {source.path}. "
            "Give the checkpoint that it was exported from, or build for openvino or onnxruntime"
        )
    from dpm_edge.model import checkpoint

    net = checkpoint.load_any(source.path)
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


DEVICE = "CPU"


def write_openvino(model: ModelProto, folder: Path, spec: ModelSpec, batch: BatchRange, precision: str) -> str:
    """Write engine.xml and engine.bin; returns the name of the file to open.

    "fp32" and "int8" keep the graph's own numbers. "fp16" and "bf16" store the weights as float16; at run time the
    device computes bf16 where it has it, and fp16 on devices that prefer it.

    Raises:
        MissingLibrary: openvino is not installed.
        SpecError: bf16 was asked for, and this CPU computes none.
    """
    openvino = import_openvino("the openvino backend")
    core = openvino.Core()
    capabilities = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise SpecError(
            f"expected a CPU that computes bf16, got one with {', '.join(capabilities)} (OpenVINO). "
            "Build fp32 or int8 instead"
        )
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.onnx"
        onnx.save_model(model, source)
        network = core.read_model(source)
        pre = spec.preprocessing
        rows = openvino.Dimension(batch.low, batch.high)
        network.reshape(openvino.PartialShape([rows, 3, pre.height, pre.width]))
        openvino.save_model(network, folder / "engine.xml", compress_to_fp16=precision in ("fp16", "bf16"))
    return "engine.xml"


def write_onnxruntime(model: ModelProto, folder: Path, spec: ModelSpec, batch: BatchRange, precision: str) -> str:
    """Write engine.onnx; returns its name. Float16 graphs are never written: ONNX Runtime's CPU provider can crash.

    Raises:
        MissingLibrary: onnxruntime is not installed.
    """
    import_onnxruntime("the onnxruntime backend")  # an engine that cannot be opened here cannot be verified here
    onnx.save_model(model, folder / "engine.onnx")
    return "engine.onnx"
