"""`build`: read the model, make the engine, verify it, and only then put the directory in its place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dpm_edge.build import accept, auto, candidate, crops, source
from dpm_edge.build.candidate import Job
from dpm_edge.build.people import read_people
from dpm_edge.build.trt import PlanOptions, load_library
from dpm_edge.build.verify import Budget
from dpm_edge.errors import SpecError, nearest
from dpm_edge.files import whole_folder
from dpm_edge.manifest import BACKENDS, CALIBRATED, NAME, PORTABLE, PRECISIONS, BatchRange, Manifest
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
    labelled: str | Path | None = None,
    budget: Budget | None = None,
    closed_set: str | Path | None = None,
    mask_head: str = "native",
    plan: PlanOptions | None = None,
    force: bool = False,
    progress: bool = True,
) -> Manifest:
    """Build an engine directory from a checkpoint or a portable ONNX, and verify it.

    Args:
        model: a checkpoint (exported with torch), or a portable ONNX (no torch needed).
        out: the directory to write; an engine directory that is there is replaced once the new one is whole.
        backend: "openvino", "onnxruntime", "tensorrt", "tensorrt-rtx" or "torch".
        precision: "fp32", "fp16", "bf16", "int8" or "fp8", as the backend has it (SUPPORTED); or "auto": the fastest
            that stays inside the budget, decided by timing, never slower than fp16 (on a CPU than fp32).
        calibrate: a folder of real crops: int8 and fp8 are calibrated on some, every engine is verified on others.
            int8 and fp8 want it; other builds are verified on the shipped samples without it.
        batch: batch sizes of one call, "low:best:high"; a TensorRT plan takes several, "1:1:1,2:8:64".
        labelled: a folder in Market-1501's layout, to compare mAP on.
        budget: what the engine may lose; `Budget()` where none is given.
        closed_set: a gallery of the same model: the engine also gives each crop's masked similarity to its people.
        mask_head: "native", or "plugin": our fused kernel for the mask generator, TensorRT only.
        plan: limits and flags for TensorRT's builder; its own defaults without.
        force: keep an engine that goes over the budget, or cannot be verified here, and say so in its manifest.
        progress: say on stderr what is being done, with the remaining time.

    Returns:
        The manifest that was written.

    Raises:
        SpecError: the arguments contradict each other; nothing was done.
        CheckpointError: the model is damaged or not what it says it is.
        ImageError, DataError: no crops to calibrate or verify on, or a labelled folder of another layout.
        MissingLibrary: the backend's library, or torch for a checkpoint, is not installed.
        EngineError: the backend's library refuses the network.
        BuildRefused: the engine went over the budget; the message has the numbers, `out` is as it was.
        KeyboardInterrupt: Ctrl-C; nothing half-written is left.
    """
    model, out = Path(model), Path(out)
    profiles = (batch,) if isinstance(batch, BatchRange) else BatchRange.parse_all(batch)
    _check(out, backend, precision, calibrate, profiles, mask_head, plan, closed_set=closed_set is not None)
    calibrated = precision in CALIBRATED or (precision == AUTO and calibrate is not None)
    calibration, verification = crops.choose(Path(calibrate or crops.SAMPLES), calibrate=calibrated)
    with whole_folder(out) as folder:
        if progress:
            say(f"reading {model}")
        read = source.read(model, folder / PORTABLE)
        job = Job(
            backend=backend,
            profiles=profiles,
            options=plan or PlanOptions(),
            mask_head=mask_head,
            people=read_people(Path(closed_set), read.fingerprint) if closed_set else None,
            calibration=calibration,
            verification=verification,
            labelled=Path(labelled) if labelled else None,
            budget=budget or Budget(),
            out=out,
            quiet=not progress,
        )
        made = auto.fastest(folder, read, job) if precision == AUTO else candidate.make(folder, read, job, precision)
        manifest = replace(made, verification=accept.insist(made.verification, force=force))
        manifest.write(folder)
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
        raise SpecError(f"backend {backend!r} is unknown.{nearest(backend, BACKENDS)}")
    if precision not in (*PRECISIONS, AUTO):
        raise SpecError(f"precision {precision!r} is unknown.{nearest(precision, (*PRECISIONS, AUTO))}")
    if precision not in (*SUPPORTED[backend], AUTO):
        raise SpecError(f"{backend} has no {precision}; {', '.join(SUPPORTED[backend])} is wanted, or another backend")
    if precision in CALIBRATED and calibrate is None:
        raise SpecError(f"{precision} is calibrated on real crops: give a folder of some hundred (--calibrate DIR)")
    if mask_head not in MASK_HEADS:
        raise SpecError(f"mask head {mask_head!r} is unknown.{nearest(mask_head, MASK_HEADS)}")
    if mask_head == "plugin" and backend != "tensorrt":
        raise SpecError(f"the plugin is TensorRT's; {backend} computes the mask head itself (--mask-head native)")
    if closed_set and backend == "torch":
        raise SpecError(
            "expected a backend that gives closed-set logits, got torch. Build with --backend openvino, onnxruntime or "
            "tensorrt, or search a Gallery with what a torch engine gives"
        )
    if len(profiles) > 1 and not backend.startswith("tensorrt"):
        raise SpecError(f"{backend} takes one range of batch sizes, such as {BatchRange.whole(profiles)}")
    if plan is not None and plan.arguments() and not backend.startswith("tensorrt"):
        raise SpecError(f"{backend} has no {plan.arguments()[0]}; that is an option of tensorrt and tensorrt-rtx")
    if backend.startswith("tensorrt"):
        load_library(backend)
    if out.exists() and not out.is_dir():
        raise SpecError(f"{out} is a file; a directory to write is wanted")
    if out.is_dir() and any(out.iterdir()) and not (out / NAME).is_file():
        raise SpecError(f"{out} holds other things than an engine and would be replaced; name a new directory")
