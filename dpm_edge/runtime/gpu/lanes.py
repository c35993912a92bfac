"""Lanes: streams with all that a call needs, made once. A call takes a free one and waits only for its results.

n crops of a call, b of its bucket (n ≤ b) · H×W network input · D feature dimensions · k results

    upload (crops, or a frame and its boxes → crop kernel) → CUDA graph of the engine → what else is asked → download
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import EngineError
from dpm_edge.runtime.backends import Enqueue
from dpm_edge.runtime.gpu.arrays import DeviceArray, DeviceFrame, device_frame, stream_handle
from dpm_edge.runtime.gpu.device import NO_TIMING, NON_BLOCKING, Device, Memory, Staged
from dpm_edge.runtime.gpu.kernels import CompiledKernels
from dpm_edge.runtime.gpu.plan import INPUT, Bucket, LoadedPlan
from dpm_edge.spec import Preprocessing

if TYPE_CHECKING:
    import tensorrt


class Lane:
    """One stream, its buffers, and per bucket an execution context and a CUDA graph. Call inside `with device:`."""

    def __init__(
        self, device: Device, plan: LoadedPlan, kernels: CompiledKernels | None, ready: tuple[Bucket, ...]
    ) -> None:
        """Allocate everything, and capture a graph of every bucket.

        Raises:
            EngineError: the GPU's memory does not suffice, or TensorRT refuses.
        """
        self._device, self._plan, self._kernels = device, plan, kernels
        self._buckets = ready
        most = ready[-1].size
        self._stream: Any = None
        self._frame_made: Any = None
        self._memory, self._grown = Memory(device), Memory(device)
        self._frame: Staged | None = None
        self._graphs: dict[int, Any] = {}
        self._contexts: dict[int, tensorrt.IExecutionContext] = {}
        try:
            self._stream = device.call("cuStreamCreate", NON_BLOCKING)
            self._frame_made = device.call("cuEventCreate", NO_TIMING)
            stage = self._memory.stage
            self._input = stage((most, *plan.row_shape), np.float32)
            self._out = {name: stage((most, width), np.float32) for name, width in plan.outputs.items()}
            self._boxes, self._affine = stage((most, 4), np.float32), stage((2, 3), np.float32)
            self._input.host[:] = 0
            self._input.upload(self._input.host.nbytes, self._stream)
            scratch = self._memory.reserve(plan.scratch_bytes)
            for bucket in ready:
                self._prepare(bucket, scratch)
            self.wait()
            if plain := [size for size, graph in self._graphs.items() if graph is None]:
                warnings.warn(f"batches {plain} of this plan cannot be CUDA graphs: they run, slower", stacklevel=2)
        except BaseException:
            self.close()
            raise

    @property
    def stream(self) -> int:
        """The stream's handle."""
        return int(self._stream)

    def bucket(self, n: int) -> Bucket:
        """The smallest bucket that holds n crops."""
        return next(one for one in self._buckets if one.size >= n)

    def fill(self, n: int, fill: Any) -> None:
        """Let `fill` write (n, 3, H, W) float32, and upload it."""
        fill(self._input.host[:n])
        self._input.upload(self._input.host[:n].nbytes, self._stream)

    def cut(self, frame: Any, boxes: NDArray[np.float32], pre: Preprocessing) -> None:
        """Cut the boxes (n, 4) out of a frame, numpy (H, W, 3) uint8 or on the GPU, into the network's input.

        Raises:
            ImageError: a frame on the GPU that cannot be read.
        """
        assert self._kernels is not None, "the backend asks before it cuts"
        n, whole = len(boxes), self.bucket(len(boxes)).size
        self._boxes.host[:n], self._boxes.host[n:whole] = boxes, 0  # a box of zeros is none, and gives zeros
        self._boxes.upload(self._boxes.host[:whole].nbytes, self._stream)
        self._affine.host[:] = pre.affine()
        self._affine.upload(self._affine.host.nbytes, self._stream)
        on_gpu = self._upload_frame(frame) if isinstance(frame, np.ndarray) else self._frame_on_gpu(frame)
        size = (pre.height, pre.width)
        self._kernels.crop(
            on_gpu, self._boxes.address, whole, self._affine.address, size, self._input.address, self.stream
        )

    def execute(self, n: int) -> None:
        """Enqueue the engine on the first n crops."""
        bucket = self.bucket(n)
        graph = self._graphs[bucket.size]
        if graph is not None:
            self._device.call("cuGraphLaunch", graph, self._stream)
        elif not self._contexts[bucket.size].execute_async_v3(self.stream):
            raise EngineError(f"expected TensorRT to run batch {bucket.size}, got a refusal: {self._plan.reasons()}")

    def enqueue(self, n: int, then: Enqueue) -> None:
        """Let `then` enqueue what follows the engine on the first n crops."""
        feature, mask = (
            DeviceArray(self._out[name].address, (n, self._out[name].host.shape[1])) for name in ("feature", "mask")
        )
        then(feature, mask, self.stream)

    def fetch(
        self,
        n: int,
        feature: NDArray[np.float32],
        mask: NDArray[np.float32],
        logits: NDArray[np.float32] | None,
    ) -> None:
        """Copy the results of the first n crops to `feature`, `mask` (n, D) and `logits` (n, C); waits for them."""
        wanted = {"feature": feature, "mask": mask, **({} if logits is None else {"logits": logits})}
        for name in wanted:
            self._out[name].download(self._out[name].host[:n].nbytes, self._stream)
        self.wait()
        for name, out in wanted.items():
            out[:] = self._out[name].host[:n]

    def wait_for(self, event: Any) -> None:
        """Let what is enqueued from now on wait for an event of another stream."""
        self._device.call("cuStreamWaitEvent", self._stream, event, 0)

    def wait(self) -> None:
        """Wait until everything that was enqueued is done."""
        self._device.call("cuStreamSynchronize", self._stream)

    def close(self) -> None:
        """Give everything back; nothing is under way on the stream."""
        for graph in self._graphs.values():
            if graph is not None:
                self._device.call("cuGraphExecDestroy", graph)
        self._graphs.clear()
        self._contexts.clear()
        for memory in (self._memory, self._grown):
            memory.close()
        if self._frame_made is not None:
            self._device.call("cuEventDestroy", self._frame_made)
        if self._stream is not None:
            self._device.call("cuStreamDestroy", self._stream)

    def _prepare(self, bucket: Bucket, scratch: int) -> None:
        """A context and a graph of one bucket. TensorRT wants one run before the capture."""
        addresses = {INPUT: self._input.address, **{name: out.address for name, out in self._out.items()}}
        context: tensorrt.IExecutionContext = self._plan.context(bucket, addresses, scratch, self.stream)
        self._contexts[bucket.size] = context
        self._graphs[bucket.size] = None
        self.execute(bucket.size)
        self.wait()
        call, mode = self._device.call, self._device.cuda.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        call("cuStreamBeginCapture", self._stream, mode)
        captured = context.execute_async_v3(self.stream)
        status, graph = self._device.cuda.cuStreamEndCapture(self._stream)
        try:
            if captured and int(status) == 0:
                self._graphs[bucket.size] = call("cuGraphInstantiate", graph, 0)
        finally:
            if graph is not None and int(graph):
                call("cuGraphDestroy", graph)

    def _upload_frame(self, frame: NDArray[np.uint8]) -> DeviceFrame:
        """Upload a numpy frame; the buffer grows with the largest frame so far."""
        if self._frame is None or self._frame.host.size < frame.size:
            self._grown.close()
            self._frame = self._grown.stage((frame.size,), np.uint8)
        np.copyto(self._frame.host[: frame.size].reshape(frame.shape), frame)
        self._frame.upload(frame.size, self._stream)
        return DeviceFrame(self._frame.address, frame.shape[0], frame.shape[1], frame.shape[1] * 3, frame)

    def _frame_on_gpu(self, frame: Any) -> DeviceFrame:
        """A frame on the GPU, after the stream that it names."""
        found = device_frame(frame, self._device, self.stream)
        if found.stream is not None:
            self._device.call("cuEventRecord", self._frame_made, found.stream)
            self.wait_for(self._frame_made)
        return found


