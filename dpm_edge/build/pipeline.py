"""`build`: read the model, make the engine, verify it, and only then put the directory in its place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from dpm_edge import gpu
from dpm_edge.build import auto, candidate, source, verify
from dpm_edge.build.candidate import BuildRequest
from dpm_edge.build.closed_set import read_closed_set
from dpm_edge.build.foreign import ForeignOptions
from dpm_edge.build.trt import PlanOptions, load_library
from dpm_edge.build.verify import AccuracyBudget
from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import BuildRefused, SpecError, nearest
from dpm_edge.files import sha256, whole_folder
from dpm_edge.labels import AUTO as AUTO_LAYOUT
from dpm_edge.layouts import read_dataset
from dpm_edge.manifest import BACKENDS, CALIBRATED, CAMERAS, NAME, PORTABLE, PRECISIONS, BatchRange, Manifest
from dpm_edge.progress import say
from dpm_edge.runtime import trust

SUPPORTED = {
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "onnxruntime": ("fp32", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8", "fp8"),
    "torch": ("fp32", "fp16", "bf16"),
}
AUTO = "auto"
MASK_HEADS = ("native", "plugin")


def build(
    model: str | Path,
    out: str | Path,
    *,
    backend: str = "openvino",
    precision: str = "fp32",
    calibrate: str | Path | None = None,
    batch: str | BatchRange = "1:8:64",
    foreign: ForeignOptions | None = None,
    labelled: str | Path | None = None,
    layout: str = AUTO_LAYOUT,
    budget: AccuracyBudget | None = None,
    closed_set: str | Path | None = None,
    statistics: str | Path | None = None,
    mask_head: str = "native",
    plan: PlanOptions | None = None,
    force: bool = False,
    progress: bool = True,
) -> Manifest:
    """Build an engine directory from a checkpoint, a portable ONNX or another project's network, and verify it.

    Args:
        model: a checkpoint (exported with torch), a portable ONNX (no torch needed), or another project's ONNX or
            OpenVINO IR.
        out: the directory to write; an engine directory that is there is replaced once the new one is whole.
        backend: "openvino", "onnxruntime", "tensorrt", "tensorrt-rtx" or "torch".
        precision: "fp32", "fp16", "bf16", "int8" or "fp8", as the backend has it (SUPPORTED); or "auto": the fastest
            that stays inside the budget, decided by timing, never slower than fp16 (on a CPU than fp32).
        calibrate: a folder of real crops: int8 and fp8 are calibrated on some, every engine is verified on others.
            int8 and fp8 want it; other builds are verified on the shipped samples without it.
        batch: batch sizes of one call, "low:best:high"; a TensorRT plan takes several, "1:1:1,2:8:64".
        foreign: how the input of another project's network is made, and which output is its feature.
        labelled: a labelled data set, to compare mAP on.
        layout: its layout, a name of `dpm_edge.layouts.LAYOUTS`; found by looking where none is named.
        budget: what the engine may lose; `AccuracyBudget()` where none is given.
        closed_set: a gallery of the same model: the engine also gives each crop's masked similarity to its people.
        statistics: what a site's cameras have in common under this model, as `dpm-edge adapt` writes it
            (`CameraStatistics.save`): it lies beside the engine, and galleries for the engine centre by it.
        mask_head: "native", or "plugin": our fused kernel for the mask generator, TensorRT only.
        plan: limits and flags for TensorRT's builder; its own defaults without.
        force: keep an engine that goes over the budget, or cannot be verified here, and say so in its manifest.
        progress: say on stderr what is being done, with the remaining time.

    Returns:
        The manifest that was written.

    Raises:
        SpecError: the arguments contradict each other, or another project's network was not described; nothing was
            done.
        CheckpointError: the model is damaged or not what it says it is.
        EmbeddingsError: the statistics are another model's, or something else.
        ImageError, DataError: no crops to calibrate or verify on, or a labelled folder of no known layout.
        MissingLibrary: the backend's library, or torch for a checkpoint, is not installed.
        EngineError: the backend's library refuses the network.
        BuildRefused: the engine went over the budget (the message has the numbers), cannot be opened on this machine,
            or cannot be written, such as to a full disk; `out` is as it was.
        KeyboardInterrupt: Ctrl-C; nothing half-written is left.
    """
    model, out = Path(model), Path(out)
    profiles = (batch,) if isinstance(batch, BatchRange) else BatchRange.parse_all(batch)
    _check(out, backend, precision, calibrate, profiles, mask_head, plan, closed_set=closed_set is not None)
    _check_that_it_can_be_opened(backend, precision, force=force, quiet=not progress)
    people = read_dataset(Path(labelled), layout) if labelled else None
    cameras = CameraStatistics.load(statistics) if statistics else None
    calibrated = precision in CALIBRATED or (precision == AUTO and calibrate is not None)
    calibration, verification = source.choose_crops(
        Path(calibrate or source.SAMPLE_CROPS), calibrate=calibrated, quiet=not progress
    )
    with engine_folder(out) as folder:
        if progress:
            say(f"reading {model}")
        read = source.read(model, folder / PORTABLE, foreign, quiet=not progress)
        if cameras is not None:
            cameras.require_model(read.fingerprint, read.spec.dimension)
        request = BuildRequest(
            backend=backend,
            profiles=profiles,
            options=plan or PlanOptions(),
            mask_head=mask_head,
            people=read_closed_set(Path(closed_set), read.fingerprint) if closed_set else None,
            calibration=calibration,
            verification=verification,
            labelled=people,
            budget=budget or AccuracyBudget(),
            out=out,
            quiet=not progress,
        )
        made = (
            auto.fastest(folder, read, request)
            if precision == AUTO
            else candidate.make(folder, read, request, precision)
        )
        files = dict(made.files)
        if cameras is not None:
            cameras.save(folder / CAMERAS)
            files[CAMERAS] = sha256(folder / CAMERAS)
        manifest = replace(made, files=files, verification=verify.keep_or_refuse(made.verification, force=force))
        manifest.write(folder)
    if progress and "not_verified" in manifest.verification:
        say(f"not verified, and kept by force: {manifest.verification['not_verified']}")
    if backend in trust.PLANS:
        trust.add(out)  # a plan is code: this one was built here
    if progress:
        say(f"wrote {out}")
        if manifest.trtexec:
            say(f"NVIDIA's own timing of the same plan: cd {out} && {manifest.trtexec}")
    return manifest


def _check(
    out: Path,
    backend: str,
    precision: str,
    calibrate: str | Path | None,
    profiles: tuple[BatchRange, ...],
    mask_head: str,
    plan: PlanOptions | None,
    *,
    closed_set: bool,
) -> None:
    """Refuse what cannot work before anything is done.

    Raises:
        SpecError: the arguments contradict each other.
        MissingLibrary: TensorRT is asked for and not installed.
    """
    if backend not in BACKENDS:
        raise SpecError(f"expected a backend, got {backend!r}.{nearest(backend, BACKENDS)}")
    if precision not in (*PRECISIONS, AUTO):
        raise SpecError(f"expected a precision, got {precision!r}.{nearest(precision, (*PRECISIONS, AUTO))}")
    if precision not in (*SUPPORTED[backend], AUTO):
        raise SpecError(
            f"expected a precision of {backend} ({', '.join(SUPPORTED[backend])}), got {precision}. "
            "Use one of them, or another backend"
        )
    if precision in CALIBRATED and calibrate is None:
        raise SpecError(
            f"expected real crops to calibrate {precision} on, got none. Give a folder of some hundred "
            "(--calibrate DIR)"
        )
    if mask_head not in MASK_HEADS:
        raise SpecError(f"expected a mask head, got {mask_head!r}.{nearest(mask_head, MASK_HEADS)}")
    if mask_head == "plugin" and backend != "tensorrt":
        raise SpecError(
            f"expected the backend tensorrt for --mask-head plugin, got {backend}, which computes the mask head "
            "itself. Use --mask-head native"
        )
    if closed_set and backend == "torch":
        raise SpecError(
            "expected a backend that gives closed-set logits, got torch. Build with --backend openvino, onnxruntime or "
            "tensorrt, or search a Gallery with what a torch engine gives"
        )
    if len(profiles) > 1 and not backend.startswith("tensorrt"):
        raise SpecError(
            f"expected one range of batch sizes for {backend}, got {len(profiles)}. Give one, such as "
            f"{BatchRange.whole(profiles)}"
        )
    if plan is not None and plan.arguments() and not backend.startswith("tensorrt"):
        raise SpecError(
            f"expected the backend tensorrt or tensorrt-rtx for {plan.arguments()[0]}, got {backend}. "
            "Leave that option out"
        )
    if backend.startswith("tensorrt"):
        load_library(backend)
    if out.exists() and not out.is_dir():
        raise SpecError(f"expected a directory to write, got the file {out}")
    if out.is_dir() and any(out.iterdir()) and not (out / NAME).is_file():
        raise SpecError(
            f"expected a new directory or an engine to replace, got {out}, which holds other things. "
            "Name another directory"
        )


def _check_that_it_can_be_opened(backend: str, precision: str, *, force: bool, quiet: bool) -> None:
    """Say before a plan is built, which takes minutes, that this machine cannot open it.

    TensorRT for RTX builds without a GPU, but opens no plan there; TensorRT itself builds nothing.

    Raises:
        BuildRefused: there is no GPU to open the plan on, and nobody forces it, or auto is to time it.
    """
    if backend != "tensorrt-rtx" or gpu.probe() is not None:
        return
    missing = "no NVIDIA GPU was found here (no driver, or no cuda-bindings: pip install 'dpm-edge[gpu]')"
    if precision == AUTO:
        raise BuildRefused(
            f"expected a GPU to time the engines on for --precision auto, but {missing}. "
            "Build on the device that is to run the engine, or name a precision"
        )
    if not force:
        raise BuildRefused(
            f"expected a GPU to open the {backend} engine on and verify it, but {missing}. "
            "Build on the device that is to run the engine, or keep it unverified with --force"
        )
    if not quiet:
        say(f"this engine will be built but not verified: {missing}")


@contextmanager
def engine_folder(out: Path) -> Iterator[Path]:
    """A fresh folder that becomes `out` when the block ends well. Whatever fails, the engine that was there stays.

    Raises:
        BuildRefused: the folder cannot be written, or the disk is full.
    """
    try:
        with whole_folder(out) as folder:
            yield folder
    except OSError as error:
        reason = f"{error.strerror or error}" + (f" ({error.filename})" if error.filename else "")
        raise BuildRefused(
            f"expected to write the engine to {out}, got: {reason}. Make room or choose another folder (-o); "
            "an engine that was there is as it was"
        ) from error
