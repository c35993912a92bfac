"""A TensorRT that records what it is asked for, for behaviour that wants a GPU.

Every class stands for the class of that name in NVIDIA's bindings, and test_tensorrt_names.py compares their members
with the real ones; what the real ones do not have begins with `fake`.
"""

from __future__ import annotations

import enum
import json
import threading
from pathlib import Path
from types import ModuleType
from typing import Any

CACHE = b"FAKE"
"""What a serialised timing cache begins with."""


class _Enum(enum.IntEnum):
    """Enum members that convert to int, as pybind11's do."""


class BuilderFlag(_Enum):
    REFIT = 0
    STRIP_PLAN = 1
    VERSION_COMPATIBLE = 2
    EXCLUDE_LEAN_RUNTIME = 3


class NetworkDefinitionCreationFlag(_Enum):
    STRONGLY_TYPED = 1


class MemoryPoolType(_Enum):
    WORKSPACE = 0
    TACTIC_DRAM = 4


class ProfilingVerbosity(_Enum):
    DETAILED = 1


class HardwareCompatibilityLevel(_Enum):
    NONE = 0
    AMPERE_PLUS = 1


class LayerInformationFormat(_Enum):
    JSON = 1


class DataType(_Enum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT64 = 3
    BF16 = 4
    FP8 = 5


class ILogger:
    class Severity(_Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3

    def __init__(self) -> None: ...

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class IProgressMonitor:
    def __init__(self) -> None: ...

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        raise NotImplementedError

    def phase_finish(self, phase_name: str) -> None:
        raise NotImplementedError

    def step_complete(self, phase_name: str, step: int) -> bool:
        raise NotImplementedError


class ITensor:
    def __init__(self, dtype: DataType) -> None:
        self.dtype = dtype


class ILayer:
    def __init__(self, dtype: DataType) -> None:
        self.fake_dtype = dtype

    num_outputs = 1

    def get_output(self, index: int) -> ITensor:
        return ITensor(self.fake_dtype)


class INetworkDefinition:
    def __init__(self, flags: int) -> None:
        self.flags = flags
        self.fake_layers = [
            ILayer(DataType.HALF),
            ILayer(DataType.HALF),
            ILayer(DataType.FLOAT),
            ILayer(DataType.INT64),
        ]

    @property
    def num_layers(self) -> int:
        return len(self.fake_layers)

    def get_layer(self, index: int) -> ILayer:
        return self.fake_layers[index]


class IOptimizationProfile:
    def __init__(self) -> None:
        self.fake_shapes: dict[str, tuple] = {}

    def set_shape(self, input: str, min: tuple, opt: tuple, max: tuple) -> None:
        self.fake_shapes[input] = (min, opt, max)


class ITimingCache:
    def __init__(self, entries: set[str]) -> None:
        self.fake_entries = entries

    def combine(self, input_cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self.fake_entries |= input_cache.fake_entries
        return True

    def serialize(self) -> bytes:
        return CACHE + json.dumps(sorted(self.fake_entries)).encode()


class IBuilderConfig:
    def __init__(self) -> None:
        self.fake_flags: set[BuilderFlag] = set()
        self.fake_pools: dict[MemoryPoolType, int] = {}
        self.fake_profiles: list[IOptimizationProfile] = []
        self.fake_cache: ITimingCache | None = None
        self.builder_optimization_level = 3
        self.max_aux_streams: int | None = None
        self.progress_monitor: IProgressMonitor | None = None
        self.profiling_verbosity: ProfilingVerbosity | None = None
        self.hardware_compatibility_level = HardwareCompatibilityLevel.NONE

    def set_flag(self, flag: BuilderFlag) -> None:
        self.fake_flags.add(flag)

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self.fake_pools[pool] = pool_size

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self.fake_profiles.append(profile)
        return len(self.fake_profiles) - 1

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        if not serialized_timing_cache:
            return ITimingCache(set())
        if not serialized_timing_cache.startswith(CACHE):
            return None
        return ITimingCache(set(json.loads(serialized_timing_cache.removeprefix(CACHE))))

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        self.fake_cache = cache
        return True

    def get_timing_cache(self) -> ITimingCache | None:
        return self.fake_cache


class IPluginRegistry:
    def __init__(self) -> None:
        self.fake_libraries: list[str] = []

    def load_library(self, plugin_path: str) -> object | None:
        self.fake_libraries.append(plugin_path)
        return None if "foreign" in plugin_path else object()


class ParserError:
    def desc(self) -> str:
        return "no such operator"

    def node_name(self) -> str:
        return "block3.gelu"


class EngineInspector:
    def get_engine_information(self, format: LayerInformationFormat) -> str:
        layers = [{"Name": "a", "Outputs": [{"Name": "x", "Format/Datatype": word}]} for word in FAKE_WORDS]
        return json.dumps({"Layers": layers})


FAKE_WORDS = ("Half", "Row major linear FP16 format", "Float", "Int8", "BFloat16", "FP8", "Int64")


class ICudaEngine:
    num_layers = len(FAKE_WORDS)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector()

    def get_device_memory_size_for_profile_v2(self, profile_index: int) -> int:
        return 1000 * (profile_index + 1)


class Runtime:
    def __init__(self, logger: ILogger) -> None: ...

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        return ICudaEngine() if serialized_engine.startswith(b"plan") else None


def module(
    version: str = "10.3.0",
    *,
    parses: bool = True,
    measured: str = "conv",
    builds: bool = True,
    step: threading.Event | None = None,
) -> Any:
    """A fresh library of that version; `fake_config`, `fake_registry` and `fake_network` show what it was asked for.

    parses, builds: whether the parser and the builder succeed; measured: what the build adds to its timing cache;
    step: set at the first step of a build, which then goes on for many steps until it is stopped.
    """
    made: Any = ModuleType("tensorrt")
    made.__version__ = version
    for value in list(globals().values()):
        if isinstance(value, type) and not value.__name__.startswith("_") and value.__module__ == __name__:
            setattr(made, value.__name__, value)

    class Builder:
        def __init__(self, logger: ILogger) -> None:
            self.fake_logger = logger

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            made.fake_network = INetworkDefinition(flags)
            return made.fake_network

        def create_builder_config(self) -> IBuilderConfig:
            made.fake_config = IBuilderConfig()
            return made.fake_config

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile()

        def get_plugin_registry(self) -> IPluginRegistry:
            made.fake_registry = IPluginRegistry()
            return made.fake_registry

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
            monitor = config.progress_monitor
            assert monitor is not None
            steps = 4 if step is None else 1_000_000
            monitor.phase_start("Building engine", None, steps)
            for number in range(steps):
                if not monitor.step_complete("Building engine", number):
                    return None
                if step is not None:
                    step.set()
                    threading.Event().wait(0.005)
            monitor.phase_finish("Building engine")
            if config.fake_cache is not None:
                config.fake_cache.fake_entries.add(measured)
            if not builds:
                self.fake_logger.log(ILogger.Severity.ERROR, "no implementation for node block3.gelu")
                self.fake_logger.log(ILogger.Severity.INFO, "that was all")
                return None
            return b"plan of " + version.encode()

    class OnnxParser:
        def __init__(self, network: INetworkDefinition, logger: ILogger) -> None: ...

        num_errors = 1

        def parse_from_file(self, model: str) -> bool:
            assert Path(model).is_file()
            return parses

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    made.Builder, made.OnnxParser = Builder, OnnxParser
    return made
