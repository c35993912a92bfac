"""`build`: read the model, make the engine, verify it, and only then put the directory in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from dpm_edge import env
from dpm_edge.build import cpu, low_precision, portable, tensorrt, verify
from dpm_edge.build.quantise import OUTLIER_CROPS, peaked, quantise
from dpm_edge.build.verify import Budget, Reference
from dpm_edge.errors import BuildRefused, CheckpointError, DpmError, EngineError, SpecError, nearest
from dpm_edge.files import sha256, whole_folder
from dpm_edge.images import find_images, preprocess, read_image
from dpm_edge.manifest import BACKENDS, GOLDEN, NAME, PORTABLE, PRECISIONS, BatchRange, Manifest
from dpm_edge.progress import say, track
from dpm_edge.runtime import Engine
from dpm_edge.spec import ModelSpec

SUPPORTED = {
    "openvino": ("fp32", "fp16", "bf16", "int8"),
    "onnxruntime": ("fp32", "int8"),
    "tensorrt": ("fp32", "fp16", "bf16", "int8"),
    "tensorrt-rtx": ("fp32", "fp16", "bf16", "int8"),
}
CALIBRATION_CROPS = 64
VERIFICATION_CROPS = 64
SAMPLES = Path(__file__).parents[1] / "assets" / "samples"
"""The crops that ship with the package: what is verified on where the user gives none."""
GOLDEN_MARGIN = 0.01
"""How far below its value at build time the golden crop's cosine may fall where the engine is opened."""


@dataclass(frozen=True)
class _Source:
    """A model that can be built from."""

    model: ModelProto
    spec: ModelSpec
    fingerprint: str
    reference: Reference


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
    force: bool = False,
    progress: bool = True,
) -> Manifest:
    """Build an engine directory from a checkpoint or a portable ONNX, and verify it.

    Args:
        model: a checkpoint (exported with torch), or a portable ONNX (no torch needed).
        out: the directory to write; an engine directory that is there is replaced once the new one is whole.
        backend: "openvino", "onnxruntime", "tensorrt" or "tensorrt-rtx".
        precision: "fp32", "fp16", "bf16" or "int8"; ONNX Runtime has fp32 and int8.
        calibrate: a folder of real crops: int8 is calibrated on some, every engine is verified on others.
            int8 wants it; other builds are verified on the shipped samples without it.
        batch: batch sizes of one call, "low:best:high".
        labelled: a folder in Market-1501's layout, to compare mAP on.
        budget: what the engine may lose; `Budget()` where none is given.
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
    """
    model, out, budget = Path(model), Path(out), budget or Budget()
    batch = BatchRange.parse(batch) if isinstance(batch, str) else batch
    _check(out, backend, precision, calibrate)
    calibration, verification = _crops(Path(calibrate) if calibrate else SAMPLES, precision)
    with whole_folder(out) as folder:
        _say(progress, f"reading {model}")
        source = _read(model, folder / PORTABLE)
        graph = _in_precision(source, backend, precision, calibration, progress)
        _say(progress, f"building for {backend}, {precision}")
        engine = _write_engine(graph, folder, source.spec, batch, backend, precision)
        _write_golden(folder, source, verification[0])
        manifest = Manifest(
            spec=source.spec,
            fingerprint=source.fingerprint,
            backend=backend,
            precision=precision,
            batch=batch,
            engine=engine,
            files={p.name: sha256(p) for p in sorted(folder.iterdir()) if p.name != NAME},
            device=_device(backend),
            libraries=env.versions(),
            built=env.machine_card(),
            verification={"golden_cosine": -1.0},
        )
        manifest.write(folder)
        found = _verify(folder, out, source, verification, labelled, budget, force, progress)
        if precision == "int8":
            found["calibration_crops"] = len(calibration)
        manifest = replace(manifest, verification=found)
        manifest.write(folder)
    _say(progress, f"wrote {out}")
    return manifest


def _check(out: Path, backend: str, precision: str, calibrate: str | Path | None) -> None:
    """Refuse what cannot work before anything is done."""
    if backend not in BACKENDS:
        raise SpecError(f"backend {backend!r} is unknown.{nearest(backend, BACKENDS)}")
    if precision not in PRECISIONS:
        raise SpecError(f"precision {precision!r} is unknown.{nearest(precision, PRECISIONS)}")
    if precision not in SUPPORTED[backend]:
        raise SpecError(f"{backend} has no {precision}; {', '.join(SUPPORTED[backend])} is wanted, or another backend")
    if precision == "int8" and calibrate is None:
        raise SpecError("int8 is calibrated on real crops: give a folder of some hundred (--calibrate DIR)")
    if out.exists() and not out.is_dir():
        raise SpecError(f"{out} is a file; a directory to write is wanted")
    if out.is_dir() and any(out.iterdir()) and not (out / NAME).is_file():
        raise SpecError(f"{out} holds other things than an engine and would be replaced; name a new directory")


def _crops(folder: Path, precision: str) -> tuple[list[Path], list[Path]]:
    """Pictures to calibrate on and pictures to verify on, spread over the folder; disjoint where it holds enough."""
    if folder == SAMPLES and not folder.is_dir():
        raise SpecError("an engine is verified on real crops: give a folder of them (--calibrate DIR)")
    paths = find_images(folder)
    spread = [
        paths[i] for i in np.linspace(0, len(paths) - 1, CALIBRATION_CROPS + VERIFICATION_CROPS).round().astype(int)
    ]
    spread = verify.readable(list(dict.fromkeys(spread)))
    if not spread:
        raise SpecError(f"no picture in {folder} can be read; real crops of people are wanted")
    if precision != "int8":
        return [], spread[:VERIFICATION_CROPS]
    return spread[::2] or spread, spread[1::2] or spread


