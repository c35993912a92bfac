"""Launch ahead-of-time kernels from numpy programs: cuda-bindings and a cubin; no torch, no Triton, no compiler.

    with Kernels("cubins", device=0) as kernels:
        kernels.launch("masked_similarity_fp16_small", {"Q": q_address, "T": t_address, "B": 4, …}, stream=stream)

Pointers are device addresses (int), streams are CUstream handles (int; 0 is the default stream). The device's primary
context is retained and made current around every call, so the application's own context stays as it was.
"""

import ctypes
import json
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dpm_edge.kernels.variant import evaluate_grid

Value = int | float | None

DEFAULT_SHARED = 48 * 1024
"""Dynamic shared memory, bytes, that a block may have without opting in."""
TEGRA = (87,)
"""Jetson targets whose cubins no desktop GPU of the same major version takes."""
PORTABLE = 80
"""Target whose PTX every later GPU's driver can compile."""

_C_TYPES: dict[str, Any] = {
    "i32": ctypes.c_int32,
    "u32": ctypes.c_uint32,
    "i64": ctypes.c_int64,
    "fp32": ctypes.c_float,
    "fp64": ctypes.c_double,
}


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
        f"no kernel for compute capability {capability / 10}; compiled: {sorted(available)}. "
        f"Compile it: python -m dpm_edge.kernels --arch {capability} --out DIR"
    )


@dataclass(frozen=True)
class _Loaded:
    description: dict[str, Any]
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
            parameters, holders = pack(description, values)
            sizes = {k: v for k, v in values.items() if isinstance(v, int)}
            grid = evaluate_grid(description["grid"], sizes)
            block, shared = description["block"], description["shared_bytes"]
            self._call(
                "cuLaunchKernel", kernel.function, *grid, *block, shared, stream, ctypes.addressof(parameters), 0
            )
            del holders  # the driver has copied the values

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
            raise LaunchError(f"no kernel {name!r} here; there are: {', '.join(self.names)}")
        target, kind = choose_target(self.capability, set(self._files[name]))
        path = self._files[name][target]
        description = json.loads(path.read_text(encoding="utf-8"))
        image = path.with_suffix(f".{kind}").read_bytes()
        module = self._call("cuModuleLoadData", image + b"\0" if kind == "ptx" else image)
        function = self._call("cuModuleGetFunction", module, description["entry"].encode())
        if description["shared_bytes"] > DEFAULT_SHARED:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, attribute, description["shared_bytes"])
        self._loaded[name] = _Loaded(description, module, function)
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
            raise LaunchError("these kernels are closed; open the folder again")
        self._kernels = kernels

    def __enter__(self) -> None:
        self._kernels._call("cuCtxPushCurrent", self._kernels._context)

    def __exit__(self, *_: object) -> None:
        self._kernels._call("cuCtxPopCurrent")


def pack(description: Mapping[str, Any], values: Mapping[str, Value]) -> tuple[ctypes.Array[Any], list[Any]]:
    """The array of pointers that cuLaunchKernel reads, and the values it points to (keep both until it returned).

    The hidden trailing pointers are null. Raises LaunchError for a missing, unknown or misaligned value.
    """
    declared = [p["name"] for p in description["parameters"][:-2]]
    missing = [n for n in declared if n not in values]
    unknown = [n for n in values if n not in declared and n not in re.findall(r"\w+", description["grid"])]
    if missing or unknown:
        raise LaunchError(
            f"{description['variant']} takes {', '.join(declared)}; "
            f"missing: {missing or 'none'}, unknown: {unknown or 'none'}"
        )
    for name in description["divisible_by_16"]:
        if (values[name] or 0) % 16:
            raise LaunchError(
                f"{description['variant']}: {name} = {values[name]} is no multiple of 16, as this variant needs; "
                "align the buffer or pad the dimension"
            )
    holders = []
    for parameter in description["parameters"]:
        value = values.get(parameter["name"]) or 0
        kind: Any = ctypes.c_uint64 if parameter["type"].startswith("*") else _C_TYPES[parameter["type"]]
        holders.append(kind(value))
    return (ctypes.c_void_p * len(holders))(*(ctypes.addressof(h) for h in holders)), holders


def _by_variant(folder: Path) -> dict[str, dict[int, Path]]:
    found: dict[str, dict[int, Path]] = {}
    for path in sorted(folder.glob("*_sm*.json")):
        variant, _, sm = path.stem.rpartition("_sm")
        found.setdefault(variant, {})[int(sm)] = path
    if not found:
        raise LaunchError(f"no kernels in {folder}; compile them: python -m dpm_edge.kernels --out {folder}")
    return found


def _cuda_driver() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise LaunchError(f"cuda-bindings is missing ({error}); install it: pip install 'dpm-edge[gpu]'") from error
    return driver
