"""torch: the network itself, with our Triton kernels and CUDA graphs on a GPU, eager on a CPU. Needs no engine library.

n crops of one call, b of its bucket · H×W network input · D feature dimensions

This file alone of the runtime imports torch, and only when an engine of backend torch is opened.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpm_edge.env import installed
from dpm_edge.errors import CheckpointError, EngineError
from dpm_edge.manifest import Manifest, rebuild_advice
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import AnyNetwork
from dpm_edge.model.serving import for_serving
from dpm_edge.runtime.backends import Enqueue, Fill, crop_kernel_refuses
from dpm_edge.runtime.gpu.arrays import stream_handle
from dpm_edge.runtime.gpu.plan import sizes
from dpm_edge.spec import Preprocessing

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LANES = 2
"""Streams of an engine on a GPU: one call is prepared while another computes."""
COMPILE = "DPM_EDGE_TORCH_COMPILE"
"""Set to 1: torch.compile the network when an engine is opened, which takes minutes."""


def open_engine(manifest: Manifest, folder: Path, device: str, threads: int | None) -> TorchBackend:
    """Load the checkpoint of an engine directory. `threads` is torch's own setting, for the whole process.

    Raises:
        EngineError: the checkpoint is damaged, or there is no such GPU.
    """
    name = "cpu" if device == "CPU" else f"cuda:{device.partition('.')[2] or 0}"
    if name != "cpu" and (not torch.cuda.is_available() or torch.cuda.device_count() <= int(name[5:])):
        raise EngineError(
            f"expected {device}, got {torch.cuda.device_count()} GPUs from torch {torch.__version__}. "
            f"On the CPU: Engine.load({str(folder)!r}, device='CPU')"
        )
    if threads:
        torch.set_num_threads(threads)
    try:
        net = checkpoint.load_any(folder / manifest.engine)
    except CheckpointError as error:
        raise EngineError(f"{error}. {rebuild_advice(folder)}") from error
    return TorchBackend(manifest, net, torch.device(name))


class TorchBackend:
    """One network and, on a GPU, two lanes; any number of threads may call."""

    def __init__(self, manifest: Manifest, net: AnyNetwork, device: torch.device) -> None:
        self._pre: Preprocessing = manifest.spec.preprocessing
        self._device, self.place = device, str(device)
        on_gpu = device.type == "cuda"
        self.lanes = LANES if on_gpu else 1
        self._network: Any = for_serving(net, DTYPES[manifest.precision], device, fused=on_gpu and installed("triton"))
        if os.environ.get(COMPILE) == "1":
            self._network = torch.compile(self._network)
        spans = manifest.profiles or (manifest.batch,)
        ready = sorted({size for span in spans for size in sizes(span)}) if on_gpu else []
        with torch.inference_mode():
            made = [
                TorchLane(self._network, self._pre, DTYPES[manifest.precision], device, ready)
                for _ in range(self.lanes)
            ]
        self._free = deque(made)
        self._changed = threading.Condition()

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
        with self._take(None) as lane:
            lane.fetch(lane.execute(lane.filled(n, fill)), feature, mask)

    def refuses_frames(self, color: str) -> str:
        """Why frames cannot be cut up here; see `GpuBackend`."""
        if not installed("triton"):
            return (
                "expected Triton for the crop kernel, got a Python without it. Install it: pip install 'dpm-edge[gpu]'"
            )
        return crop_kernel_refuses(self._pre, color)

    def run_frame(
        self,
        frame: Any,
        boxes: NDArray[np.float32],
        feature: NDArray[np.float32],
        mask: NDArray[np.float32],
        after: Any,
        logits: NDArray[np.float32] | None = None,
        then: Enqueue | None = None,
    ) -> None:
        """One call on the boxes of one frame; see `GpuBackend`."""
        with self._take(after) as lane:
            outputs = lane.execute(lane.cut(frame, boxes, self._pre))
            if then is not None:
                then(*outputs, lane.stream)
            lane.fetch(outputs, feature, mask)

    def mark(self, stream: Any) -> Any:
        """An event behind what a CUDA stream holds now; see `GpuBackend`."""
        if stream is None:
            return None
        handle = stream_handle(stream)
        if self._device.type != "cuda":
            raise EngineError("expected no stream for an engine on the CPU, got a CUDA stream. Leave stream= out")
        event = torch.cuda.Event()
        event.record(torch.cuda.ExternalStream(handle, device=self._device))
        return event

    def close(self) -> None:
        """Let go of the network, its graphs and its buffers."""
        self._free.clear()
        self._network = None

    @contextmanager
    def _take(self, after: Any) -> Iterator[TorchLane]:
        """A lane of one's own, its stream current and behind `after`. Waits until one is free."""
        with self._changed:
            while not self._free:
                self._changed.wait()
            lane = self._free.popleft()
        try:
            with torch.inference_mode(), lane.current():
                try:
                    lane.wait_for(after)
                    yield lane
                finally:
                    lane.wait()
        finally:
            with self._changed:
                self._free.append(lane)
                self._changed.notify()


