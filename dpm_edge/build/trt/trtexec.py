"""The command line with which NVIDIA's trtexec builds and times the same plan.

Its options are those of trtexec's own source (NVIDIA/TensorRT, samples/common/sampleOptions.cpp), 10.3 and 11.1.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from dpm_edge.build.portable import INPUT
from dpm_edge.build.trt.options import PlanOptions
from dpm_edge.manifest import TYPED, BatchRange
from dpm_edge.spec import Preprocessing

PROGRAM = {"tensorrt": "trtexec", "tensorrt-rtx": "tensorrt_rtx"}
COMPATIBLE = {"ampere_plus": "ampere+", "same_compute_capability": "sameComputeCapability"}


def command(
    backend: str, pre: Preprocessing, profiles: Sequence[BatchRange], options: PlanOptions, plugin: Path | None = None
) -> str:
    """To be run inside the engine directory: builds from the typed graph, then times the last profile's best size with
    CUDA graphs and without copies between host and device."""
    told = [PROGRAM[backend], f"--onnx={TYPED}"]
    if backend == "tensorrt":
        told.append("--stronglyTyped")  # the default from TensorRT 11 on
    for index, batch in enumerate(profiles):
        if len(profiles) > 1:
            told.append(f"--profile={index}")
        for name, rows in (("min", batch.low), ("opt", batch.best), ("max", batch.high)):
            told.append(f"--{name}Shapes={_shape(rows, pre)}")
    if options.workspace_mib is not None:
        told.append(f"--memPoolSize=workspace:{options.workspace_mib}")
    if options.optimisation_level is not None:
        told.append(f"--builderOptimizationLevel={options.optimisation_level}")
    if options.low_memory:
        told.append("--maxAuxStreams=0")
    if options.version_compatible:
        told += ["--versionCompatible", "--excludeLeanRuntime"]
    if options.hardware_compatibility != "none":
        told.append(f"--hardwareCompatibilityLevel={COMPATIBLE[options.hardware_compatibility]}")
    if options.strip_weights:
        told.append("--refit")  # timed with its weights: stripping changes the file, not the kernels
    if plugin is not None:
        told.append(f"--dynamicPlugins={plugin}")
    if len(profiles) > 1:
        told.append(f"--useProfile={len(profiles) - 1}")
    told += [f"--shapes={_shape(profiles[-1].best, pre)}", "--useCudaGraph", "--noDataTransfers", "--useSpinWait"]
    return shlex.join(told)


def _shape(rows: int, pre: Preprocessing) -> str:
    """The input's name and shape as trtexec wants them: "images:8x3x256x128"."""
    return f"{INPUT}:{rows}x3x{pre.height}x{pre.width}"
