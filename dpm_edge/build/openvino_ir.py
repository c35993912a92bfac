"""An OpenVINO IR (.xml and .bin) as an ONNX graph, so that it is built, quantised and moved like every other network.

Covers the operators of the person re-identification networks of OpenVINO's model zoo and their like; another one is
named. `foreign.read` compares the graph with OpenVINO's own answer on the file.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from dpm_edge.build.adopt import OPSET, Run
from dpm_edge.errors import CheckpointError
from dpm_edge.telemetry import import_openvino

_TYPES = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT,  # stored halves are widened
    "i64": TensorProto.INT64,
    "i32": TensorProto.INT32,
    "u8": TensorProto.UINT8,
    "boolean": TensorProto.BOOL,
}
_ALIKE = {
    "Add": "Add",
    "Subtract": "Sub",
    "Multiply": "Mul",
    "Divide": "Div",
    "Power": "Pow",
    "Maximum": "Max",
    "Minimum": "Min",
    "Relu": "Relu",
    "Sigmoid": "Sigmoid",
    "Tanh": "Tanh",
    "Sqrt": "Sqrt",
    "Exp": "Exp",
    "ShapeOf": "Shape",
    "Transpose": "Transpose",
    "Squeeze": "Squeeze",
    "Unsqueeze": "Unsqueeze",
}
"""OpenVINO's type → ONNX's, where inputs and meaning are the same."""


def load(path: Path) -> tuple[ModelProto, Run]:
    """The graph of an IR, and what runs the file in OpenVINO in float32, one picture at a time.

    Raises:
        CheckpointError: it is missing, damaged, or has an operator that is not translated.
        MissingLibrary: openvino is not installed.
    """
    openvino = import_openvino("reading an OpenVINO IR")
    if not path.with_suffix(".bin").is_file():
        raise CheckpointError(
            f"expected {path.name} with its weights in {path.with_suffix('.bin').name} beside it, got none. Copy both."
        )
    core = openvino.Core()
    try:
        network = core.read_model(path)
    except Exception as error:
        last = (str(error).strip().splitlines() or ["?"])[-1]
        raise CheckpointError(
            f"expected an OpenVINO IR, got {path}, which OpenVINO cannot read ({last[:200]})."
        ) from error
    made = _Translation(path.name).run(network)

    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        found = np.concatenate([np.array(compiled(one[None])[0]) for one in inputs])
        return found.reshape(len(found), -1)

    return made, run


class _Translation:
    """One pass over the operators of a network, in the order of their computing."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.nodes: list[NodeProto] = []
        self.weights: list[TensorProto] = []
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.tensors: dict[tuple[str, int], str] = {}
        self.special: dict[str, Callable[[Any, list[str], str, dict[str, Any]], None]] = {
            "Convolution": self._convolution,
            "GroupConvolution": self._convolution,
            "MaxPool": self._pool,
            "AvgPool": self._pool,
            "Reshape": self._reshape,
            "ReduceMean": self._reduce,
            "ReduceSum": self._reduce,
            "ReduceMax": self._reduce,
            "MVN": self._mvn,
            "PRelu": self._prelu,
            "MatMul": self._matmul,
            "Gather": self._gather,
        }

    def run(self, network: Any) -> ModelProto:
        """The network as an ONNX graph."""
        for op in network.get_ordered_ops():
            self._translate(op)
        graph = helper.make_graph(self.nodes, "ir", self.inputs, self.outputs, self.weights)
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        return made

    def _translate(self, op: Any) -> None:
        kind, attributes = op.get_type_name(), op.get_attributes()
        inputs = [self._tensor(source) for source in op.input_values()]
        if kind == "Parameter":
            self.inputs.append(self._value(op.output(0), op.output(0).get_any_name()))
        elif kind == "Constant":
            values = op.data
            values = values.astype(np.float32) if values.dtype == np.float16 else values
            self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), self._tensor(op.output(0))))
        elif kind == "Result":
            source = op.input_value(0)
            name = source.get_any_name()
            self._add("Identity", inputs, name)
            self.outputs.append(self._value(source, name))
        elif kind == "Convert":
            self._add("Cast", inputs, self._tensor(op.output(0)), to=self._type(attributes["destination_type"]))
        elif kind == "Concat":
            self._add("Concat", inputs, self._tensor(op.output(0)), axis=int(attributes["axis"]))
        elif kind == "Softmax":
            self._add("Softmax", inputs, self._tensor(op.output(0)), axis=int(attributes["axis"]))
        elif kind == "Clamp":
            bounds = [self._constant(op, what, np.float32(attributes[what])) for what in ("min", "max")]
            self._add("Clip", [*inputs, *bounds], self._tensor(op.output(0)))
        elif kind in self.special:
            self.special[kind](op, inputs, self._tensor(op.output(0)), attributes)
        elif kind in _ALIKE:
            constant = kind == "Transpose" and self._known(op.input_value(1))
            extra = {"perm": constant} if constant else {}
            self._add(_ALIKE[kind], inputs[:1] if kind == "Transpose" else inputs, self._tensor(op.output(0)), **extra)
        else:
            raise CheckpointError(
                f"expected an IR of the operators that dpm-edge translates, got {kind} ({op.get_friendly_name()}) in "
                f"{self.name}. Give the ONNX that it was converted from."
            )

    def _tensor(self, output: Any) -> str:
        """The name of an operator's output in the ONNX graph."""
        node = output.get_node()
        if node.get_type_name() == "Parameter":
            return output.get_any_name()
        return f"{node.get_friendly_name()}:{output.get_index()}"

    def _value(self, output: Any, name: str) -> Any:
        sizes = [d.get_length() if d.is_static else "batch" if i == 0 else None for i, d in
                 enumerate(output.get_partial_shape())]  # fmt: skip
        return helper.make_tensor_value_info(name, self._type(output.get_element_type().get_type_name()), sizes)

    def _type(self, name: str) -> int:
        if name not in _TYPES:
            raise CheckpointError(f"expected float32 or float16 tensors in {self.name}, got {name}. Give a float IR.")
        return _TYPES[name]

    def _add(self, kind: str, inputs: list[str], out: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [out], **attributes))
        return out

    def _constant(self, op: Any, what: str, values: Any) -> str:
        name = f"{op.get_friendly_name()}:{what}"
        self.weights.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _known(self, output: Any) -> list[int]:
        """The values of a constant input, such as axes."""
        node = output.get_node()
        if node.get_type_name() != "Constant":
            raise CheckpointError(
                f"expected constant axes in {self.name}, got computed ones ({node.get_friendly_name()}). Give the ONNX "
                "that it was converted from."
            )
        return [int(v) for v in np.ravel(node.data)]

    def _convolution(self, op: Any, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
        weight, extra = inputs[1], {}
        if op.get_type_name() == "GroupConvolution":
            groups, made, *rest = list(op.input(1).get_shape())
            weight = self._add(
                "Reshape", [weight, self._constant(op, "shape", np.array([groups * made, *rest]))], f"{out}.weight"
            )
            extra = {"group": int(groups)}
        self._add(
            "Conv",
            [inputs[0], weight],
            out,
            strides=list(attributes["strides"]),
            dilations=list(attributes["dilations"]),
            pads=[*attributes["pads_begin"], *attributes["pads_end"]],
            **extra,
        )

    def _pool(self, op: Any, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
        average = op.get_type_name() == "AvgPool"
        extra = {"count_include_pad": int(not attributes["exclude-pad"])} if average else {}
        self._add(
            "AveragePool" if average else "MaxPool",
            inputs,
            out,
            kernel_shape=list(attributes["kernel"]),
            strides=list(attributes["strides"]),
            pads=[*attributes["pads_begin"], *attributes["pads_end"]],
            ceil_mode=int(str(attributes["rounding_type"]).lower().startswith("ceil")),
            **extra,
        )

    def _reshape(self, op: Any, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
        shape = self._add("Cast", inputs[1:], f"{out}.shape", to=TensorProto.INT64)
        node = op.input_value(1).get_node()
        if node.get_type_name() == "Constant":  # not behind a Cast, so that a fixed batch in it can be freed
            shape = self._constant(op, "target", np.array(self._known(op.input_value(1)), np.int64))
        self._add("Reshape", [inputs[0], shape], out, allowzero=int(not attributes["special_zero"]))

    def _reduce(self, op: Any, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
        axes = self._constant(op, "axes", np.array(self._known(op.input_value(1)), np.int64))
        self._add(op.get_type_name(), [inputs[0], axes], out, keepdims=int(attributes["keep_dims"]))

    def _mvn(self, op: Any, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
        """(x − mean) / sqrt(variance + eps), or with eps outside the root."""
        x, axes = inputs[0], self._constant(op, "axes", np.array(self._known(op.input_value(1)), np.int64))
        tiny = self._constant(op, "eps", np.float32(attributes["eps"]))
        centred = self._add("Sub", [x, self._add("ReduceMean", [x, axes], f"{out}.mean")], f"{out}.centred")
        if not attributes["normalize_variance"]:
            self._add("Identity", [centred], out)
            return
        square = self._add("Mul", [centred, centred], f"{out}.square")
        variance = self._add("ReduceMean", [square, axes], f"{out}.variance")
        if "inside" in str(attributes["eps_mode"]).lower():
            root = self._add("Sqrt", [self._add("Add", [variance, tiny], f"{out}.floor")], f"{out}.root")
        else:
            root = self._add("Add", [self._add("Sqrt", [variance], f"{out}.deviation"), tiny], f"{out}.root")
        self._add("Div", [centred, root], out)

    def _prelu(self, op: Any, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
        """OpenVINO's slope (C,) belongs to the second dimension; ONNX's is aligned at the last."""
        rank, slope = len(op.input(0).get_partial_shape()), inputs[1]
        if len(op.input(1).get_shape()) == 1 and rank > 2:
            shape = self._constant(op, "shape", np.array([-1, *[1] * (rank - 2)], np.int64))
            slope = self._add("Reshape", [slope, shape], f"{out}.slope")
        self._add("PRelu", [inputs[0], slope], out)

    def _matmul(self, op: Any, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
        for place, what in enumerate(("transpose_a", "transpose_b")):
            if attributes[what]:
                rank = len(op.input(place).get_partial_shape())
                turned = [*range(rank - 2), rank - 1, rank - 2]
                inputs[place] = self._add("Transpose", [inputs[place]], f"{out}.{what}", perm=turned)
        self._add("MatMul", inputs, out)

    def _gather(self, op: Any, inputs: list[str], out: str, attributes: dict[str, Any]) -> None:
        (axis,) = self._known(op.input_value(2))
        self._add("Gather", inputs[:2], out, axis=axis)
