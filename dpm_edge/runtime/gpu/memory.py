"""Memory of one lane: allocated once, freed together. Staging buffers are pinned; a Jetson needs no copy of them."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dpm_edge.runtime.gpu.device import Device

MAPPED, PORTABLE = 0x02, 0x01
"""CU_MEMHOSTALLOC_DEVICEMAP and CU_MEMHOSTALLOC_PORTABLE."""


class Memory:
    """Allocations on one device; `close` frees them all. Call inside `with device:`."""

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
