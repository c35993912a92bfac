"""OpenVINO: a pool of infer requests over one compiled model, so that threads never share buffers."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import EngineError, MissingLibrary
from dpm_edge.manifest import Manifest, rebuild_advice
from dpm_edge.runtime.backends import Fill


def open_engine(manifest: Manifest, folder: Path, device: str, threads: int | None) -> OpenVinoBackend:
    """Compile the model for `device` ("CPU", "GPU", …) with the latency hint and at most `threads` cores."""
    try:
        import openvino
    except ImportError as error:
        raise MissingLibrary("openvino", "this engine", "pip install 'dpm-edge[cpu]'") from error
    settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
    if device == "CPU":
        settings["INFERENCE_PRECISION_HINT"] = "bf16" if manifest.precision == "bf16" else "f32"
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
    try:
        compiled = openvino.Core().compile_model(folder / manifest.engine, device, settings)
    except RuntimeError as error:
        raise EngineError(
            f"OpenVINO {openvino.__version__} refuses {folder / manifest.engine} on {device}: "
            f"{str(error).strip().splitlines()[-1]}. {rebuild_advice(folder)}"
        ) from error
    return OpenVinoBackend(compiled, manifest)


class OpenVinoBackend:
    """One compiled model; each concurrent call takes a request and its input buffer from the pool, or adds one."""

    def __init__(self, compiled: Any, manifest: Manifest) -> None:
        pre = manifest.spec.preprocessing
        self._compiled = compiled
        self._outputs = {name: compiled.output(name) for name in manifest.outputs}
        self._row = (3, pre.height, pre.width)
        self._free: deque[tuple[Any, NDArray[np.float32]]] = deque()

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
        import openvino

        try:
            request, buffer = self._free.pop()
        except IndexError:
            request, buffer = self._compiled.create_infer_request(), np.empty((0, *self._row), np.float32)
        if len(buffer) < n:
            buffer = np.empty((n, *self._row), np.float32)
        try:
            batch = buffer[:n]
            fill(batch)
            request.infer({0: openvino.Tensor(batch, shared_memory=True)}, share_outputs=True)
            wanted = {"feature": feature, "mask": mask, "visibility": visibility, "logits": logits}
            for name, output in self._outputs.items():
                out = wanted[name]
                if out is not None:
                    np.copyto(out, request.get_tensor(output).data)
        finally:
            self._free.append((request, buffer))

    def close(self) -> None:
        """Let go of the compiled model and of every request."""
        self._free.clear()
        self._outputs = {}
        self._compiled = None
