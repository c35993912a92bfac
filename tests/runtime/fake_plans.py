"""A TensorRT whose plans are the tiny network: contexts check what they are told, and run on a FakeCuda's streams.

Every name is one of the real bindings' (tests/runtime/test_gpu_application.py).
"""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import tiny_engine
from fake_cuda import FakeCuda

SCRATCH = 4096
VERSION = "10.3.0"


class DataType(enum.Enum):
    """Types of tensors."""

    FLOAT = 0
    HALF = 1


class ExecutionContextAllocationStrategy(enum.Enum):
    """Who gives a context its memory."""

    STATIC = 0
    USER_MANAGED = 2


class FakeTensorRt:
    """The module `tensorrt`, on one fake GPU. A plan is b"plan SEED", or b"stripped SEED" until it is refitted."""

    DataType = DataType
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy
    __version__ = VERSION

    def __init__(self, cuda: FakeCuda, profiles: tuple[tuple[int, int, int], ...] = ((1, 4, 8),)) -> None:
        self.cuda, self.profiles = cuda, profiles
        self.deserialised = 0
        self.plugins: list[str] = []
        self.executed: list[int] = []
        """Batch size of every run, captured ones once for each launch."""
        self.fails = False
        self.contexts = 0
        self.captures = True
        """Whether plans can be captured in a graph."""
        self.scratch_users: dict[int, int] = {}
        self.prototypes: Any = None
        """(C, D) float64: plans then give logits, too."""

    class ILogger:
        """What loggers derive from."""

        class Severity(enum.Enum):
            """How bad it is."""

            INTERNAL_ERROR = 0
            ERROR = 1
            WARNING = 2

        def log(self, severity: Severity, message: str) -> None:
            """Called by the library."""

    def Runtime(self, logger: Any) -> Runtime:
        """A runtime."""
        return Runtime(self, logger)

    def Refitter(self, engine: Engine, logger: Any) -> Refitter:
        """What gives a stripped plan its weights."""
        return Refitter(engine)

    def OnnxParserRefitter(self, refitter: Refitter, logger: Any) -> OnnxParserRefitter:
        """What reads them from an ONNX."""
        return OnnxParserRefitter(refitter)


class Runtime:
    """Deserialises plans."""

    engine_host_code_allowed = True

    def __init__(self, trt: FakeTensorRt, logger: Any) -> None:
        self._trt, self._logger = trt, logger

    def get_plugin_registry(self) -> Runtime:
        return self

    def load_library(self, path: str) -> object:
        self._trt.plugins.append(path)
        return object()

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        if self.engine_host_code_allowed:
            self._trt.cuda.violations.append("host code in plans was allowed")
        self._trt.deserialised += 1
        kind, _, seed = plan.partition(b" ")
        self._logger.log(self._trt.ILogger.Severity.WARNING, "of no interest")
        if kind not in (b"plan", b"stripped"):
            self._logger.log(self._trt.ILogger.Severity.ERROR, "magic tag does not match\n")
        return Engine(self._trt, int(seed), kind == b"plan") if kind in (b"plan", b"stripped") else None


class Refitter:
    """Puts weights into a plan."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.found = False

    def refit_cuda_engine(self) -> bool:
        self.engine.whole = self.found
        return self.found


class OnnxParserRefitter:
    """Reads weights."""

    def __init__(self, refitter: Refitter) -> None:
        self._refitter = refitter

    def refit_from_file(self, path: str) -> bool:
        self._refitter.found = path.endswith("engine.onnx")
        return self._refitter.found


class Engine:
    """The tiny network as a plan."""

    device_memory_size_v2 = SCRATCH

    def __init__(self, trt: FakeTensorRt, seed: int, whole: bool) -> None:
        self.trt, self.seed, self.whole = trt, seed, whole
        self.names = ["images", "feature", "mask"] + ([] if trt.prototypes is None else ["logits"])

    @property
    def num_io_tensors(self) -> int:
        return len(self.names)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.trt.profiles)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType.FLOAT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name == "logits":
            return (-1, len(self.trt.prototypes))
        return (-1, 3, 64, 64) if name == "images" else (-1, tiny_engine.SPEC.width)

    def create_execution_context(self, strategy: ExecutionContextAllocationStrategy) -> Context | None:
        assert strategy is ExecutionContextAllocationStrategy.USER_MANAGED
        self.trt.contexts += 1
        return Context(self)


class Context:
    """One execution context."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._scratch = self._batch = 0
        self._profile: int | None = None
        self._addresses: dict[str, int] = {}
        self._ran = False

    def set_device_memory(self, memory: int, size: int) -> None:
        assert size >= SCRATCH
        self._scratch = memory

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._profile = profile_index
        return 0 <= profile_index < len(self._engine.trt.profiles)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert name == "images" and self._profile is not None
        low, _, high = self._engine.trt.profiles[self._profile]
        self._batch = shape[0]
        return low <= shape[0] <= high and shape[1:] == (3, 64, 64)

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._addresses[name] = memory
        return name in self._engine.names

    def execute_async_v3(self, stream_handle: int) -> bool:
        trt = self._engine.trt
        capturing = trt.cuda.streams[stream_handle].captured is not None
        if (
            trt.fails
            or (capturing and not (self._ran and trt.captures))
            or len(self._addresses) < len(self._engine.names)
            or not self._scratch
        ):
            return False
        self._ran = True
        if trt.scratch_users.setdefault(self._scratch, stream_handle) != stream_handle:
            trt.cuda.violations.append("two streams work in one scratch memory")
        batch, addresses, scratch = self._batch, dict(self._addresses), self._scratch
        trt.cuda.enqueue(stream_handle, lambda: self._compute(batch, addresses, scratch))
        return True

    def _compute(self, batch: int, addresses: dict[str, int], scratch: int) -> None:
        """The tiny network in float64."""
        trt, width, pool = self._engine.trt, tiny_engine.SPEC.width, tiny_engine.POOL
        trt.executed.append(batch)
        trt.cuda.view(scratch, (SCRATCH,), np.uint8)[:] = batch
        images = trt.cuda.view(addresses["images"], (batch, 3, 64, 64), np.float32).astype(np.float64)
        flat = images.reshape(batch, 3, 4, pool, 4, pool).mean(axis=(3, 5)).reshape(batch, -1)
        project, gate = tiny_engine.weights(self._engine.seed)
        raw = flat @ (project if self._engine.whole else np.zeros_like(project))
        with np.errstate(invalid="ignore"):
            feature = raw / np.linalg.norm(raw, axis=1, keepdims=True)
        trt.cuda.view(addresses["feature"], (batch, width), np.float32)[:] = feature
        mask = 1 / (1 + np.exp(-flat @ gate))
        trt.cuda.view(addresses["mask"], (batch, width), np.float32)[:] = mask
        if trt.prototypes is not None:
            logits = ((feature * mask) @ trt.prototypes.T) / np.sqrt((mask * mask) @ (trt.prototypes**2).T)
            trt.cuda.view(addresses["logits"], (batch, len(trt.prototypes)), np.float32)[:] = logits