class StreamMark:
    """An event behind the work that a stream held when it was made. Its event is used again when it is gone."""

    def __init__(self, event: Any, free: deque[Any]) -> None:
        self.event = event
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.event)


class Lanes:
    """Lanes on one device, shared by any number of threads."""

    def __init__(self, device: Device, lanes: list[Lane]) -> None:
        self._device, self._all = device, lanes
        self._free = deque(lanes)
        self._changed = threading.Condition()
        self._events: deque[Any] = deque()
        self._made: list[Any] = []

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def take(self, after: StreamMark | None) -> Iterator[Lane]:
        """A lane of one's own, the device current, its stream behind `after`. Waits until one is free."""
        with self._changed:
            while not self._free:
                self._changed.wait()
            lane = self._free.popleft()
        try:
            with self._device:
                try:
                    if after is not None:
                        lane.wait_for(after.event)
                    yield lane
                except BaseException:
                    with contextlib.suppress(EngineError):
                        lane.wait()  # what was enqueued must not meet the next call's buffers
                    raise
        finally:
            with self._changed:
                self._free.append(lane)
                self._changed.notify()

    def mark(self, stream: Any) -> StreamMark:
        """Remember the work that a stream of the application holds now.

        Raises:
            EngineError: it is no CUDA stream, or not of this GPU.
        """
        handle = stream_handle(stream)
        with self._device:
            try:
                event = self._events.popleft()
            except IndexError:
                event = self._device.call("cuEventCreate", NO_TIMING)
                self._made.append(event)
            mark = StreamMark(event, self._events)
            self._device.call("cuEventRecord", event, handle)
        return mark

    def close(self) -> None:
        """Give back every lane and event. No call is under way."""
        with self._device:
            for lane in self._all:
                lane.close()
            for event in self._made:
                self._device.call("cuEventDestroy", event)
        self._all, self._made = [], []
