"""INT8 by quantise/dequantise pairs (Q/DQ) around the products with weights, calibrated on real crops.

Symmetric int8, one scale per output channel of a weight, one per activation: what OpenVINO, ONNX Runtime and
TensorRT all take. Biases, softmax, LayerNorm, GELU and the final normalisation stay in float.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from dpm_edge.build.portable import INPUT
from dpm_edge.errors import MissingLibrary

QUANTISED = ("Conv", "MatMul", "Gemm")
PEAK = 16.0
"""An activation whose largest value is over so many times its root mean square shares one int8 scale badly: of 127
steps, eight are left for its ordinary values. Its product stays in float."""
OUTLIER_CROPS = 16
"""Crops on which `peaked` looks."""


def quantise(model: ModelProto, crops: Iterable[NDArray[np.float32]], keep_float: Iterable[str] = ()) -> ModelProto:
    """A float32 graph as Q/DQ int8.

    Args:
        model: what `portable.read` gives; not changed.
        crops: preprocessed inputs (n, 3, H, W) float32 to calibrate on, one call of the graph each.
        keep_float: names of further nodes to leave in float, beside the products of two activations.

    Raises:
        MissingLibrary: onnxruntime is not installed.
    """
    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise MissingLibrary("onnxruntime", "INT8 calibration", "pip install 'dpm-edge[cpu]'") from error
    logger = logging.getLogger()
    level = logger.level
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "float.onnx", Path(scratch) / "int8.onnx"
        onnx.save_model(model, source)
        logger.setLevel(logging.ERROR)  # it recommends a preprocessing step that has been done
        try:
            quantize_static(
                source,
                target,
                _Reader(crops),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                nodes_to_exclude=[*products_of_activations(model), *keep_float],
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,  # TensorRT's parser refuses int32 biases
                },
            )
        finally:
            logger.setLevel(level)
        return onnx.load_model(target)


def products_of_activations(model: ModelProto) -> list[str]:
    """Names of the MatMul nodes without a weight: queries by keys, attention by values."""
    weights = {t.name for t in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and not weights & set(n.input)]


def peaked(model: ModelProto, crops: NDArray[np.float32]) -> list[str]:
    """Names of the products with weights whose activation, on `crops` (n, 3, H, W), has outliers beyond PEAK.

    Vision transformers have a few such activations, most of them inside an early MLP ("massive activations",
    arXiv 2402.17762).
    """
    import onnxruntime

    weights = {t.name for t in model.graph.initializer}
    inputs = {n.name: n.input[0] for n in model.graph.node if n.op_type in QUANTISED and weights & set(n.input)}
    watched = ModelProto()
    watched.CopyFrom(model)
    names = sorted(set(inputs.values()) - {INPUT})
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    values = dict(zip(names, session.run(names, {INPUT: crops})))
    ratio = {name: float(np.abs(x).max() / max(np.sqrt(np.mean(np.square(x))), 1e-12)) for name, x in values.items()}
    return [node for node, name in inputs.items() if ratio.get(name, 0.0) > PEAK]


class _Reader:
    """What ONNX Runtime's calibration asks for its inputs."""

    def __init__(self, crops: Iterable[NDArray[np.float32]]) -> None:
        self._crops: Iterator[NDArray[np.float32]] = iter(crops)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next input by name; None when there are no more."""
        crop = next(self._crops, None)
        return None if crop is None else {INPUT: crop}
