"""OpenVINO: a pool of infer requests over a compiled model, so that threads never share buffers."""

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
from dpm_edge.runtime.backends.openvino_single import MOST_BYTES, SingleCrop
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
    core = openvino.Core()
    try:
        model = core.read_model(folder / manifest.engine)
        compiled = core.compile_model(model, device, settings)
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO {openvino.__version__} refuses {folder / manifest.engine} on {device}: "
            f"{str(error).strip().splitlines()[-1]}. {rebuild_advice(folder)}"
        ) from error
    single = None
    if device == "CPU" and sum(file.stat().st_size for file in folder.glob("engine.*")) <= MOST_BYTES:
        pre = manifest.spec.preprocessing

        def compile_single() -> Any:
            of_one = model.clone()
            of_one.reshape([1, 3, pre.height, pre.width])
            return core.compile_model(of_one, device, settings)

        single = SingleCrop(compile_single)
    return OpenVinoBackend(compiled, openvino.Tensor, manifest, single)


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
    """A compiled model; each concurrent call takes a request and its input buffer from a pool, or adds one.

    single: a model for calls of one crop, with a pool of its own.
    """

    def __init__(self, compiled: Any, tensor: Any, manifest: Manifest, single: SingleCrop | None = None) -> None:
        pre = manifest.spec.preprocessing
        self._compiled, self._tensor, self._single = compiled, tensor, single
        self._outputs = manifest.outputs
        self._row = (3, pre.height, pre.width)
        self._free: deque[_Request] = deque()
        self._free_single: deque[_Request] = deque()
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
        single = self._single.model() if n == 1 and self._single is not None else None
        pool = self._free if single is None else self._free_single
        try:
            request = pool.pop()
        except IndexError:
            compiled = self._compiled if single is None else single
            request = _Request(compiled.create_infer_request(), np.empty((0, *self._row), np.float32))
        if len(request.buffer) < n:
            request.buffer = np.empty((n, *self._row), np.float32)
        if single is None and n > self._largest:
            self._largest = n
            release_memory(self._compiled)
        try:
            batch = request.buffer[:n]
            fill(batch)
            request.infer.infer({0: self._tensor(batch, shared_memory=True)}, share_outputs=True)
            wanted = {"feature": feature, "mask": mask, "visibility": visibility, "logits": logits}
            for name in self._outputs:
                out = wanted[name]
                if out is not None:
                    np.copyto(out, request.infer.get_tensor(name).data)
        finally:
            pool.append(request)

    def close(self) -> None:
        """Let go of the compiled model and of every request."""
        if self._single is not None:
            self._single.close()
        self._free.clear()
        self._free_single.clear()
        self._compiled = None
