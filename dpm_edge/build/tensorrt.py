"""TensorRT and TensorRT for RTX: a strongly typed network from the ONNX, one optimisation profile.

One code path for TensorRT 10.3 to 11.x: the types are in the graph (`low_precision`, `quantise`), never in flags.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import ModuleType

from onnx import ModelProto

from dpm_edge.errors import EngineError, MissingLibrary
from dpm_edge.manifest import BatchRange
from dpm_edge.spec import ModelSpec

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "pip install 'dpm-edge[tensorrt]' on x86; on a Jetson TensorRT comes with JetPack "
    "(sudo apt install nvidia-jetpack, then a virtual environment with --system-site-packages)",
    "tensorrt-rtx": "pip install tensorrt-rtx-cu13",
}
PLAN = "engine.plan"


def write_plan(model: ModelProto, folder: Path, spec: ModelSpec, batch: BatchRange, backend: str) -> str:
    """Build a plan for the GPU of this machine and write it; returns its file name.

    Raises:
        MissingLibrary: the library is not installed; the message says how it is on this kind of machine.
        EngineError: the parser or the builder refuses the network, with the library's own reasons.
    """
    trt = load_library(backend)
    logger = trt.Logger(trt.Logger.ERROR)
    try:
        builder = trt.Builder(logger)
    except (RuntimeError, TypeError) as error:
        raise EngineError(
            f"{backend} {trt.__version__} cannot build here ({error}); it wants a GPU and its driver. "
            "Run the same command on the device that is to run the engine"
        ) from error
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        reasons = "; ".join(str(parser.get_error(i)) for i in range(parser.num_errors))
        raise EngineError(f"{backend} {trt.__version__} cannot parse the graph: {reasons}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    pre = spec.preprocessing
    shapes = [(rows, 3, pre.height, pre.width) for rows in (batch.low, batch.best, batch.high)]
    profile.set_shape(network.get_input(0).name, *shapes)
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{backend} {trt.__version__} built no engine; its reasons stand above on stderr")
    (folder / PLAN).write_bytes(plan)
    return PLAN


def load_library(backend: str) -> ModuleType:
    """Import the library of a backend.

    Raises:
        MissingLibrary: it is not installed.
    """
    try:
        return import_module(MODULES[backend])
    except ImportError as error:
        raise MissingLibrary(MODULES[backend], f"the {backend} backend", INSTALL[backend]) from error


def _strongly_typed(trt: ModuleType) -> int:
    """The network flag of strong typing; TensorRT for RTX has none, its networks always are."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def device_name() -> str:
    """The first GPU's name and compute capability, such as "Orin sm_87"; plans are tied to it.

    "GPU" where it cannot be asked (cuda-bindings is not installed, or there is no driver).
    """
    try:
        from cuda.bindings import runtime
    except ImportError:
        return "GPU"
    error, properties = runtime.cudaGetDeviceProperties(0)
    if error != runtime.cudaError_t.cudaSuccess:
        return "GPU"
    return f"{properties.name.decode()} sm_{properties.major}{properties.minor}"
