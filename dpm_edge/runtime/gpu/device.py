"""One GPU through the CUDA driver API.

The device's primary context is retained, the one that the CUDA runtime, torch and CuPy use too, and is current only
inside `with device:`. It is never reset, and no other context is made: an application that owns CUDA keeps it as it
was.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

from dpm_edge.errors import EngineError, MissingLibrary

INSTALL = "pip install 'dpm-edge[gpu]'"


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
            raise EngineError(f"no GPU can be used here: {error}") from error
        if index >= count:
            raise EngineError(f"GPU {index} was asked for; this machine has {count}, counted from 0")
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
            raise EngineError("this GPU was closed; open the engine again")
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
