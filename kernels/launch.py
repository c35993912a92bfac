"""Launch ahead-of-time kernels from numpy programs: cuda-bindings and a cubin; no torch, no Triton, no compiler.

    with Kernels("cubins", device=0) as kernels:
        kernels.launch("masked_similarity_fp16_small", {"Q": q_address, "T": t_address, "B": 4, …}, stream=stream)

Pointers are device addresses (int), streams are CUstream handles (int; 0 is the default stream). The device's primary
context is retained and made current around every call, so the application's own context stays as it was.
"""

import ctypes
import json
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dpm_edge.kernels.variant import evaluate_grid, grid_names

Value = int | float | None

DEFAULT_SHARED = 48 * 1024
"""Dynamic shared memory, bytes, that a block may have without opting in."""
TEGRA = (87,)
"""Jetson targets whose cubins no desktop GPU of the same major version takes."""
PORTABLE = 80
"""Target whose PTX every later GPU's driver can compile."""

_CODES = {"i32": "i", "u32": "I", "i64": "q", "fp32": "f", "fp64": "d"}
"""Types of parameters → codes of `struct`."""


class LaunchError(RuntimeError):
    """A kernel that is not there for this GPU, values that break its promises, or an error of the CUDA driver."""


def choose_target(capability: int, available: set[int]) -> tuple[int, str]:
    """(target, "cubin" or "ptx") for a device: its own cubin, else an older one of major 8, else PTX for the driver.

    Targets from 90 on use instructions of exactly their architecture, so only sm_80 cubins serve neighbours (8.6).
    Raises LaunchError where nothing fits.
    """
    if capability in available:
        return capability, "cubin"
    older = [sm for sm in available if sm < capability and sm // 10 == capability // 10 == 8 and sm not in TEGRA]
    if older and capability not in TEGRA:
        return max(older), "cubin"
    if PORTABLE in available and capability > PORTABLE:
        return PORTABLE, "ptx"
    raise LaunchError(
        f"expected a kernel for compute capability {capability / 10}, got those for {sorted(available)}. "
        f"Compile it: python -m dpm_edge.kernels --arch {capability} --out DIR"
    )


class Packing:
    """How a kernel's values become the array of pointers that cuLaunchKernel reads; worked out once a kernel."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        """`description`: a launch JSON."""
        self._variant, parameters = description["variant"], description["parameters"]
        self._names = tuple(p["name"] for p in parameters[:-2])
        self._known = {*self._names, *grid_names(description["grid"])}
        self._aligned = tuple(description["divisible_by_16"])
        codes = ("Q" if p["type"].startswith("*") else _CODES[p["type"]] for p in parameters)
        self._format = struct.Struct("=" + "".join(code + "x" * (8 - struct.calcsize("=" + code)) for code in codes))
        self._count = len(parameters)
        self._mine = threading.local()

    def pack(self, values: Mapping[str, Value]) -> int:
        """The array's address; good until this thread packs again. The hidden trailing pointers are null.

        Raises LaunchError for a missing, unknown or misaligned value.
        """
        if not values.keys() >= set(self._names) or not values.keys() <= self._known:
            missing = [name for name in self._names if name not in values]
            unknown = [name for name in values if name not in self._known]
            raise LaunchError(
                f"{self._variant}: expected values for {', '.join(self._names)}, got {', '.join(values)}. "
                f"Missing: {missing or 'none'}, unknown: {unknown or 'none'}"
            )
        for name in self._aligned:
            if (values[name] or 0) % 16:
                raise LaunchError(
                    f"{self._variant}: expected {name} to be a multiple of 16, got {values[name]}. "
                    "Align the buffer or pad the dimension"
                )
        try:
            slots, pointers = self._mine.room
        except AttributeError:
            slots = ctypes.create_string_buffer(8 * self._count)
            start = ctypes.addressof(slots)
            pointers = (ctypes.c_void_p * self._count)(*range(start, start + 8 * self._count, 8))
            self._mine.room = slots, pointers
        try:
            self._format.pack_into(slots, 0, *[values[name] or 0 for name in self._names], 0, 0)
        except struct.error as error:
            raise LaunchError(f"{self._variant}: expected values that fit their types, got {values}: {error}") from None
        return ctypes.addressof(pointers)


@dataclass(frozen=True)
class _Loaded:
    description: dict[str, Any]
    packing: Packing
    module: Any
    function: Any


class Kernels:
    """The compiled kernels of one folder on one device. Loads each at its first launch; a context manager."""

    def __init__(self, folder: str | Path, device: int = 0, driver: Any = None) -> None:
        """Retain the primary context of `device`. `driver` stands in for cuda.bindings.driver, for tests.

        Raises LaunchError for a folder without kernels or a device that cannot be had.
        """
        self._driver = driver if driver is not None else _cuda_driver()
        self._files = _by_variant(Path(folder))
        self._loaded: dict[str, _Loaded] = {}
        self._loading = threading.Lock()
        self._call("cuInit", 0)
        self._device = self._call("cuDeviceGet", device)
        attribute = self._driver.CUdevice_attribute
        major = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, self._device)
        minor = self._call("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, self._device)
        self.capability = 10 * major + minor
        self._context: Any = self._call("cuDevicePrimaryCtxRetain", self._device)

    @property
    def names(self) -> tuple[str, ...]:
        """Variants in the folder."""
        return tuple(sorted(self._files))

    def launch(self, name: str, values: Mapping[str, Value], stream: int = 0) -> None:
        """Enqueue one kernel on `stream`; returns at once.

        `values` holds each parameter by name (a pointer as an int, None for a null pointer) and whatever else the
        grid rule names. Raises LaunchError for a missing, unknown or misaligned value, VariantError for an empty grid.
        """
        with _Current(self):
            with self._loading:
                kernel = self._kernel(name)
            description = kernel.description
            parameters = kernel.packing.pack(values)
            grid = evaluate_grid(description["grid"], values)  # type: ignore[arg-type]  # a grid names sizes alone
            block, shared = description["block"], description["shared_bytes"]
            self._call("cuLaunchKernel", kernel.function, *grid, *block, shared, stream, parameters, 0)

    def close(self) -> None:
        """Unload every kernel and release the context; a second call does nothing."""
        if self._context is None:
            return
        with _Current(self):
            for kernel in self._loaded.values():
                self._call("cuModuleUnload", kernel.module)
        self._loaded.clear()
        self._context = None
        self._call("cuDevicePrimaryCtxRelease", self._device)

    def __enter__(self) -> "Kernels":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _kernel(self, name: str) -> _Loaded:
        if name in self._loaded:
            return self._loaded[name]
        if name not in self._files:
            raise LaunchError(f"expected a kernel of {', '.join(self.names)}, got {name!r}")
        target, kind = choose_target(self.capability, set(self._files[name]))
        path = self._files[name][target]
        description = json.loads(path.read_text(encoding="utf-8"))
        image = path.with_suffix(f".{kind}").read_bytes()
        module = self._call("cuModuleLoadData", image + b"\0" if kind == "ptx" else image)
        function = self._call("cuModuleGetFunction", module, description["entry"].encode())
        if description["shared_bytes"] > DEFAULT_SHARED:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, attribute, description["shared_bytes"])
        self._loaded[name] = _Loaded(description, Packing(description), module, function)
        return self._loaded[name]

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the driver; its one result, or LaunchError with the driver's own words."""
        status, *results = getattr(self._driver, function)(*arguments)
        if int(status) != 0:
            _, text = self._driver.cuGetErrorString(status)
            raise LaunchError(f"{function}: {text.decode() if text else 'unknown error'} (CUDA error {int(status)})")
        return results[0] if results else None


class _Current:
    """Makes the kernels' context current, and puts back what was."""

    def __init__(self, kernels: Kernels) -> None:
        if kernels._context is None:
            raise LaunchError("expected open kernels, got closed ones. Open the folder again")
        self._kernels = kernels

    def __enter__(self) -> None:
        self._kernels._call("cuCtxPushCurrent", self._kernels._context)

    def __exit__(self, *_: object) -> None:
        self._kernels._call("cuCtxPopCurrent")


def _by_variant(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*_sm*.json")):
        variant, _, sm = path.stem.rpartition("_sm")
        found.setdefault(variant, {})[int(sm)] = path
    if not found:
        raise LaunchError(
            f"expected compiled kernels in {folder}, got none. Compile them: python -m dpm_edge.kernels --out {folder}"
        )
    return found


def _cuda_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise LaunchError(
            f"expected cuda-bindings, got none ({error}). Install it: pip install 'dpm-edge[gpu]'"
        ) from error
    return driver
