"""ONNX Runtime on the CPU: one session, which any number of threads may run."""

from __future__ import annotations

from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import EngineError
from dpm_edge.manifest import Manifest, rebuild_advice
from dpm_edge.runtime.backends import Fill
from dpm_edge.telemetry import import_onnxruntime


def open_engine(manifest: Manifest, folder: Path, device: str, threads: int | None) -> OnnxRuntimeBackend:
    """Open the session on the CPU with at most `threads` cores per call."""
    onnxruntime = import_onnxruntime(f"the engine in {folder}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(folder / manifest.engine, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise EngineError(
            f"ONNX Runtime {onnxruntime.__version__} refuses {folder / manifest.engine}: "
            f"{str(error).strip().splitlines()[-1]}. {rebuild_advice(folder)}"
        ) from error
    return OnnxRuntimeBackend(session, manifest)


class OnnxRuntimeBackend:
    """One session; each concurrent call takes an input buffer from the pool, or adds one."""

    def __init__(self, session: Any, manifest: Manifest) -> None:
        pre = manifest.spec.preprocessing
        self._session = session
        self._input = session.get_inputs()[0].name
        self._row = (3, pre.height, pre.width)
        self._free: deque[NDArray[np.float32]] = deque()

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
            buffer = self._free.pop()
        except IndexError:
            buffer = np.empty((0, *self._row), np.float32)
        if len(buffer) < n:
            buffer = np.empty((n, *self._row), np.float32)
        try:
            batch = buffer[:n]
            fill(batch)
            asked = {"feature": feature, "mask": mask, "visibility": visibility, "logits": logits}
            wanted = {name: out for name, out in asked.items() if out is not None}
            for out, got in zip(wanted.values(), self._session.run(list(wanted), {self._input: batch})):
                out[:] = got
        finally:
            self._free.append(buffer)

    def close(self) -> None:
        """Let go of the session and of every buffer."""
        self._free.clear()
        self._session = None
