"""Engine files for CPUs: OpenVINO's IR, and plain ONNX for ONNX Runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import onnx
from onnx import ModelProto

from dpm_edge.errors import SpecError
from dpm_edge.manifest import BatchRange
from dpm_edge.spec import ModelSpec
from dpm_edge.telemetry import import_onnxruntime, import_openvino

DEVICE = "CPU"


def write_openvino(model: ModelProto, folder: Path, spec: ModelSpec, batch: BatchRange, precision: str) -> str:
    """Write engine.xml and engine.bin; returns the name of the file to open.

    "fp32" and "int8" keep the graph's own numbers. "fp16" and "bf16" store the weights as float16; at run time the
    device computes bf16 where it has it, and fp16 on devices that prefer it.

    Raises:
        MissingLibrary: openvino is not installed.
        SpecError: bf16 was asked for, and this CPU computes none.
    """
    openvino = import_openvino("the openvino backend")
    core = openvino.Core()
    capabilities = core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and "BF16" not in capabilities:
        raise SpecError(
            f"expected a CPU that computes bf16, got one with {', '.join(capabilities)} (OpenVINO). "
            "Build fp32 or int8 instead"
        )
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.onnx"
        onnx.save_model(model, source)
        network = core.read_model(source)
        pre = spec.preprocessing
        rows = openvino.Dimension(batch.low, batch.high)
        network.reshape(openvino.PartialShape([rows, 3, pre.height, pre.width]))
        openvino.save_model(network, folder / "engine.xml", compress_to_fp16=precision in ("fp16", "bf16"))
    return "engine.xml"


def write_onnxruntime(model: ModelProto, folder: Path, spec: ModelSpec, batch: BatchRange, precision: str) -> str:
    """Write engine.onnx; returns its name. Float16 graphs are never written: ONNX Runtime's CPU provider can crash.

    Raises:
        MissingLibrary: onnxruntime is not installed.
    """
    import_onnxruntime("the onnxruntime backend")  # an engine that cannot be opened here cannot be verified here
    onnx.save_model(model, folder / "engine.onnx")
    return "engine.onnx"
