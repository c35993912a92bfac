"""A model repository of NVIDIA's Triton Inference Server, from engine directories.

REPOSITORY/
    dpm-t-openvino-fp32/           a CPU engine: the python backend, with our runtime in it
        config.pbtxt
        1/model.py
        1/engine/                  the engine directory
    dpm-b-tensorrt-fp16/           a TensorRT plan: Triton's own backend
        config.pbtxt
        1/model.plan
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpm_edge.errors import ExportError
from dpm_edge.files import whole_folder
from dpm_edge.interop import MARK, check_replaceable
from dpm_edge.interop.deepstream import Name, to_text
from dpm_edge.manifest import BatchRange, Manifest, people

CONFIG = "config.pbtxt"
PYTHON = ("openvino", "onnxruntime")
"""Backends that are served by the python backend with our runtime in it."""
MODEL_PY = f'''"""{MARK}: the model is in the installed package dpm-edge."""

from dpm_edge.interop.triton_model import TritonPythonModel  # noqa: F401
'''
LABELS = "people.txt"


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """One model that was written into a repository."""

    name: str
    """What a client asks for."""
    folder: Path
    """Where it lies."""
    batch: int
    """Rows of one call at most."""
    inputs: tuple[str, ...]
    """Input names."""
    outputs: tuple[str, ...]
    """Output names."""
    needs: str
    """What the server's machine must have."""


def export(
    repository: Path, engines: Sequence[Path], *, max_wait: float = 0.005, threads: int = 0
) -> list[ServedModel]:
    """Write each engine as a model of the repository; other models in it are left alone.

    Args:
        repository: the folder that `tritonserver --model-repository` gets; made where it is not there.
        engines: engine directories. A model's name is NETWORK-BACKEND-PRECISION, such as "dpm-t-openvino-fp32".
        max_wait: seconds that a request may wait for company.
        threads: cores of a CPU engine; 0 leaves it to the engine's library.

    Raises:
        EngineError: an engine directory is missing, damaged or edited.
        ExportError: Triton cannot serve an engine, two would have one name, or a folder in the way is not ours.
    """
    plans: list[tuple[Path, Manifest]] = []
    names: dict[str, Path] = {}
    for engine in engines:
        manifest = Manifest.read(engine)
        manifest.check_files(engine)
        check_servable(manifest, engine)
        name = model_name(manifest)
        if name in names:
            raise ExportError(f"{names[name]} and {engine} are both {name}; export them into two repositories")
        names[name] = engine
        check_replaceable(repository / name, CONFIG)
        plans.append((engine, manifest))
    repository.mkdir(parents=True, exist_ok=True)
    return [_write(repository, engine, manifest, max_wait, threads) for engine, manifest in plans]


def model_name(manifest: Manifest) -> str:
    """What clients ask for: NETWORK-BACKEND-PRECISION."""
    return f"{manifest.spec.name}-{manifest.backend}-{manifest.precision}"


def check_servable(manifest: Manifest, folder: Path) -> None:
    """Refuse an engine that Triton has no backend for, or would fail to run.

    Raises:
        ExportError: naming what to build instead.
    """
    if manifest.backend not in (*PYTHON, "tensorrt"):
        raise ExportError(
            f"expected an engine of tensorrt, {', '.join(PYTHON)}, which Triton cannot serve otherwise, got "
            f"{manifest.backend} in {folder}. Build it: dpm-edge build {folder / 'model.onnx'} --backend tensorrt"
        )
    if manifest.backend == "tensorrt" and manifest.batch.low > 1:
        raise ExportError(
            f"{folder} takes batches from {manifest.batch.low} on, and Triton also sends single rows. Build it with "
            f"--batch 1:{manifest.batch.best}:{manifest.batch.high}"
        )
    if manifest.gpu is not None and manifest.gpu.weights == "stripped":
        raise ExportError(f"the plan in {folder} holds no weights, and Triton cannot refit it. Build it with weights")
    if manifest.gpu is not None and manifest.gpu.plugin is not None:
        raise ExportError(
            f"the plan in {folder} calls our plugin, and Triton only opens plugin libraries (dlopen): it never asks "
            "for their creators, as TensorRT's loadLibrary does. Build it with --mask-head native"
        )


