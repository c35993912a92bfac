"""Run an ONNX file, or an OpenVINO IR, of somebody's detector on a CPU, whatever its inputs and outputs are called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.env import installed
from dpm_edge.errors import EngineError, MissingLibrary
from dpm_edge.telemetry import INSTALL, import_onnxruntime, import_openvino

ONNXRUNTIME_TYPES: dict[str, type[np.generic]] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
}


HINTS = {"fp32": "f32", "bf16": "bf16"}
"""Precision → what OpenVINO calls it."""


@dataclass(frozen=True, kw_only=True)
class GraphInput:
    """One input of a graph."""

    name: str
    shape: tuple[int | None, ...]
    """None where the file leaves the size free."""
    dtype: type[np.generic]

    def __str__(self) -> str:
        return f"{self.name} {np.dtype(self.dtype).name} ({', '.join(str(n or 'free') for n in self.shape)})"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An opened file."""

    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...]
    """Their names."""
    backend: str
    fix: Callable[[Mapping[str, tuple[int, ...]]], Callable[[Mapping[str, NDArray]], dict[str, NDArray]]]
    """Input → its whole shape. Gives what runs it, input → array to output → array, for any number of threads."""


def open_graph(path: Path, *, threads: int | None = None, backend: str | None = None, precision: str = "fp32") -> Graph:
    """Open a detector's file.

    Args:
        path: an ONNX file, or an OpenVINO IR's .xml.
        threads: cores for one picture; None leaves it to the library.
        backend: "openvino" or "onnxruntime"; None: OpenVINO where it is installed.
        precision: "fp32", or "bf16" with OpenVINO on a CPU that computes it.

    Raises:
        EngineError: it is not there, or the library cannot read it, or there is no such precision here.
        MissingLibrary: neither library is installed, or not the one that was asked for.
    """
    if not path.is_file():
        raise EngineError(f"expected a detector's ONNX file, got {path}, which is not there. Check the path")
    backend = backend or ("openvino" if installed("openvino") or path.suffix == ".xml" else "onnxruntime")
    if backend not in ("openvino", "onnxruntime"):
        raise EngineError(f"expected backend openvino or onnxruntime, got {backend!r}")
    if not installed(backend):
        raise MissingLibrary("OpenVINO or ONNX Runtime", "the person detector", INSTALL)
    if backend == "openvino":
        return _openvino(path, threads, precision)
    if precision != "fp32":
        raise EngineError(f"expected precision fp32 in ONNX Runtime, got {precision!r}")
    return _onnxruntime(path, threads)


def _openvino(path: Path, threads: int | None, precision: str) -> Graph:
    openvino = import_openvino("the person detector")
    core = openvino.Core()
    can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if precision not in HINTS or (precision == "bf16" and "BF16" not in can):
        raise EngineError(
            f"expected precision fp32, or bf16 on a CPU that computes it, got {precision!r} on one with "
            f"{', '.join(can)} (OpenVINO)"
        )
    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": HINTS[precision],
        "ENABLE_CPU_PINNING": False,  # pinned, every process that asks for one thread would share the first core
    }
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    with _refused(f"OpenVINO {openvino.__version__}", path):
        model = core.read_model(path)
        inputs = tuple(
            GraphInput(
                name=one.any_name,
                shape=tuple(n.get_length() if n.is_static else None for n in one.partial_shape),
                dtype=one.element_type.to_dtype().type,
            )
            for one in model.inputs
        )
        outputs = tuple(one.any_name for one in model.outputs)  # compiled ones also have the names of joined nodes

    def fix(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[Mapping[str, NDArray]], dict[str, NDArray]]:
        with _refused(f"OpenVINO {openvino.__version__}", path):
            model.reshape({name: list(shape) for name, shape in shapes.items()})
            compiled = core.compile_model(model, "CPU", settings)

        def run(feeds: Mapping[str, NDArray]) -> dict[str, NDArray]:
            request = compiled.create_infer_request()  # one for each call: threads share no buffers
            given = {name: np.ascontiguousarray(one) for name, one in feeds.items()}
            request.infer({name: openvino.Tensor(one, shared_memory=True) for name, one in given.items()})
            return {name: request.get_tensor(name).data.copy() for name in outputs}

        return run

    return Graph(inputs=inputs, outputs=outputs, backend="openvino", fix=fix)


def _onnxruntime(path: Path, threads: int | None) -> Graph:
    onnxruntime = import_onnxruntime("the person detector")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    with _refused(f"ONNX Runtime {onnxruntime.__version__}", path):
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = tuple(
        GraphInput(
            name=one.name,
            shape=tuple(n if isinstance(n, int) else None for n in one.shape),
            dtype=ONNXRUNTIME_TYPES.get(one.type, np.void),
        )
        for one in session.get_inputs()
    )
    names = tuple(one.name for one in session.get_outputs())

    def fix(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[Mapping[str, NDArray]], dict[str, NDArray]]:
        return lambda feeds: dict(zip(names, session.run(list(names), dict(feeds)), strict=True))

    return Graph(inputs=inputs, outputs=names, backend="onnxruntime", fix=fix)


class _refused:
    """Turns whatever a library raises into one line that names the file."""

    def __init__(self, library: str, path: Path) -> None:
        self._library, self._path = library, path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: Any) -> None:
        if isinstance(error, Exception):  # the libraries' errors share no base class
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise EngineError(
                f"expected a detector that {self._library} reads, got {self._path}: {lines[-1][:200]}"
            ) from error
