"""INT8 and FP8 (E4M3) as quantise/dequantise pairs (Q/DQ) around the products with weights, calibrated on real crops:
how large the activations get is read off the graph itself, with one crop in memory at a time.

Symmetric: one scale per output channel of a weight, one per activation, no zero points, which is what TensorRT,
OpenVINO and ONNX Runtime all take for INT8. FP8 is for TensorRT on GPUs of compute capability 8.9 and later; one scale
per channel of an FP8 weight wants TensorRT 10.6. Biases, softmax, LayerNorm, GELU and the last norm stay in float.

scale = largest |x| seen / largest value of the type (127, or E4M3's 448: arXiv 2209.05433).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, numpy_helper

from dpm_edge.build.portable import INPUT
from dpm_edge.errors import SpecError, nearest
from dpm_edge.telemetry import import_onnxruntime

QUANTISED = ("Conv", "MatMul", "Gemm")
PEAK = 16.0
"""An activation whose largest value is over so many times its root mean square shares one int8 scale badly: of 127
steps, eight are left for its ordinary values. Its product stays in float."""
THIN = 32
"""See `thin_convolutions`."""
OUTLIER_CROPS = 16
"""Crops on which `peaked` looks."""
OPSET = 19
"""First with float8, and with scales of any float type: TensorRT's parser gives what a DQ makes the type of its scale,
and from here on wants a Q and its data of one type (onnx-tensorrt, onnxOpImporters.cpp); `lower` keeps to that."""
SMALLEST_SCALE = 2.0**-20
"""What float16 still holds to a few per cent; a channel of smaller weights is as good as zero."""


@dataclass(frozen=True)
class Kind:
    """A type to quantise to."""

    dtype: np.dtype
    largest: float
    ops: tuple[str, ...]
    """Products that are quantised: TensorRT has FP8 kernels for matrix products, for few convolutions."""

    def round(self, x: NDArray[np.float32]) -> NDArray:
        """Values, already divided by their scale, in the type: saturated, to nearest, ties to even."""
        saturated = np.clip(x, -self.largest, self.largest)
        return (np.rint(saturated) if self.dtype == np.int8 else saturated).astype(self.dtype)


KINDS = {
    "int8": Kind(np.dtype(np.int8), 127.0, QUANTISED),
    "fp8": Kind(np.dtype(ml_dtypes.float8_e4m3fn), 448.0, ("MatMul", "Gemm")),
}


def quantise(
    model: ModelProto,
    crops: Iterable[NDArray[np.float32]],
    keep_float: Iterable[str] = (),
    kind: str = "int8",
    weights: float = 1.0,
) -> ModelProto:
    """A float32 graph as Q/DQ.

    Args:
        model: what `portable.read` gives; not changed.
        crops: preprocessed inputs (n, 3, H, W) float32 to calibrate on, one call of the graph each, none of them kept:
            a generator will do, and `progress.track` around it shows the remaining time.
        keep_float: names of further nodes to leave in float, beside the products of two activations.
        kind: "int8" or "fp8".
        weights: share of the type's range that weights take. CPUs without VNNI add two products of a convolution in 16
            bits, which overflow where both factors take the whole of theirs: 0.5 leaves them room.

    Raises:
        SpecError: the kind is unknown, or there are no crops.
        MissingLibrary: onnxruntime is not installed.
    """
    if kind not in KINDS:
        raise SpecError(f"expected a type to quantise to, got {kind!r}.{nearest(kind, KINDS)}")
    quantised = ModelProto()
    quantised.CopyFrom(model)
    products = _products_with_weights(model, KINDS[kind].ops, set(keep_float))
    largest = ranges(model, {node.input[0] for node in products}, crops)
    _Rewriting(quantised, KINDS[kind], largest, weights).run({node.name for node in products})
    return quantised


def thin_convolutions(model: ModelProto) -> list[str]:
    """Names of the convolutions that sum fewer than THIN products, or give fewer than THIN channels.

    A mobile network's depthwise and first ones: the channels of what they read differ in range, and one scale serves
    all; they cost little, and lose most.
    """
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    found = [n for n in model.graph.node if n.op_type == "Conv" and n.input[1] in shapes]
    sizes = {n.name: (int(np.prod(shapes[n.input[1]][1:])), shapes[n.input[1]][0]) for n in found}
    return [name for name, size in sizes.items() if min(size) < THIN]


def products_of_activations(model: ModelProto) -> list[str]:
    """Names of the MatMul nodes without a weight: queries by keys, attention by values."""
    weights = {t.name for t in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and not weights & set(n.input)]


def peaked(model: ModelProto, crops: NDArray[np.float32]) -> list[str]:
    """Names of the products with weights whose activation, on `crops` (n, 3, H, W), has outliers beyond PEAK.

    Vision transformers have a few such activations, most of them inside an early MLP ("massive activations",
    arXiv 2402.17762).
    """
    products = _products_with_weights(model, QUANTISED, set())
    ratio = outlier_ratio(model, {node.input[0] for node in products}, crops)
    return [node.name for node in products if ratio[node.input[0]] > PEAK]


def ranges(model: ModelProto, names: Collection[str], crops: Iterable[NDArray[np.float32]]) -> dict[str, float]:
    """The largest |x| of each named tensor over all crops (n, 3, H, W).

    Raises:
        SpecError: there are no crops.
        MissingLibrary: onnxruntime is not installed.
    """
    found = dict.fromkeys(names, 0.0)
    seen = False
    for largest, _ in _statistics(model, sorted(names), crops):
        seen = True
        found = {name: max(found[name], largest[name]) for name in found}
    if not seen:
        raise SpecError("expected some hundred real crops of people to calibrate on, got none")
    return found


def outlier_ratio(model: ModelProto, names: Collection[str], crops: NDArray[np.float32]) -> dict[str, float]:
    """The largest |x| of each named tensor over its root mean square, on crops (n, 3, H, W)."""
    ((largest, square),) = _statistics(model, sorted(names), [crops])
    return {name: largest[name] / max(np.sqrt(square[name]), 1e-12) for name in names}


def _statistics(
    model: ModelProto, names: list[str], crops: Iterable[NDArray[np.float32]]
) -> Iterator[tuple[dict[str, float], dict[str, float]]]:
    """For each call of the graph the largest |x| and the mean of x², by name. The graph itself reduces them."""
    onnxruntime = import_onnxruntime("calibration")
    watched = ModelProto()
    watched.CopyFrom(model)
    graph, outputs = watched.graph, []
    graph.initializer.append(numpy_helper.from_array(np.array([-1]), "calibration.flat"))
    for name in names:
        flat, absolute, top, square = (f"{name}.calibration.{what}" for what in ("flat", "abs", "max", "square"))
        squared = f"{square}d"
        graph.node.extend(
            [
                onnx.helper.make_node("Reshape", [name, "calibration.flat"], [flat]),
                onnx.helper.make_node("Abs", [flat], [absolute]),
                onnx.helper.make_node("ReduceMax", [absolute], [top], keepdims=0),
                onnx.helper.make_node("Mul", [flat, flat], [squared]),
                onnx.helper.make_node("ReduceMean", [squared], [square], keepdims=0),
            ]
        )
        outputs += [top, square]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    for crop in crops:
        values = [float(v) for v in session.run(outputs, {INPUT: crop})]
        yield dict(zip(names, values[::2])), dict(zip(names, values[1::2]))


def _products_with_weights(model: ModelProto, ops: Iterable[str], keep_float: set[str]) -> list[NodeProto]:
    """Nodes of these types whose second input is a weight, but for those kept in float.

    Kept are also stacks of matrices (the stripes' projections), of which ONNX Runtime has no int8 product.
    """
    rank = {t.name: len(t.dims) for t in model.graph.initializer}
    found = [n for n in model.graph.node if n.op_type in ops and n.input[1] in rank and n.name not in keep_float]
    return [n for n in found if n.op_type == "Conv" or rank[n.input[1]] == 2]


class _Rewriting:
    """One pass over a graph: products read their activation and their weight through Q/DQ."""

    def __init__(self, model: ModelProto, kind: Kind, largest: dict[str, float], weights: float) -> None:
        self.model, self.kind, self.largest = model, kind, largest
        self.largest_weight = np.floor(weights * kind.largest)
        self.weights = {t.name: t for t in model.graph.initializer}
        self.added: list[NodeProto] = []
        self.made: set[str] = set()

    def run(self, products: set[str]) -> None:
        """Rewrite the graph in place."""
        graph = self.model.graph
        nodes: list[NodeProto] = []
        for node in graph.node:
            self.added = []
            if node.name in products:
                weight = node.input[1]
                node.input[0] = self._activation(node.input[0])
                node.input[1] = self._weight(weight, _channel_axis(node, len(self.weights[weight].dims)))
            nodes += [*self.added, node]
        del graph.node[:]
        graph.node.extend(nodes)
        read = {name for node in nodes for name in node.input}
        kept = [t for t in graph.initializer if t.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)
        for opset in self.model.opset_import:
            if opset.domain in ("", "ai.onnx"):
                opset.version = max(opset.version, OPSET)  # from 18 to 19 operators gained types and lost none
        self.model.ir_version = max(self.model.ir_version, 9)  # first with float8

    def _constant(self, name: str, values: NDArray) -> str:
        self.model.graph.initializer.append(numpy_helper.from_array(values, name))
        return name

    def _activation(self, name: str) -> str:
        """Q/DQ of an activation, one pair however many products read it."""
        out = f"{name}.dequantised"
        if out not in self.made:
            self.made.add(out)
            scale = np.float32(max(self.largest[name] / self.kind.largest, SMALLEST_SCALE))
            arguments = [
                self._constant(f"{name}.scale", np.asarray(scale)),
                self._constant(f"{name}.zero", np.zeros((), self.kind.dtype)),
            ]
            middle = f"{name}.quantised"
            self.added += [
                onnx.helper.make_node("QuantizeLinear", [name, *arguments], [middle], name=f"{name}.quantise"),
                onnx.helper.make_node("DequantizeLinear", [middle, *arguments], [out], name=f"{name}.dequantise"),
            ]
        return out

    def _weight(self, name: str, axis: int) -> str:
        """A weight stored in the type, with its DQ."""
        out = f"{name}.dequantised"
        if out not in self.made:
            self.made.add(out)
            values = numpy_helper.to_array(self.weights[name])
            others = tuple(i for i in range(values.ndim) if i != axis)
            scale = np.maximum(np.abs(values).max(axis=others) / self.largest_weight, SMALLEST_SCALE).astype(np.float32)
            arguments = [
                self._constant(f"{name}.quantised", self.kind.round(values / np.expand_dims(scale, others))),
                self._constant(f"{name}.scale", scale),
                self._constant(f"{name}.zero", np.zeros(scale.shape, self.kind.dtype)),
            ]
            self.added.append(
                onnx.helper.make_node("DequantizeLinear", arguments, [out], name=f"{name}.dequantise", axis=axis)
            )
        return out


def _channel_axis(node: NodeProto, rank: int) -> int:
    """The axis of a product's output channels in its weight."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        transposed = any(a.name == "transB" and a.i for a in node.attribute)
        return 0 if transposed else 1
    return rank - 1
