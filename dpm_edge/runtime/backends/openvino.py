"""OpenVINO: a pool of infer requests over one compiled model, so that threads never share buffers."""

from __future__ import annotations

import contextlib
import ctypes
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import EngineError
from dpm_edge.manifest import Manifest, rebuild_advice
from dpm_edge.runtime.backends import Fill
from dpm_edge.telemetry import import_openvino


def open_engine(manifest: Manifest, folder: Path, device: str, threads: int | None) -> OpenVinoBackend:
    """Compile the model for `device` ("CPU", "GPU", …) with the latency hint and at most `threads` cores."""
    openvino = import_openvino(f"the engine in {folder}")
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        settings["INFERENCE_PRECISION_HINT"] = "bf16" if manifest.precision == "bf16" else "f32"
        settings["ENABLE_CPU_PINNING"] = False  # pinned, all processes with one thread would share the first core
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(folder / manifest.engine, device, settings)
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO {openvino.__version__} refuses {folder / manifest.engine} on {device}: "
            f"{str(error).strip().splitlines()[-1]}. {rebuild_advice(folder)}"
        ) from error
    return OpenVinoBackend(compiled, openvino.Tensor, manifest)


def release_memory(compiled: Any) -> None:
    """Free the memory of a compiled model's intermediate results, and give it back to the system.

    Called before a batch larger than all before it. OpenVINO grows each of its buffers by freeing it and taking a
    larger one; glibc keeps the freed blocks, and none of them fits the next larger size, so that rising sizes would
    leave gigabytes behind.
    """
    with contextlib.suppress(RuntimeError):  # another thread is computing with it: left for the next larger batch
        compiled.release_memory()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: other C libraries give memory back themselves
    if trim is not None:
        trim(0)


@dataclass
class _Request:
    """An infer request with the input buffer that it reads."""

    infer: Any
    buffer: NDArray[np.float32]


class OpenVinoBackend:
    """One compiled model; each concurrent call takes a request and its input buffer from the pool, or adds one."""

    def __init__(self, compiled: Any, tensor: Any, manifest: Manifest) -> None:
        pre = manifest.spec.preprocessing
        self._compiled, self._tensor = compiled, tensor
        self._outputs = {name: compiled.output(name) for name in manifest.outputs}
        self._row = (3, pre.height, pre.width)
        self._free: deque[_Request] = deque()
        self._largest = 0

    def run(
        self,
        n: int,
        fill: Fill,
        feature: NDArray[np.float32],
        mask: NDArray[np.float32],
        logits: NDArray[np.float32] | None = None,
        visibility: NDArray[np.float32] | None = None,
    ) -> None:
        """One call on n crops; see `Backend`."""
        try:
            request = self._free.pop()
        except IndexError:
            request = _Request(self._compiled.create_infer_request(), np.empty((0, *self._row), np.float32))
        if len(request.buffer) < n:
            request.buffer = np.empty((n, *self._row), np.float32)
        if n > self._largest:
            self._largest = n
            release_memory(self._compiled)
        try:
            batch = request.buffer[:n]
            fill(batch)
            request.infer.infer({0: self._tensor(batch, shared_memory=True)}, share_outputs=True)
            wanted = {"feature": feature, "mask": mask, "visibility": visibility, "logits": logits}
            for name, output in self._outputs.items():
                out = wanted[name]
                if out is not None:
                    np.copyto(out, request.infer.get_tensor(output).data)
        finally:
            self._free.append(request)

    def close(self) -> None:
        """Let go of the compiled model and of every request."""
        self._free.clear()
        self._outputs = {}
        self._compiled = None
