"""Build a plan: parse the typed graph, set the builder up, build, and say what came out.

B images · H×W pixels
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import onnx
from onnx import ModelProto

from dpm_edge.build.portable import INPUT
from dpm_edge.build.trt import layers, timing_cache, trtexec
from dpm_edge.build.trt.monitor import progress_monitor, stoppable
from dpm_edge.build.trt.options import PlanOptions
from dpm_edge.errors import EngineError, SpecError
from dpm_edge.files import sha256
from dpm_edge.gpu import Gpu, probe
from dpm_edge.manifest import TYPED, BatchRange, GpuCard
from dpm_edge.runtime.gpu.library import collecting_logger, load_library
from dpm_edge.spec import Preprocessing

if TYPE_CHECKING:
    import tensorrt

PLAN = "engine.plan"
NO_GPU = Gpu(name="GPU", compute_capability="", memory=0, integrated=False, driver="", cuda="")
"""What a plan is said to be for where the GPU cannot be asked: TensorRT for RTX builds without one."""


@dataclass(frozen=True)
class WrittenPlan:
    """A plan that was built, and what a manifest says of it."""

    file: str
    """Its name in the engine directory."""
    device: str
    """The GPU it is for, such as "Orin sm_87"."""
    card: GpuCard
    resources: dict[str, Any]
    """Seconds of the build, bytes of the plan, layers, device memory of each profile where the plan can be opened."""
    trtexec: str
    """The command that builds and times the same plan."""


def write_plan(
    model: ModelProto,
    folder: Path,
    pre: Preprocessing,
    profiles: Sequence[BatchRange],
    backend: str,
    options: PlanOptions,
    *,
    plugin: Path | None = None,
    quiet: bool = False,
) -> WrittenPlan:
    """Write the typed graph and its plan for the GPU of this machine.

    Args:
        model: a typed graph with input `images` (B, 3, H, W).
        folder: where engine.onnx and engine.plan are written.
        pre: H and W.
        profiles: batch sizes, one optimisation profile each.
        backend: "tensorrt" or "tensorrt-rtx".
        options: limits and flags.
        plugin: the plugin library, where the graph holds its nodes.
        quiet: show no progress.

    Raises:
        MissingLibrary: the library is not installed; the message says how it is on this kind of machine.
        SpecError: this version of the library has no such option.
        EngineError: the parser or the builder refuses the network, with the library's own reasons.
        KeyboardInterrupt: Ctrl-C; the builder has stopped.
    """
    trt = load_library(backend)
    gpu = probe() or NO_GPU
    onnx.save_model(model, folder / TYPED)
    cache_key = timing_cache.key(gpu, trt.__version__) if options.timing_cache and backend == "tensorrt" else ""
    cache = options.timing_cache / f"{cache_key}.timing" if options.timing_cache and cache_key else None
    log = collecting_logger(trt)
    monitor = progress_monitor(trt, quiet=quiet)
    start = time.perf_counter()
    try:
        plan, counted = stoppable(
            lambda: _build(trt, log, folder / TYPED, pre, profiles, options, plugin, cache, monitor), monitor.stop
        )
    except EngineError as error:
        reasons = f" ({'; '.join(log.reasons[-3:])})" if log.reasons else ""
        raise EngineError(f"{backend} {trt.__version__} {error}{reasons}") from error
    finally:
        monitor.close()
    (folder / PLAN).write_bytes(plan)
    resources = {
        "build_seconds": round(time.perf_counter() - start, 1),
        "plan_bytes": (folder / PLAN).stat().st_size,
        "network_layers": sum(counted.values()),
        "layers_of": "network",
    }
    if gpu is not NO_GPU:
        counted, opened = _look_inside(trt, log, folder / PLAN, len(profiles))
        resources |= opened
    card = GpuCard(
        name=gpu.name,
        compute_capability=gpu.compute_capability,
        tensorrt=trt.__version__,
        driver=gpu.driver,
        cuda=gpu.cuda,
        plugin=sha256(plugin) if plugin else None,
        timing_cache=cache_key,
        hardware_compatibility=options.hardware_compatibility,
        version_compatible=options.version_compatible,
        weights="stripped" if options.strip_weights else "whole",
        layers=counted,
    )
    device = gpu.name if gpu is NO_GPU else gpu.device
    return WrittenPlan(PLAN, device, card, resources, trtexec.command(backend, pre, profiles, options, plugin))


def _build(
    trt: ModuleType,
    log: tensorrt.ILogger,
    graph: Path,
    pre: Preprocessing,
    profiles: Sequence[BatchRange],
    options: PlanOptions,
    plugin: Path | None,
    cache: Path | None,
    monitor: tensorrt.IProgressMonitor,
) -> tuple[Any, dict[str, int]]:
    """The plan (a buffer), and the network's layers by precision."""
    try:
        builder = trt.Builder(log)
    except (RuntimeError, TypeError) as error:
        raise EngineError(
            f"cannot build here ({error}); it wants a GPU and its driver. "
            "Run the same command on the device that is to run the engine"
        ) from error
    if plugin is not None:
        registry = builder.get_plugin_registry()
        if registry.load_library(str(plugin)) is None:
            raise EngineError(f"cannot load the plugin library {plugin}: it was built for another TensorRT or machine")
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph)):
        faults: list[tensorrt.ParserError] = [parser.get_error(i) for i in range(parser.num_errors)]
        reasons = "; ".join(f"{fault.desc()} (node {fault.node_name()})" for fault in faults)
        raise EngineError(f"cannot parse the graph: {reasons}")
    config = builder.create_builder_config()
    config.progress_monitor = monitor
    for batch in profiles:
        profile = builder.create_optimization_profile()
        profile.set_shape(INPUT, *((rows, 3, pre.height, pre.width) for rows in (batch.low, batch.best, batch.high)))
        if config.add_optimization_profile(profile) < 0:
            raise EngineError(f"refuses batch sizes {batch}")
    _configure(trt, config, options)
    if cache is not None:
        timing_cache.load(cache, config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError("built no engine")
    if cache is not None:
        timing_cache.save(cache, config)
    return plan, layers.of_network(trt, network)


def _configure(trt: ModuleType, config: tensorrt.IBuilderConfig, options: PlanOptions) -> None:
    """Limits and flags; the details of each layer are kept in the plan, for the inspector."""
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    if options.tactic_mib is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.TACTIC_DRAM, options.tactic_mib << 20)
    if options.optimisation_level is not None:
        config.builder_optimization_level = options.optimisation_level
    if options.low_memory:
        config.max_aux_streams = 0
    if options.version_compatible:  # a plan never carries a runtime's code with it
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT)  # other weights may come, not only the same again
    levels = {
        "ampere_plus": trt.HardwareCompatibilityLevel.AMPERE_PLUS,
        "same_compute_capability": getattr(trt.HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY", None),
    }
    if options.hardware_compatibility != "none":
        level = levels[options.hardware_compatibility]
        if level is None:
            raise SpecError(
                f"TensorRT {trt.__version__} has no hardware compatibility {options.hardware_compatibility!r}; "
                "ampere_plus, none, or a newer TensorRT is wanted"
            )
        config.hardware_compatibility_level = level


def _look_inside(
    trt: ModuleType, log: tensorrt.ILogger, plan: Path, profiles: int
) -> tuple[dict[str, int], dict[str, Any]]:
    """Layers by precision, and what the plan needs, of a plan that was built here just now."""
    runtime = trt.Runtime(log)
    engine: tensorrt.ICudaEngine = runtime.deserialize_cuda_engine(plan.read_bytes())
    if engine is None:
        raise EngineError("cannot open the plan that it built")
    inspector = engine.create_engine_inspector()
    counted = layers.of_plan(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return counted, {
        "layers_of": "plan",
        "plan_layers": engine.num_layers,
        "device_memory_bytes": [engine.get_device_memory_size_for_profile_v2(index) for index in range(profiles)],
    }


def _strongly_typed(trt: ModuleType) -> int:
    """The network flag of strong typing; TensorRT for RTX may have none, its networks always are."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)
