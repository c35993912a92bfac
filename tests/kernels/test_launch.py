"""The torch-free launcher against a stand-in driver that keeps every call: grid, block, shared memory, parameters."""

from __future__ import annotations

import ctypes
import json
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from dpm_edge.kernels import launch
from dpm_edge.kernels.launch import Kernels, LaunchError, Packing, choose_target
from dpm_edge.kernels.variant import VariantError


class Enumeration:
    """Any member is its own name."""

    def __getattr__(self, name: str) -> str:
        return name


class StandInDriver:
    """Answers like cuda.bindings.driver and remembers. `fails` names the call that returns error 700."""

    CUdevice_attribute = Enumeration()
    CUfunction_attribute = Enumeration()

    def __init__(self, capability: tuple[int, int], fails: str = "") -> None:
        self.capability, self.fails = capability, fails
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def cuGetErrorString(self, status: int) -> tuple[int, bytes]:
        return 0, b"an illegal memory access was encountered"

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, arguments))
            if name == self.fails:
                return (700,)
            if name == "cuDeviceGetAttribute":
                return 0, self.capability["MINOR" in arguments[0]]
            nothing = ("cuInit", "cuLaunchKernel", "cuModuleUnload", "cuFuncSetAttribute", "cuCtxPushCurrent")
            return (0,) if name in nothing or name.endswith("Release") else (0, f"<{name}>")

        return call

    def named(self, name: str) -> list[tuple[Any, ...]]:
        return [arguments for called, arguments in self.calls if called == name]


def describe(folder: Path, sm: int, shared: int = 1024) -> dict[str, Any]:
    """Write the three files of one kernel and return its launch description."""
    description = {
        "variant": "scale",
        "entry": "scale",
        "grid": "ceil(N / 256), ROWS",
        "block": [128, 1, 1],
        "shared_bytes": shared,
        "parameters": [
            {"name": "X", "type": "*fp32"},
            {"name": "FACTOR", "type": "fp32"},
            {"name": "N", "type": "i32"},
            {"name": "OUT", "type": "*fp32"},
            {"name": "global_scratch", "type": "*u8"},
            {"name": "profile_scratch", "type": "*u8"},
        ],
        "divisible_by_16": ["X", "OUT"],
    }
    (folder / f"scale_sm{sm}.json").write_text(json.dumps(description))
    (folder / f"scale_sm{sm}.cubin").write_bytes(b"cubin %d" % sm)
    (folder / f"scale_sm{sm}.ptx").write_text(f"ptx {sm}")
    return description


VALUES = {"X": 0x1000, "FACTOR": 0.5, "N": 1000, "OUT": 0x2000, "ROWS": 3}


def test_one_launch_has_the_grid_block_shared_memory_and_parameters_of_its_description(tmp_path: Path) -> None:
    describe(tmp_path, 87)
    driver = StandInDriver((8, 7))
    with Kernels(tmp_path, driver=driver) as kernels:
        kernels.launch("scale", VALUES, stream=77)
    ((function, *numbers, parameters, extra),) = driver.named("cuLaunchKernel")
    assert function == "<cuModuleGetFunction>"
    assert numbers == [4, 3, 1, 128, 1, 1, 1024, 77]
    assert parameters and extra == 0