def _read(model: Path, copy: Path) -> _Source:
    """Read a checkpoint or a portable ONNX, and leave the portable ONNX at `copy`."""
    if model.suffix.lower() == ".onnx":
        read = portable.read(model)
        copy.write_bytes(read.data)
        reference = verify.onnx_reference(read.model.SerializeToString())
        return _Source(read.model, read.spec, read.fingerprint, reference)
    if not any(path.exists() for path in (model, model.with_name(f"{model.name}.safetensors"))):
        raise CheckpointError(f"{model} does not exist; a checkpoint (NAME.safetensors) or a portable .onnx is wanted")
    from dpm_edge.errors import MissingLibrary

    try:
        from dpm_edge.build.export import export
        from dpm_edge.model import checkpoint
    except ImportError as error:
        library = error.name or "torch"
        raise MissingLibrary(
            library,
            f"exporting the checkpoint {model}",
            "pip install 'dpm-edge[build]', or build from a portable .onnx",
        ) from error
    net = checkpoint.load(model)
    export(net, copy)
    read = portable.read(copy)
    return _Source(read.model, read.spec, read.fingerprint, verify.torch_reference(net))


def _in_precision(source: _Source, backend: str, precision: str, calibration: list[Path], progress: bool) -> ModelProto:
    """The graph that the backend is given."""
    if precision == "int8":
        _say(progress, f"calibrating on {len(calibration)} crops")
        pre = source.spec.preprocessing
        some = preprocess([read_image(path) for path in calibration[:OUTLIER_CROPS]], pre)
        kept = peaked(source.model, some)
        _say(progress, f"{len(kept)} products stay in float: their activations have outliers")
        crops = (
            preprocess([read_image(path)], pre) for path in track(calibration, what="calibrating", quiet=not progress)
        )
        return quantise(source.model, crops, keep_float=kept)
    if precision in ("fp16", "bf16") and backend.startswith("tensorrt"):
        return low_precision.lower(source.model, precision)
    return source.model


def _write_engine(
    graph: ModelProto, folder: Path, spec: ModelSpec, batch: BatchRange, backend: str, precision: str
) -> str:
    """Write the backend's files; returns the one to open."""
    if backend == "openvino":
        return cpu.write_openvino(graph, folder, spec, batch, precision)
    if backend == "onnxruntime":
        return cpu.write_onnxruntime(graph, folder, spec, batch, precision)
    return tensorrt.write_plan(graph, folder, spec, batch, backend)


def _device(backend: str) -> str:
    """What the engine was built for."""
    return cpu.DEVICE if backend in ("openvino", "onnxruntime") else tensorrt.device_name()


def _write_golden(folder: Path, source: _Source, path: Path) -> None:
    """Keep one crop and what the reference makes of it; the runtime runs it whenever the engine is opened."""
    crop = read_image(path)
    feature, mask = source.reference.forward(preprocess([crop], source.spec.preprocessing))
    np.savez(folder / GOLDEN, crop=crop, feature=feature[0], mask=mask[0])


def _verify(
    folder: Path,
    out: Path,
    source: _Source,
    paths: list[Path],
    labelled: str | Path | None,
    budget: Budget,
    force: bool,
    progress: bool,
) -> dict[str, Any]:
    """The manifest's verification entry; `folder` will become `out`.

    Raises:
        BuildRefused: over the budget, or not possible here, and not forced.
    """
    found: dict[str, Any] = {
        "reference": source.reference.name,
        "crops": len(paths),
        "budget": {"cosine": budget.cosine, "map_points": budget.map_points},
    }
    _say(progress, f"verifying against {source.reference.name} on {len(paths)} crops")
    try:
        engine = Engine.load(folder, device=Manifest.read(folder).device)
    except DpmError as error:
        reason = str(error).replace(str(folder), str(out))
        if not force or not isinstance(error, EngineError):
            raise BuildRefused(
                "the engine was built but cannot be opened here, so it is not verified. Build it on the device that is "
                f"to run it, or keep it unverified with --force. The reason: {reason}"
            ) from error
        return found | {"passed": False, "forced": True, "not_verified": reason}
    quiet = not progress
    with engine:
        pre = source.spec.preprocessing
        wanted = verify.run_reference(source.reference, paths, pre, what="reference", quiet=quiet)
        got = verify.run_engine(engine, paths, what="engine", quiet=quiet)
        found |= verify.compare(got, wanted)
        found["golden_cosine"] = round(float(np.sum(got[0][0] * wanted[0][0])) - GOLDEN_MARGIN, 6)
        if labelled is not None:
            found["labelled"] = verify.compare_labelled(engine, source.reference, Path(labelled), quiet=quiet)
    over = verify.faults(found, budget)
    if over and not force:
        raise BuildRefused(
            f"the engine is over the accuracy budget: {'; '.join(over)}. Give more or better crops (--calibrate), "
            "another precision, a wider budget, or keep it as it is with --force"
        )
    return found | {"passed": not over, "forced": bool(over), "over_budget": over}


def _say(progress: bool, message: str) -> None:
    """A status line on stderr, unless the caller wants none."""
    if progress:
        say(message)
