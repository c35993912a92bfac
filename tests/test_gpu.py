"""Asking for the GPU: what the driver says, and None wherever it cannot be asked."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from dpm_edge import gpu

SUCCESS, NO_DRIVER = 0, 35


def fake_runtime(monkeypatch: pytest.MonkeyPatch, error: int = SUCCESS, fails: Exception | None = None) -> None:
    """Put a CUDA runtime in place that knows one Jetson."""

    def properties(index: int) -> tuple[int, SimpleNamespace | None]:
        if fails:
            raise fails
        card = SimpleNamespace(name=b"Orin", major=8, minor=7, totalGlobalMem=64 << 30, integrated=1)
        return error, card if error == SUCCESS else None

    runtime = SimpleNamespace(
        cudaError_t=SimpleNamespace(cudaSuccess=SUCCESS),
        cudaGetDeviceProperties=properties,
        cudaDriverGetVersion=lambda: (SUCCESS, 12060),
        cudaRuntimeGetVersion=lambda: (SUCCESS, 13000),
    )
    monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=runtime))


def test_what_the_driver_says(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runtime(monkeypatch)
    found = gpu.probe()
    assert found == gpu.Gpu(
        name="Orin", compute_capability="8.7", memory=64 << 30, integrated=True, driver="12.6", cuda="13.0"
    )
    assert found.device == "Orin sm_87"


def test_no_gpu_where_it_cannot_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_runtime(monkeypatch, error=NO_DRIVER)
    assert gpu.probe() is None
    fake_runtime(monkeypatch, fails=RuntimeError("Failed to dlopen libcuda.so.1"))
    assert gpu.probe() is None
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert gpu.probe() is None


def test_the_names_are_those_of_cuda_bindings() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    for name in ("cudaGetDeviceProperties", "cudaDriverGetVersion", "cudaRuntimeGetVersion"):
        assert callable(getattr(runtime, name))
    assert {"name", "major", "minor", "totalGlobalMem", "integrated"} <= set(dir(runtime.cudaDeviceProp))