def test_parameters_are_packed_in_order_with_two_null_pointers_behind(tmp_path: Path) -> None:
    description = describe(tmp_path, 87)
    packing = Packing(description)
    kinds = (ctypes.c_uint64, ctypes.c_float, ctypes.c_int32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
    for factor in (0.5, 0.25):  # the array is used again
        array = (ctypes.c_void_p * 6).from_address(packing.pack({**VALUES, "FACTOR": factor}))
        read = [kind.from_address(address).value for kind, address in zip(kinds, array, strict=True)]
        assert read == [0x1000, factor, 1000, 0x2000, 0, 0]


def test_each_thread_packs_into_memory_of_its_own(tmp_path: Path) -> None:
    packing, addresses, barrier = Packing(describe(tmp_path, 87)), [], threading.Barrier(2)

    def pack() -> None:
        addresses.append(packing.pack(VALUES))
        barrier.wait(30)  # both threads live until both have packed

    thread = threading.Thread(target=pack)
    thread.start()
    pack()
    thread.join()
    assert addresses[0] != addresses[1] and packing.pack(VALUES) in addresses


def test_a_kernel_is_loaded_once_and_everything_is_given_back(tmp_path: Path) -> None:
    describe(tmp_path, 90, shared=60_000)
    driver = StandInDriver((9, 0))
    kernels = Kernels(tmp_path, driver=driver)
    for _ in range(3):
        kernels.launch("scale", VALUES)
    kernels.close()
    kernels.close()
    assert len(driver.named("cuModuleLoadData")) == len(driver.named("cuModuleUnload")) == 1
    assert driver.named("cuFuncSetAttribute") == [
        ("<cuModuleGetFunction>", "CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES", 60_000)
    ]
    assert len(driver.named("cuDevicePrimaryCtxRetain")) == len(driver.named("cuDevicePrimaryCtxRelease")) == 1
    assert len(driver.named("cuCtxPushCurrent")) == len(driver.named("cuCtxPopCurrent"))
    with pytest.raises(LaunchError, match="got closed ones"):
        kernels.launch("scale", VALUES)


def test_the_context_is_put_back_after_a_driver_error(tmp_path: Path) -> None:
    describe(tmp_path, 80)
    driver = StandInDriver((8, 0), fails="cuLaunchKernel")
    kernels = Kernels(tmp_path, driver=driver)
    with pytest.raises(LaunchError, match=r"cuLaunchKernel: an illegal memory access .* \(CUDA error 700\)"):
        kernels.launch("scale", VALUES)
    assert len(driver.named("cuCtxPushCurrent")) == len(driver.named("cuCtxPopCurrent"))


@pytest.mark.parametrize(
    ("capability", "target", "kind"),
    [(80, 80, "cubin"), (86, 80, "cubin"), (87, 87, "cubin"), (89, 89, "cubin"), (90, 90, "cubin")]
    + [(100, 100, "cubin"), (103, 80, "ptx"), (120, 80, "ptx"), (110, 110, "cubin")],
)
def test_target_of_each_device(capability: int, target: int, kind: str) -> None:
    assert choose_target(capability, {80, 87, 89, 90, 100, 110}) == (target, kind)


def test_a_desktop_gpu_never_takes_a_jetson_cubin() -> None:
    assert choose_target(89, {80, 87}) == (80, "cubin")
    assert choose_target(87, {80}) == (80, "ptx")
    with pytest.raises(LaunchError, match="--arch 75"):
        choose_target(75, {80, 87})
    with pytest.raises(LaunchError, match="--arch 89"):
        choose_target(89, {87, 90})


def test_ptx_goes_to_the_driver_with_its_closing_zero(tmp_path: Path) -> None:
    describe(tmp_path, 80)
    driver = StandInDriver((12, 0))
    with Kernels(tmp_path, driver=driver) as kernels:
        kernels.launch("scale", VALUES)
    assert driver.named("cuModuleLoadData") == [(b"ptx 80\0",)]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"X": 0x1008}, LaunchError, "expected X to be a multiple of 16, got 4104"),
        ({"STRIDE": 1}, LaunchError, r"unknown: \['STRIDE'\]"),
        ({"N": 1 << 31}, LaunchError, "expected values that fit their types"),
        ({"ROW": 1}, LaunchError, r"unknown: \['ROW'\]"),
        ({"N": 0}, VariantError, "at least 1"),
    ],
)
def test_bad_values_are_refused_before_the_launch(
    tmp_path: Path, change: dict[str, int], error: type[Exception], words: str
) -> None:
    describe(tmp_path, 80)
    driver = StandInDriver((8, 0))
    with Kernels(tmp_path, driver=driver) as kernels, pytest.raises(error, match=words):
        kernels.launch("scale", {**VALUES, **change})
    assert not driver.named("cuLaunchKernel")


def test_a_missing_value_an_unknown_kernel_and_an_empty_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match=r"python -m dpm_edge\.kernels --out"):
        Kernels(tmp_path, driver=StandInDriver((8, 0)))
    describe(tmp_path, 80)
    with Kernels(tmp_path, driver=StandInDriver((8, 0))) as kernels:
        with pytest.raises(LaunchError, match="expected a kernel of scale, got 'scales'"):
            kernels.launch("scales", VALUES)
        with pytest.raises(LaunchError, match=r"Missing: \['OUT'\]"):
            kernels.launch("scale", {k: v for k, v in VALUES.items() if k != "OUT"})


def test_threads_launch_side_by_side(tmp_path: Path) -> None:
    describe(tmp_path, 80)
    driver = StandInDriver((8, 0))
    with Kernels(tmp_path, driver=driver) as kernels:
        threads = [threading.Thread(target=kernels.launch, args=("scale", VALUES)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(driver.named("cuLaunchKernel")) == 16
    assert len(driver.named("cuModuleLoadData")) == len(driver.named("cuModuleUnload"))
    assert len(driver.named("cuModuleLoadData")) == 1


def test_the_real_bindings_have_every_name_that_is_used() -> None:
    driver = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed (extra [gpu])")
    used = set(re.findall(r'"(cu[A-Z]\w+)"', Path(launch.__file__).read_text(encoding="utf-8")))
    assert len(used) >= 9
    assert not [name for name in used if not hasattr(driver, name)]
    driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES  # noqa: B018


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", [(8, 0), (8, 7), (9, 0), (11, 0)])
def test_every_compiled_kernel_launches_from_its_own_description(
    compiled_kernels: Path, capability: tuple[int, int]
) -> None:
    driver = StandInDriver(capability)
    with Kernels(compiled_kernels, driver=driver) as kernels:
        for count, name in enumerate(kernels.names, start=1):
            described = json.loads((compiled_kernels / f"{name}_sm{kernels.capability}.json").read_text())
            values = {p["name"]: 1024 for p in described["parameters"][:-2]}
            sizes = set(re.findall(r"\b[A-Za-z_]\w*", described["grid"])) - {"ceil", "min", "max"}
            kernels.launch(name, {**values, **dict.fromkeys(sizes, 1024)})
            *_, (_, *numbers, _, _) = driver.named("cuLaunchKernel")
            assert numbers[3:7] == [*described["block"], described["shared_bytes"]]
            assert len(driver.named("cuLaunchKernel")) == count
            image = (compiled_kernels / f"{name}_sm{kernels.capability}.cubin").read_bytes()
            assert driver.named("cuModuleLoadData")[-1] == (image,)