def python_config(manifest: Manifest, *, max_wait: float, threads: int) -> dict[str, Any]:
    """The configuration of a CPU engine: encoded pictures of any size in, three float32 outputs.

    Batches come from many requests: an encoded picture is one element whatever its size, while raw pictures of
    different sizes have different shapes, which Triton does not put into one batch.
    """
    d = manifest.spec.dimension
    return {
        "name": model_name(manifest),
        "backend": "python",
        "max_batch_size": manifest.batch.high,
        "input": [{"name": "crop", "data_type": Name("TYPE_STRING"), "dims": [1]}],
        "output": [
            _output("feature", d),
            _output("mask", d),
            *([_output("visibility", 1)] if manifest.spec.masks else []),
        ],
        "instance_group": [{"count": 1, "kind": Name("KIND_CPU")}],
        "dynamic_batching": {"max_queue_delay_microseconds": round(max_wait * 1e6)},
        "parameters": [*_facts(manifest), _parameter("threads", str(threads))],
    }


def plan_config(manifest: Manifest, people: Sequence[str], *, max_wait: float) -> dict[str, Any]:
    """The configuration of a TensorRT plan: preprocessed crops in; each profile's best size is preferred and warmed."""
    pre, d = manifest.spec.preprocessing, manifest.spec.dimension
    ranges: tuple[BatchRange, ...] = manifest.profiles or (manifest.batch,)
    best = sorted({one.best for one in ranges})
    shape = [3, pre.height, pre.width]
    outputs = [_output(name, len(people) if name == "logits" else d) for name in manifest.outputs]
    for output in outputs:
        if output["name"] == "logits":
            output["label_filename"] = LABELS
    warm_input = {"data_type": Name("TYPE_FP32"), "dims": shape, "zero_data": True}
    return {
        "name": model_name(manifest),
        "platform": "tensorrt_plan",
        "max_batch_size": manifest.batch.high,
        "input": [{"name": "images", "data_type": Name("TYPE_FP32"), "dims": shape}],
        "output": outputs,
        "instance_group": [
            {"count": 1, "kind": Name("KIND_GPU"), "profile": [str(number) for number in range(len(ranges))]}
        ],
        "dynamic_batching": {
            "preferred_batch_size": best,
            "max_queue_delay_microseconds": round(max_wait * 1e6),
        },
        "model_warmup": [
            {"name": f"batch {size}", "batch_size": size, "inputs": [{"key": "images", "value": warm_input}]}
            for size in best
        ],
        "parameters": _facts(manifest),
    }


def _output(name: str, size: int) -> dict[str, Any]:
    return {"name": name, "data_type": Name("TYPE_FP32"), "dims": [size]}


def _parameter(key: str, value: str) -> dict[str, Any]:
    return {"key": key, "value": {"string_value": value}}


def _facts(manifest: Manifest) -> list[dict[str, Any]]:
    """What a client of raw outputs wants to know: which model it is, and what visibility is relative to."""
    facts = {"fingerprint": manifest.fingerprint, "mask_mean": repr(float(manifest.spec.mask_mean))}
    return [_parameter(key, value) for key, value in facts.items()]


def _write(repository: Path, engine: Path, manifest: Manifest, max_wait: float, threads: int) -> ServedModel:
    """One model's folder, whole."""
    name = model_name(manifest)
    folder = repository / name
    with whole_folder(folder) as part:
        version = part / "1"
        version.mkdir()
        if manifest.backend in PYTHON:
            config = python_config(manifest, max_wait=max_wait, threads=threads)
            (version / "model.py").write_text(MODEL_PY, encoding="utf-8")
            (version / "engine").mkdir()
            for file in ("manifest.json", *manifest.files):
                shutil.copyfile(engine / file, version / "engine" / file)
            needs = f"pip install 'dpm-edge[engines]' for the server's Python, with {_libraries(manifest)}"
        else:
            known = people(engine) if "logits" in manifest.outputs else ()
            config = plan_config(manifest, known, max_wait=max_wait)
            shutil.copyfile(engine / manifest.engine, version / "model.plan")
            if known:
                (part / LABELS).write_text("".join(f"{one}\n" for one in known), encoding="utf-8")
            needs = _plan_needs(manifest)
        text = f"# {MARK} from {engine}\n{to_text(config)}"
        (part / CONFIG).write_text(text, encoding="utf-8")
    return ServedModel(
        name=name,
        folder=folder,
        batch=config["max_batch_size"],
        inputs=tuple(one["name"] for one in config["input"]),
        outputs=tuple(one["name"] for one in config["output"]),
        needs=needs,
    )


def _libraries(manifest: Manifest) -> str:
    """The engine's own library and its version, as it must be on the server."""
    return f"{manifest.backend} {manifest.libraries.get(manifest.backend, '(any version)')}"


def _plan_needs(manifest: Manifest) -> str:
    """The machine that a plan is for."""
    card = manifest.gpu
    built = manifest.libraries.get("tensorrt", card.tensorrt if card is not None else "the same version")
    return f"{manifest.device} and TensorRT {built}, as at the build"
