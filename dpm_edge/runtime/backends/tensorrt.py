"""TensorRT, and TensorRT for RTX: plans on a GPU, through cuda-bindings; not yet run on a GPU.

n crops of one call · H×W network input · D feature dimensions
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import MissingLibrary
from dpm_edge.manifest import Manifest
from dpm_edge.runtime.backends import Enqueue, Fill, crop_kernel_refuses
from dpm_edge.runtime.gpu import compatibility
from dpm_edge.runtime.gpu.device import Device
from dpm_edge.runtime.gpu.kernels import CompiledKernels, kernels_folder
from dpm_edge.runtime.gpu.lanes import Lane, Lanes, StreamMark
from dpm_edge.runtime.gpu.library import load_library
from dpm_edge.runtime.gpu.plan import LoadedPlan, buckets
from dpm_edge.spec import Preprocessing

LANES = 2
"""Streams of an engine: one call is prepared while another computes."""


def open_engine(manifest: Manifest, folder: Path, device: str, threads: int | None) -> TensorRtBackend:
    """Compare the plan with this machine, deserialise it, and make its lanes. `threads` has no meaning on a GPU.

    Raises:
        MissingLibrary: TensorRT, cuda-bindings or the plan's plugin is not here.
        EngineError: the plan is for another machine, or TensorRT refuses it.
    """
    trt = load_library(manifest.backend)
    _, _, number = device.partition(".") if device.startswith("GPU.") else ("", "", "0")
    gpu = Device(int(number))
    try:
        plugin = compatibility.check(manifest, folder, gpu, trt.__version__)
        with gpu:
            plan = LoadedPlan(trt, manifest, folder, plugin)
        kernels, refusal = _kernels(gpu)
        return TensorRtBackend(manifest, gpu, plan, kernels, refusal)
    except BaseException:
        gpu.close()
        raise


def _kernels(gpu: Device) -> tuple[CompiledKernels | None, str]:
    """Our kernels, or why there are none: crops are then cut on the CPU, and a gallery is not searched on the GPU."""
    try:
        return CompiledKernels(kernels_folder(gpu.compute_capability), gpu), ""
    except MissingLibrary as error:
        return None, str(error)


class TensorRtBackend:
    """One plan, two lanes; any number of threads may call."""

    lanes = LANES

    def __init__(
        self, manifest: Manifest, device: Device, plan: LoadedPlan, kernels: CompiledKernels | None, refusal: str
    ) -> None:
        self._pre: Preprocessing = manifest.spec.preprocessing
        self._device, self._plan = device, plan
        self.place = f"cuda:{device.index}"
        self._kernels, self._refusal = kernels, refusal
        ready = buckets(manifest)
        made: list[Lane] = []
        try:
            with device:
                for _ in range(LANES):
                    made.append(Lane(device, plan, kernels, ready))
        except BaseException:
            with device:
                for lane in made:
                    lane.close()
            self._let_go()
            raise
        self._lanes = Lanes(device, made)

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
        with self._lanes.take(None) as lane:
            lane.fill(n, fill)
            lane.execute(n)
            lane.fetch(n, feature, mask, logits)

    def refuses_frames(self, color: str) -> str:
        """Why frames cannot be cut up on the GPU; see `GpuBackend`."""
        if self._kernels is None:
            return self._refusal
        return crop_kernel_refuses(self._pre, color)

    def run_frame(
        self,
        frame: Any,
        boxes: NDArray[np.float32],
        feature: NDArray[np.float32],
        mask: NDArray[np.float32],
        after: StreamMark | None,
        logits: NDArray[np.float32] | None = None,
        then: Enqueue | None = None,
    ) -> None:
        """One call on the boxes of one frame; see `GpuBackend`."""
        with self._lanes.take(after) as lane:
            lane.cut(frame, boxes, self._pre)
            lane.execute(len(boxes))
            if then is not None:
                lane.enqueue(len(boxes), then)
            lane.fetch(len(boxes), feature, mask, logits)

    def mark(self, stream: Any) -> StreamMark | None:
        """What a stream holds now; see `GpuBackend`."""
        return None if stream is None else self._lanes.mark(stream)

    def close(self) -> None:
        """Give everything back; the application's own CUDA context stays as it is."""
        self._lanes.close()
        self._let_go()

    def _let_go(self) -> None:
        if self._kernels is not None:
            self._kernels.close()
            self._kernels = None
        self._plan.close()
        self._device.close()
