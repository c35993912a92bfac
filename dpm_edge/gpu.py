"""Which GPU is here, asked of the driver through cuda-bindings. Looks only when asked, and makes no CUDA context."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU and its driver, as they are on this machine."""

    name: str
    """Such as "Orin" or "NVIDIA H100 80GB HBM3"."""
    compute_capability: str
    """Such as "8.7"."""
    memory: int
    """Bytes of device memory; on a Jetson the memory that it shares with the CPU."""
    integrated: bool
    """Whether the GPU shares its memory with the CPU (Jetson): no copy to it is needed."""
    driver: str
    """Newest CUDA version that the driver serves, such as "12.6"."""
    cuda: str
    """Version of the CUDA runtime that cuda-bindings uses, such as "12.6"."""

    @property
    def device(self) -> str:
        """The name that a manifest calls it by, such as "Orin sm_87"."""
        return f"{self.name} sm_{self.compute_capability.replace('.', '')}"


def probe(index: int = 0) -> Gpu | None:
    """The GPU of that index; None where there is none, no driver, or no cuda-bindings to ask with."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    try:
        error, properties = runtime.cudaGetDeviceProperties(index)
        if error != runtime.cudaError_t.cudaSuccess:
            return None
        _, driver = runtime.cudaDriverGetVersion()
        _, cuda = runtime.cudaRuntimeGetVersion()
    except RuntimeError:  # the driver's library cannot be opened
        return None
    return Gpu(
        name=properties.name.decode(),
        compute_capability=f"{properties.major}.{properties.minor}",
        memory=int(properties.totalGlobalMem),
        integrated=bool(properties.integrated),
        driver=_version(driver),
        cuda=_version(cuda),
    )


def _version(number: int) -> str:
    """CUDA's 12060 as "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"
