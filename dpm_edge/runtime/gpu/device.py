"""One GPU and its memory, through the CUDA driver API.

The device's primary context is retained, the one that the CUDA runtime, torch and CuPy use too, and is current only
inside `with device:`. It is never reset, and no other context is made: an application that owns CUDA keeps it as it
was.
"""

from __future__ import annotations

import ctypes
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dpm_edge.errors import EngineError, MissingLibrary

INSTALL = "pip install 'dpm-edge[gpu]'"
NON_BLOCKING, NO_TIMING = 1, 2
"""CU_STREAM_NON_BLOCKING and CU_EVENT_DISABLE_TIMING."""
MAPPED, PORTABLE = 0x02, 0x01
"""CU_MEMHOSTALLOC_DEVICEMAP and CU_MEMHOSTALLOC_PORTABLE."""


def cuda_driver() -> ModuleType:
    """cuda.bindings.driver.

    Raises:
        MissingLibrary: cuda-bindings is not installed.
    """
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise MissingLibrary("cuda-bindings", "an engine on a GPU", INSTALL) from error
    return driver


class Device:
    """A retained primary context. `call` reports the driver's errors in words; `close` releases the context."""

    def __init__(self, index: int = 0) -> None:
        """Open the GPU of that number.

        Raises:
            MissingLibrary: cuda-bindings is not installed.
            EngineError: there is no driver, or no such GPU.
        """
        self.cuda = cuda_driver()
        self.index = index
        self._context: Any = None
        try:
            self.call("cuInit", 0)
            count = int(self.call("cuDeviceGetCount"))
        except (EngineError, RuntimeError) as error:  # without libcuda the bindings raise RuntimeError
            raise EngineError(
                f"expected a GPU, got none that can be used: {error}. Install its driver, or work on the CPU"
            ) from error
        if index >= count:
            raise EngineError(
                f"expected a GPU below {count}, the number of them here, got GPU {index}. The first is GPU.0"
            )
        self._device = self.call("cuDeviceGet", index)
        self.name = bytes(self.call("cuDeviceGetName", 256, self._device)).split(b"\0")[0].decode()
        capability = [self._attribute(f"COMPUTE_CAPABILITY_{part}") for part in ("MAJOR", "MINOR")]
        self.compute_capability = "{}.{}".format(*capability)
        version = int(self.call("cuDriverGetVersion"))
        self.driver = f"{version // 1000}.{version % 1000 // 10}"
        """The newest CUDA version that the driver serves."""
        self.integrated = bool(self._attribute("INTEGRATED"))
        """Whether GPU and CPU share one memory, as on a Jetson."""
        self._context = self.call("cuDevicePrimaryCtxRetain", self._device)

    @property
    def closed(self) -> bool:
        """Whether the context was released."""
        return self._context is None

    @property
    def context(self) -> int:
        """The primary context's handle."""
        return int(self._context)

    def call(self, function: str, *arguments: Any) -> Any:
        """Call the driver: its one result, or None where it has none.

        Raises:
            EngineError: in the driver's own words.
        """
        status, *results = getattr(self.cuda, function)(*arguments)
        if int(status) != 0:
            _, text = self.cuda.cuGetErrorString(status)
            raise EngineError(f"{function}: {text.decode() if text else 'unknown error'} (CUDA error {int(status)})")
        return results[0] if results else None

    def __enter__(self) -> Device:
        if self._context is None:
            raise EngineError("expected an open GPU, got a closed one. Open the engine again")
        self.call("cuCtxPushCurrent", self._context)
        return self

    def __exit__(self, *_: object) -> None:
        self.call("cuCtxPopCurrent")

    def close(self) -> None:
        """Release the context; a second call does nothing."""
        context, self._context = self._context, None
        if context is not None:
            self.call("cuDevicePrimaryCtxRelease", self._device)

    def _attribute(self, name: str) -> int:
        attribute = getattr(self.cuda.CUdevice_attribute, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.call("cuDeviceGetAttribute", attribute, self._device))


class Memory:
    """Allocations that are freed together. Call inside `with device:`.

    Staging buffers are pinned; a Jetson, whose GPU shares the memory, needs no copy of them.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._on_device: list[Any] = []
        self._pinned: list[Any] = []

    def reserve(self, size: int) -> int:
        """`size` bytes of device memory (256-byte aligned, by CUDA's promise): the address."""
        memory = self._device.call("cuMemAlloc", max(size, 1))
        self._on_device.append(memory)
        return int(memory)

    def stage(self, shape: tuple[int, ...], dtype: DTypeLike) -> Staged:
        """An array that CPU and GPU both have."""
        size = max(int(np.prod(shape)) * np.dtype(dtype).itemsize, 1)
        pinned = self._device.call("cuMemHostAlloc", size, PORTABLE | MAPPED)
        self._pinned.append(pinned)
        host = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(int(pinned)))
        if self._device.integrated:
            address = int(self._device.call("cuMemHostGetDevicePointer", pinned, 0))
        else:
            address = self.reserve(size)
        return Staged(self._device, host.view(dtype).reshape(shape), int(pinned), address)

    def close(self) -> None:
        """Free everything."""
        for memory in self._on_device:
            self._device.call("cuMemFree", memory)
        for pinned in self._pinned:
            self._device.call("cuMemFreeHost", pinned)
        self._on_device.clear()
        self._pinned.clear()


class Staged:
    """Pinned memory and its counterpart on the GPU; on an integrated GPU the two are one, and nothing is copied."""

    def __init__(self, device: Device, host: NDArray[Any], pinned: int, address: int) -> None:
        self.host = host
        """What the CPU reads and writes."""
        self.address = address
        """The same array for the GPU."""
        self._device, self._pinned = device, pinned
        self._one = device.integrated

    def upload(self, size: int, stream: Any) -> None:
        """Enqueue the copy of the first `size` bytes to the GPU."""
        if not self._one and size:
            self._device.call("cuMemcpyHtoDAsync", self.address, self._pinned, size, stream)

    def download(self, size: int, stream: Any) -> None:
        """Enqueue the copy of the first `size` bytes to the CPU, which may read them once the stream is done."""
        if not self._one and size:
            self._device.call("cuMemcpyDtoHAsync", self._pinned, self.address, size, stream)