class TorchLane:
    """One stream with its input buffers, and a CUDA graph of each bucket; on a CPU the network as it is."""

    def __init__(
        self, network: Any, pre: Preprocessing, dtype: torch.dtype, device: torch.device, ready: list[int]
    ) -> None:
        self._network, self._dtype, self._device = network, dtype, device
        on_gpu = device.type == "cuda"
        most = ready[-1] if ready else 1
        shape = (3, pre.height, pre.width)
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._host = torch.zeros(most, *shape, pin_memory=on_gpu)
        self._frame = torch.empty(0, dtype=torch.uint8)
        self._affine = torch.tensor(pre.affine(), dtype=torch.float32, device=device)
        self._input = torch.zeros(most, *shape, device=device, dtype=dtype)
        self._ready = ready
        self._graphs: dict[int, tuple[Any, Tensor, Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle() if on_gpu else None  # one graph runs at a time: they may share
        for size in ready:
            self._capture(size)

    @property
    def stream(self) -> int:
        """The stream's handle; 0 on a CPU."""
        return 0 if self._stream is None else int(self._stream.cuda_stream)

    def current(self) -> AbstractContextManager[Any]:
        """Makes the lane's stream the one that torch uses."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def wait_for(self, event: Any) -> None:
        """Let what is enqueued from now on wait for an event of another stream."""
        if self._stream is not None and event is not None:
            self._stream.wait_event(event)

    def wait(self) -> None:
        """Wait until everything that was enqueued is done."""
        if self._stream is not None:
            self._stream.synchronize()

    def filled(self, n: int, fill: Fill) -> Tensor:
        """(n, 3, H, W) that `fill` wrote, on the device."""
        if self._stream is None and len(self._host) < n:
            self._host = torch.empty(n, *self._host.shape[1:])
        fill(self._host[:n].numpy())
        return self._host[:n].to(self._device, non_blocking=True).to(self._dtype)  # cast where it is quick

    def cut(self, frame: Any, boxes: NDArray[np.float32], pre: Preprocessing) -> Tensor:
        """The boxes (n, 4) of a frame, numpy (H, W, 3) uint8 or on the GPU, as (n, 3, H, W) on the device."""
        from dpm_edge.kernels.crop_resize_normalize.op import crop_resize_normalize

        there = self._upload_frame(frame) if isinstance(frame, np.ndarray) else self._frame_on_gpu(frame)
        places = torch.from_numpy(boxes).to(self._device, non_blocking=True)
        dtype = torch.float16 if self._dtype == torch.float16 else torch.float32
        return crop_resize_normalize(there, places, self._affine, (pre.height, pre.width), dtype).to(self._dtype)

    def execute(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Feature and mask, (n, D) float32, of (n, 3, H, W); on a GPU they last until the lane's next call."""
        n = len(images)
        if not self._ready:
            return self._network(images)[:2]
        size = next(one for one in self._ready if one >= n)
        graph, feature, mask = self._graphs[size]
        self._input[:n].copy_(images)
        graph.replay()
        return feature[:n], mask[:n]

    def fetch(self, outputs: tuple[Tensor, Tensor], feature: NDArray[np.float32], mask: NDArray[np.float32]) -> None:
        """Copy the results to `feature` and `mask` (n, D); waits for them."""
        for output, to in zip(outputs, (feature, mask)):
            torch.from_numpy(to).copy_(output)

    def _capture(self, size: int) -> None:
        """A CUDA graph of one batch size, after two runs that compile and warm up."""
        assert self._stream is not None
        images = self._input[:size]
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for _ in range(2):
                self._network(images)
            self._stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"):
                feature, mask = self._network(images)[:2]
        self._graphs[size] = (graph, feature, mask)

    def _upload_frame(self, frame: NDArray[np.uint8]) -> Tensor:
        """A numpy frame on the device, through pinned memory that grows with the largest frame so far."""
        if self._stream is None:
            return torch.from_numpy(frame)
        if self._frame.numel() < frame.size:
            self._frame = torch.empty(frame.size, dtype=torch.uint8, pin_memory=True)
        staged = self._frame[: frame.size].view(frame.shape)
        staged.copy_(torch.from_numpy(frame))
        return staged.to(self._device, non_blocking=True)

    def _frame_on_gpu(self, frame: Any) -> Tensor:
        """A frame of another library on the GPU, without a copy; a DLPack producer makes this stream wait for it."""
        there = torch.from_dlpack(frame) if hasattr(frame, "__dlpack__") else torch.as_tensor(frame)
        if there.device != self._device:
            raise EngineError(f"expected a frame on {self._device}, where the engine runs, got one on {there.device}")
        return there
