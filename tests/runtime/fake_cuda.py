"""A CUDA driver that executes on host memory: what the runtime enqueues really happens, when it is waited for.

It stands in for `cuda.bindings.driver`, with its enumerations. Memory is poisoned (NaN) when it is allocated, when it
is freed, and where a copy to the host is under way. What a real driver would punish with a crash or wrong numbers, such
as use after free, copies past an end, calls without a context or while capturing, is an entry in `violations`.
"""

from __future__ import annotations

import ctypes
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy_kernels
from cuda.bindings import driver as real
from fake_handles import OTHER, PRIMARY, Block, Function, Stream
from numpy.typing import NDArray

INVALID, NO_CONTEXT, CAPTURING = 1, 201, 900
ALIGNMENT = 256


class FakeCuda:
    """The driver of a machine with one GPU."""

    CUdevice_attribute = real.CUdevice_attribute
    CUpointer_attribute = real.CUpointer_attribute
    CUfunction_attribute = real.CUfunction_attribute
    CUstreamCaptureMode = real.CUstreamCaptureMode
    CUmemorytype = real.CUmemorytype
    CUDA_MEMCPY2D = real.CUDA_MEMCPY2D

    def __init__(self, kernels: Path | None = None, integrated: bool = False) -> None:
        self.name, self.capability, self.version = b"Orin", (8, 7), 12060
        self.kernels, self.integrated = kernels, integrated
        self.violations: list[str] = []
        self.calls: list[str] = []
        self.fails: str | None = None
        """Name of a call that fails the next time."""
        self.retained = 0
        self.blocks: dict[int, Block] = {}
        self.streams: dict[int, Stream] = {0: Stream(0)}
        self.events: dict[int, tuple[Stream, int]] = {}
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.modules: dict[int, Path] = {}
        self._contexts = threading.local()
        self._next = 100
        self._lock = threading.RLock()

    def __getattribute__(self, name: str) -> Any:
        """Every call of the driver is counted, serialised, and may be made to fail."""
        found = object.__getattribute__(self, name)
        if not name.startswith("cu"):
            return found

        def call(*arguments: Any) -> tuple[Any, ...]:
            with self._lock:
                self.calls.append(name)
                if self.fails == name:
                    self.fails = None
                    return (700,)
                answer = found(*arguments)
                return answer if isinstance(answer, tuple) else (answer,)

        return call

    # what tests ask

    @property
    def stack(self) -> list[int]:
        """This thread's contexts, the current one last."""
        if not hasattr(self._contexts, "stack"):
            self._contexts.stack = []
        return self._contexts.stack

    def alive(self) -> dict[str, int]:
        """What was made and not given back."""
        held = [block for block in self.blocks.values() if not block.freed]
        return {
            "memory": len(held), "streams": len(self.streams) - 1, "events": len(self.events),
            "graphs": len(self.graphs), "modules": len(self.modules), "contexts": self.retained,
        }  # fmt: skip

    def count(self, *names: str) -> int:
        """Calls of these names so far."""
        return sum(self.calls.count(name) for name in names)

    def put(self, array: NDArray[Any], context: int = PRIMARY) -> int:
        """Memory of the application's own on the GPU, holding `array`: its address."""
        address = self._allocate(array.nbytes, "device", context)
        self.view(address, array.shape, array.dtype)[:] = array
        return address

    def view(self, address: int, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Memory of the GPU as an array: what a kernel sees. Touching anything else is a violation."""
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        for start, block in self.blocks.items():
            if start <= address and address + size <= start + len(block.array):
                if block.freed:
                    self._violate(f"{size} bytes at {address:#x} are used after they were freed")
                at = address - start
                return block.array[at : at + size].view(dtype).reshape(shape)
        self._violate(f"{size} bytes at {address:#x} lie in no allocation")
        return np.empty(shape, dtype)

    def enqueue(self, handle: Any, operation: Callable[[], None]) -> int:
        """Append to a stream, or to the graph that it is capturing."""
        stream = self.streams.get(int(handle))
        if stream is None:
            self._violate(f"stream {int(handle)} does not exist")
            return INVALID
        if stream.captured is not None:
            stream.captured.append(operation)
        else:
            stream.queue.append(operation)
            stream.issued += 1
        return 0

    def run(self, stream: Stream, until: int) -> None:
        """Let a stream work until so many operations are done."""
        while stream.done < until:
            operation = stream.queue.popleft()
            operation()
            stream.done += 1

    # device and context

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDeviceGetCount(self) -> tuple[int, int]:
        return 0, 1

    def cuDeviceGet(self, index: int) -> tuple[int, int]:
        return 0, index

    def cuDeviceGetName(self, length: int, device: int) -> tuple[int, bytes]:
        return 0, self.name.ljust(length, b"\0")

    def cuDriverGetVersion(self) -> tuple[int, int]:
        return 0, self.version

    def cuDeviceGetAttribute(self, attribute: Any, device: int) -> tuple[int, int]:
        told = {"MAJOR": self.capability[0], "MINOR": self.capability[1], "INTEGRATED": int(self.integrated)}
        return 0, told[attribute.name.rpartition("_")[2]]

    def cuDevicePrimaryCtxRetain(self, device: int) -> tuple[int, int]:
        self.retained += 1
        return 0, PRIMARY

    def cuDevicePrimaryCtxRelease(self, device: int) -> int:
        self.retained -= 1
        if self.retained < 0:
            self._violate("the primary context was released more often than retained")
        return 0

    def cuDevicePrimaryCtxReset(self, device: int) -> int:
        self._violate("the primary context was reset")
        return 0

    def cuCtxCreate(self, *arguments: Any) -> tuple[int, int]:
        self._violate("a second context was made")
        return 0, OTHER

    def cuCtxPushCurrent(self, context: int) -> int:
        self.stack.append(int(context))
        return 0

    def cuCtxPopCurrent(self) -> tuple[int, int]:
        return 0, self.stack.pop()

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"an illegal memory access was encountered" if status == 700 else b"invalid argument"

    # memory

    def cuMemAlloc(self, size: int) -> tuple[int, ...]:
        return self._refused() or (0, self._allocate(size, "device"))

    def cuMemFree(self, memory: Any) -> tuple[int, ...]:
        return self._refused() or self._free(int(memory), "device")

    def cuMemHostAlloc(self, size: int, flags: int) -> tuple[int, ...]:
        return self._refused() or (0, self._allocate(size, "pinned"))

    def cuMemFreeHost(self, pointer: int) -> tuple[int, ...]:
        return self._refused() or self._free(int(pointer), "pinned")

    def cuMemHostGetDevicePointer(self, pointer: int, flags: int) -> tuple[int, int]:
        if not self.integrated:
            self._violate("pinned memory was used as the GPU's own, over the bus")
        return 0, int(pointer)

    def cuPointerGetAttribute(self, attribute: Any, address: int) -> tuple[int, ...]:
        for start, block in self.blocks.items():
            if start <= address < start + len(block.array) and not block.freed:
                return 0, block.context if attribute.name.endswith("CONTEXT") else 0
        return INVALID, None

    def cuMemcpyHtoD(self, to: int, source: int, size: int) -> tuple[int, ...]:
        refused = self._refused()
        if not refused:
            self.view(int(to), (size,), np.uint8)[:] = np.frombuffer(
                (ctypes.c_uint8 * size).from_address(source), np.uint8
            )
        return refused or (0,)

    def cuMemsetD8(self, to: int, byte: int, size: int) -> tuple[int, ...]:
        refused = self._refused()
        if not refused:
            self.view(int(to), (size,), np.uint8)[:] = byte
        return refused or (0,)

    def cuMemcpyHtoDAsync(self, to: int, source: int, size: int, stream: Any) -> int:
        self._context()
        return self.enqueue(stream, lambda: self._copy(int(to), "device", int(source), "pinned", size))

    def cuMemcpyDtoHAsync(self, to: int, source: int, size: int, stream: Any) -> int:
        self._context()
        self.view(int(to), (size,), np.uint8)[:] = 255  # nobody may read it before the stream was waited for
        return self.enqueue(stream, lambda: self._copy(int(to), "pinned", int(source), "device", size))

    def cuMemcpy2DAsync(self, copy: Any, stream: Any) -> int:
        self._context()
        to, source = int(copy.dstDevice), int(copy.srcDevice)
        pitches, width, height = (copy.dstPitch, copy.srcPitch), copy.WidthInBytes, copy.Height

        def rows() -> None:
            for row in range(height):
                self._copy(to + row * pitches[0], "device", source + row * pitches[1], "device", width)

        return self.enqueue(stream, rows)

    def cuMemsetD8Async(self, to: int, byte: int, size: int, stream: Any) -> int:
        self._context()

        def fill() -> None:
            self.view(int(to), (size,), np.uint8)[:] = byte

        return self.enqueue(stream, fill)

    # streams, events, graphs

    def cuStreamCreate(self, flags: int) -> tuple[int, int]:
        self._context()
        handle = self._name()
        self.streams[handle] = Stream(handle)
        return 0, handle

    def cuStreamDestroy(self, stream: Any) -> int:
        if self.streams.pop(int(stream)).queue:
            self._violate("a stream was destroyed with work on it")
        return 0

    def cuStreamSynchronize(self, stream: Any) -> tuple[int, ...]:
        refused = self._refused()
        if not refused:
            one = self.streams[int(stream)]
            self.run(one, one.issued)
        return refused or (0,)

    def cuEventCreate(self, flags: int) -> tuple[int, int]:
        self._context()
        handle = self._name()
        self.events[handle] = (self.streams[0], 0)
        return 0, handle

    def cuEventDestroy(self, event: Any) -> int:
        del self.events[int(event)]
        return 0

    def cuEventRecord(self, event: Any, stream: Any) -> int:
        self._context()
        if int(stream) not in self.streams:
            return INVALID
        one = self.streams[int(stream)]
        self.events[int(event)] = (one, one.issued)
        return 0

    def cuStreamWaitEvent(self, stream: Any, event: Any, flags: int) -> int:
        self._context()
        other, until = self.events[int(event)]
        return self.enqueue(stream, lambda: self.run(other, until))

    def cuStreamBeginCapture(self, stream: Any, mode: Any) -> int:
        self.streams[int(stream)].captured = []
        return 0

    def cuStreamEndCapture(self, stream: Any) -> tuple[int, int]:
        one = self.streams[int(stream)]
        handle = self._name()
        self.graphs[handle], one.captured = one.captured or [], None
        return 0, handle

    def cuGraphInstantiate(self, graph: Any, flags: int) -> tuple[int, int]:
        handle = self._name()
        self.graphs[handle] = self.graphs[int(graph)]
        return 0, handle

    def cuGraphDestroy(self, graph: Any) -> int:
        del self.graphs[int(graph)]
        return 0

    def cuGraphExecDestroy(self, graph: Any) -> int:
        del self.graphs[int(graph)]
        return 0

    def cuGraphLaunch(self, graph: Any, stream: Any) -> int:
        self._context()
        operations = list(self.graphs[int(graph)])

        def replay() -> None:
            for operation in operations:
                operation()

        return self.enqueue(stream, replay)

    # kernels

    def cuModuleLoadData(self, image: bytes) -> tuple[int, ...]:
        assert self.kernels is not None
        handle = self._name()
        self.modules[handle] = next(p for p in self.kernels.glob("*.cubin") if p.read_bytes() == image)
        return self._refused() or (0, handle)

    def cuModuleUnload(self, module: int) -> int:
        del self.modules[module]
        return 0

    def cuModuleGetFunction(self, module: int, entry: bytes) -> tuple[int, Function]:
        return 0, Function(json.loads(self.modules[module].with_suffix(".json").read_text()))

    def cuFuncSetAttribute(self, function: Function, attribute: Any, value: int) -> int:
        return 0

    def cuLaunchKernel(self, function: Function, *numbers: Any) -> int:
        self._context()
        grid, stream, parameters = numbers[:3], numbers[7], numbers[8]
        values = numpy_kernels.unpack(function.description, parameters)
        return self.enqueue(stream, lambda: numpy_kernels.run(self, function.description, values, grid))

    # inside

    def _violate(self, what: str) -> None:
        self.violations.append(what)

    def _name(self) -> int:
        self._next += 1
        return self._next

    def _context(self) -> None:
        if not self.stack or self.stack[-1] != PRIMARY:
            self._violate(f"{self.calls[-1]} was called while the primary context was not current: {self.stack}")

    def _refused(self) -> tuple[int, ...]:
        """What waits or allocates needs the context, and breaks a capture."""
        self._context()
        if any(stream.captured is not None for stream in self.streams.values()):
            self._violate(f"{self.calls[-1]} was called during a capture")
            return (CAPTURING,)
        return ()

    def _allocate(self, size: int, kind: str, context: int = PRIMARY) -> int:
        array = np.full(size + ALIGNMENT, 255, np.uint8)
        array = array[-array.ctypes.data % ALIGNMENT :][:size]
        self.blocks[array.ctypes.data] = Block(array, kind, context)
        return array.ctypes.data

    def _free(self, address: int, kind: str) -> tuple[int, ...]:
        block = self.blocks.get(address)
        if block is None or block.freed or block.kind != kind:
            self._violate(f"{address:#x} was freed, which is no live {kind} memory")
            return (INVALID,)
        if any(stream.queue for stream in self.streams.values()):
            for stream in self.streams.values():  # as cuMemFree does, wait for everything
                self.run(stream, stream.issued)
        block.freed = True
        block.array[:] = 255
        return (0,)

    def _copy(self, to: int, to_kind: str, source: int, source_kind: str, size: int) -> None:
        for address, kind in ((to, to_kind), (source, source_kind)):
            block = next((b for a, b in self.blocks.items() if a <= address < a + len(b.array)), None)
            if block is not None and block.kind != kind and not self.integrated:
                self._violate(f"a copy took {block.kind} memory for {kind} memory")
        self.view(to, (size,), np.uint8)[:] = self.view(source, (size,), np.uint8)
