"""A TensorRT plan: deserialised, its buckets, and its execution contexts. TensorRT 10.3 to 11.x, and for RTX.

b crops of a bucket · H×W network input · D feature dimensions
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from dpm_edge.errors import EngineError
from dpm_edge.manifest import TYPED, BatchRange, Manifest, rebuild_advice
from dpm_edge.runtime.gpu.library import collecting_logger

if TYPE_CHECKING:
    import tensorrt

INPUT = "images"


@dataclass(frozen=True, order=True)
class Bucket:
    """One batch size that is kept ready."""

    size: int
    """b, crops."""
    profile: int
    """Which optimisation profile of the plan it runs in."""


def buckets(manifest: Manifest) -> tuple[Bucket, ...]:
    """Of each profile its ends, its best size and the powers of two between: at most half of a call is padding."""
    found: dict[int, int] = {}
    for number, span in enumerate(manifest.profiles or (manifest.batch,)):
        for size in sizes(span):
            found.setdefault(size, number)
    return tuple(sorted(Bucket(size, profile) for size, profile in found.items()))


def sizes(span: BatchRange) -> list[int]:
    """Batch sizes of one profile that are kept ready, rising."""
    powers = {1 << bit for bit in range(span.high.bit_length()) if span.low <= 1 << bit <= span.high}
    return sorted({span.low, span.best, span.high} | powers)


class LoadedPlan:
    """A deserialised plan. Call inside `with device:`."""

    def __init__(self, trt: ModuleType, manifest: Manifest, folder: Path, plugin: Path | None) -> None:
        """Deserialise the plan of a directory that was checked and is trusted. Host code in it is never allowed.

        Raises:
            EngineError: TensorRT refuses the plan, or its tensors are not those of the manifest.
        """
        self._trt, path = trt, folder / manifest.engine
        self._logger = collecting_logger(trt)
        self._runtime = trt.Runtime(self._logger)
        self._runtime.engine_host_code_allowed = False
        if plugin is not None and self._runtime.get_plugin_registry().load_library(str(plugin)) is None:
            raise EngineError(
                f"expected {manifest.backend} {trt.__version__} to load {plugin}, got a refusal: {self.reasons()}"
            )
        self._engine = self._runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise EngineError(
                f"expected a plan for {manifest.backend} {trt.__version__}, got a refusal of {path}: {self.reasons()}. "
                f"{rebuild_advice(folder)}"
            )
        if manifest.gpu is not None and manifest.gpu.weights == "stripped":
            self._refit(folder)
        self._check(manifest, folder)
        pre = manifest.spec.preprocessing
        self.row_shape = (3, pre.height, pre.width)
        self.outputs = {name: int(self._engine.get_tensor_shape(name)[-1]) for name in manifest.outputs}
        """Output → its width."""
        self.scratch_bytes = int(self._engine.device_memory_size_v2)
        """Device memory that a context works in."""

    def context(
        self, bucket: Bucket, addresses: dict[str, int], scratch: int, stream: int
    ) -> tensorrt.IExecutionContext:
        """An execution context for one batch size, working in memory at `scratch`, tensors at `addresses`.

        Raises:
            EngineError: TensorRT refuses, and why.
        """
        strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = self._engine.create_execution_context(strategy)
        done = context is not None
        if done:
            context.set_device_memory(scratch, self.scratch_bytes)
            done = context.set_optimization_profile_async(bucket.profile, stream)
            done = done and context.set_input_shape(INPUT, (bucket.size, *self.row_shape))
            done = done and all(context.set_tensor_address(name, at) for name, at in addresses.items())
        if not done:
            raise EngineError(
                f"expected a context of TensorRT for batch {bucket.size}, got a refusal: {self.reasons()}"
            )
        return context

    def reasons(self) -> str:
        """TensorRT's errors since the last time that they were asked for."""
        told = "; ".join(self._logger.reasons)
        self._logger.reasons.clear()
        return told or "it gives no reason"

    def close(self) -> None:
        """Let go of the plan, after all of its contexts."""
        self._engine = None
        self._runtime = None

    def _refit(self, folder: Path) -> None:
        """Give a plan that was built without weights those of the typed graph beside it."""
        refitter = self._trt.Refitter(self._engine, self._logger)
        parser = self._trt.OnnxParserRefitter(refitter, self._logger)
        if not parser.refit_from_file(str(folder / TYPED)) or not refitter.refit_cuda_engine():
            raise EngineError(
                f"expected weights in {folder / TYPED} for the plan of {folder}, which holds none, got others: "
                f"{self.reasons()}. {rebuild_advice(folder)}"
            )

    def _check(self, manifest: Manifest, folder: Path) -> None:
        engine, trt = self._engine, self._trt
        names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
        wanted = {INPUT, *manifest.outputs}
        wrong = sorted(names ^ wanted) or [
            f"{name} of {engine.get_tensor_dtype(name)}" for name in names
            if engine.get_tensor_dtype(name) != trt.DataType.FLOAT
        ]  # fmt: skip
        profiles = len(manifest.profiles or (manifest.batch,))
        if wrong or engine.num_optimization_profiles != profiles:
            raise EngineError(
                f"expected the plan of {folder} to be what its manifest says, {', '.join(sorted(wanted))} in float32 "
                f"and {profiles} profiles, got {engine.num_optimization_profiles} profiles and "
                f"{', '.join(wrong) or 'the right tensors'}. {rebuild_advice(folder)}"
            )
