"""Every operator of an imported ONNX in torch: what ONNX Runtime computes, in each way that attributes ask for."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dpm_edge.model.imported.onnx_graph import Node, read_node, run, tensor_of, text_of
from dpm_edge.model.imported.onnx_operators import OPERATORS, REDUCTIONS

DRAW = np.random.default_rng(0)


def some(*shape: int) -> np.ndarray:
    """Numbers around 0."""
    return DRAW.standard_normal(shape).astype(np.float32)


def above(*shape: int) -> np.ndarray:
    """Numbers above 0."""
    return DRAW.uniform(0.2, 2, shape).astype(np.float32)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


X, PICTURE, TRUTH = some(2, 3, 4), some(2, 4, 7, 6), DRAW.random((2, 3)) > 0.5
ODD = {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}
CEILED = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1}
CASES: list[tuple[str, list[Any], dict[str, Any]]] = [
    *((name, [X], {}) for name in ("Abs", "Ceil", "Cos", "Erf", "Exp", "Floor", "HardSwish", "Mish", "Neg", "Relu")),
    *((name, [X], {}) for name in ("Round", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Tan", "Tanh", "Elu")),
    *((name, [X], {}) for name in ("Selu", "LeakyRelu", "HardSigmoid", "Identity", "Dropout", "Shape", "Flatten")),
    *((name, [above(2, 3)], {}) for name in ("Log", "Reciprocal", "Sqrt")),
    *((name, [X, some(3, 1)], {}) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean", "PRelu")),
    *((name, [X, np.round(X)], {}) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    *((name, [TRUTH, TRUTH[:1]], {}) for name in ("And", "Or")),
    *((name, [above(2, 3, 4), ints(1)], {"keepdims": keep}) for name in REDUCTIONS for keep in (0, 1)),
    ("ReduceLogSum", [above(2, 3, 4), ints(-1, 0)], {}),
    ("ReduceL1", [X, ints(-1)], {}),
    ("ReduceProd", [X, ints(0, 2)], {}),
    ("ReduceMean", [X], {}),
    ("ReduceSum", [X], {"noop_with_empty_axes": 1}),
    ("Not", [TRUTH], {}),
    ("Where", [TRUTH, some(2, 3), some(1, 3)], {}),
    ("Div", [ints(7, -7), ints(2, 2)], {}),
    ("Pow", [above(2, 3), np.float32(2.5)], {}),
    ("Elu", [X], {"alpha": 0.5}),
    ("LeakyRelu", [X], {"alpha": 0.3}),
    ("HardSigmoid", [X], {"alpha": 0.4, "beta": 0.3}),
    ("Gelu", [X], {}),
    ("Gelu", [X], {"approximate": "tanh"}),
    ("Max", [X, some(4), some(1)], {}),
    ("Mean", [X, some(4), some(1)], {}),
    ("Clip", [X, np.float32(-0.2), np.float32(0.5)], {}),
    ("Clip", [X, None, np.float32(0.5)], {}),
    ("Cast", [X], {"to": TensorProto.INT64}),
    ("Cast", [TRUTH], {"to": TensorProto.FLOAT}),
    ("MatMul", [X, some(4, 5)], {}),
    ("MatMul", [X, some(2, 4, 5)], {}),
    ("Gemm", [some(4, 2), some(3, 4), some(3)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    ("Gemm", [some(2, 4), some(4, 3)], {}),
    ("Einsum", [X, some(5, 4)], {"equation": "bij,kj->bik"}),
    ("Softmax", [X], {"axis": 1}),
    ("LogSoftmax", [X], {}),
    ("LpNormalization", [X], {"axis": 1, "p": 2}),
    ("BatchNormalization", [PICTURE, some(4), some(4), some(4), above(4)], {"epsilon": 0.01}),
    ("BatchNormalization", [some(3, 4), some(4), some(4), some(4), above(4)], {}),
    ("InstanceNormalization", [PICTURE, some(4), some(4)], {"epsilon": 0.01}),
    ("LayerNormalization", [X, some(4), some(4)], {"epsilon": 0.01}),
    ("LayerNormalization", [X, some(3, 4)], {"axis": 1}),
    ("GroupNormalization", [PICTURE, some(4), some(4)], {"num_groups": 2}),
    ("Conv", [PICTURE, some(5, 4, 3, 3), some(5)], {"pads": [1, 1, 1, 1], "strides": [2, 1]}),
    ("Conv", [PICTURE, some(4, 2, 3, 2)], {"pads": [0, 1, 2, 0], "group": 2, "dilations": [2, 1]}),
    ("Conv", [PICTURE, some(5, 4, 3, 2)], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("Conv", [PICTURE, some(5, 4, 3, 2)], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}),
    ("Conv", [PICTURE, some(5, 4, 3, 2)], {"auto_pad": "VALID"}),
    ("Conv", [some(2, 3, 9), some(5, 3, 3)], {}),
    ("ConvTranspose", [PICTURE, some(4, 5, 3, 3)], {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}),
    ("AveragePool", [PICTURE], ODD),
    ("AveragePool", [PICTURE], {**ODD, "count_include_pad": 1}),
    ("AveragePool", [PICTURE], CEILED),
    ("AveragePool", [PICTURE], {**CEILED, "count_include_pad": 1}),
    ("AveragePool", [PICTURE], {"kernel_shape": [3, 3], "auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    ("MaxPool", [PICTURE], ODD),
    ("MaxPool", [PICTURE], CEILED),
    ("MaxPool", [PICTURE], {"kernel_shape": [2, 2], "dilations": [2, 2]}),
    ("GlobalAveragePool", [PICTURE], {}),
    ("GlobalMaxPool", [PICTURE], {}),
    ("Pad", [PICTURE, ints(0, 1, 2, 3, 0, 0, 1, 0), np.float32(0.5)], {}),
    ("Pad", [PICTURE, ints(1, 2), None, ints(-1)], {"mode": "reflect"}),
    ("Pad", [PICTURE, ints(0, 0, 2, 1, 0, 0, 1, 3)], {"mode": "edge"}),
    ("Resize", [PICTURE, None, np.array([1, 1, 2, 2], np.float32)],
     {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}),
    ("Resize", [PICTURE, None, None, ints(2, 4, 9, 5)], {"mode": "linear"}),
    ("Resize", [PICTURE, None, None, ints(2, 4, 9, 9)],
     {"mode": "linear", "coordinate_transformation_mode": "align_corners"}),
    ("Resize", [PICTURE, None, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "cubic"}),
    ("Shape", [PICTURE], {"start": 1, "end": -1}),
    ("Reshape", [X, ints(0, -1, 2)], {}),
    ("Reshape", [X, ints(4, 6)], {"allowzero": 1}),
    ("Flatten", [PICTURE], {"axis": 2}),
    ("Flatten", [PICTURE], {"axis": -1}),
    ("Transpose", [X], {"perm": [1, 2, 0]}),
    ("Transpose", [X], {}),
    ("Squeeze", [some(1, 3, 1), ints(-1)], {}),
    ("Squeeze", [some(1, 3, 1)], {}),
    ("Unsqueeze", [X, ints(0, -1)], {}),
    ("Concat", [X, X], {"axis": -2}),
    ("Split", [PICTURE, ints(1, 3)], {"axis": 1}),
    ("Split", [some(7, 2)], {"num_outputs": 2}),
    ("Slice", [PICTURE, ints(1, -3), ints(2**62, -1), ints(1, -1)], {}),
    ("Slice", [PICTURE, ints(5, 0), ints(-(2**62), 5), ints(2, 3), ints(-2, 2)], {}),
    ("Gather", [X, np.int64(-1)], {"axis": 1}),
    ("Gather", [X, np.array([[0, -1], [2, 1]])], {"axis": 1}),
    ("Expand", [some(3, 1), ints(2, 1, 4)], {}),
    ("Tile", [X, ints(1, 2, 1)], {}),
    ("ConstantOfShape", [ints(2, 3)], {"value": helper.make_tensor("v", TensorProto.INT64, [1], [7])}),
    ("ConstantOfShape", [ints(2, 3)], {}),
    ("Range", [np.int64(1), np.int64(9), np.int64(3)], {}),
    ("DepthToSpace", [some(1, 8, 2, 3)], {"blocksize": 2}),
    ("DepthToSpace", [some(1, 8, 2, 3)], {"blocksize": 2, "mode": "CRD"}),
    ("SpaceToDepth", [PICTURE[:, :, :6]], {"blocksize": 2}),
]  # fmt: skip
"""Operator, inputs (None: left out), attributes."""
REFUSED: list[tuple[str, list[Any], dict[str, Any], str]] = [
    ("Resize", [PICTURE, None, None, ints(2, 4, 9, 5)], {"mode": "linear", "antialias": 1}, "Resize with .*antialias"),
    ("Resize", [PICTURE, None, None, ints(2, 4, 9, 5)], {}, "Resize with mode=nearest"),
    ("AveragePool", [PICTURE], {"kernel_shape": [2, 2], "dilations": [2, 2]}, "AveragePool with dilations"),
    ("Pad", [PICTURE, ints(1, 0), None, ints(1)], {"mode": "reflect"}, "Pad with mode=reflect outside"),
    ("Cast", [X], {"to": TensorProto.UINT8}, "Cast with to=2"),
]


def in_onnxruntime(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> list[np.ndarray]:
    outputs = 2 if operator == "Split" else 1
    names = ["" if value is None else f"i{place}" for place, value in enumerate(inputs)]
    node = helper.make_node(operator, names, [f"o{i}" for i in range(outputs)], **attributes)
    weights = [numpy_helper.from_array(np.asarray(v), n) for n, v in zip(names, inputs) if v is not None]
    made = [helper.make_empty_tensor_value_info(name) for name in node.output]
    model = helper.make_model(
        helper.make_graph([node], "one", [], made, weights),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})


def in_torch(operator: str, inputs: list[Any], attributes: dict[str, Any]) -> list[torch.Tensor]:
    """Through the text that a checkpoint keeps."""
    attributes = {
        k: torch.from_numpy(np.array(numpy_helper.to_array(v))) if isinstance(v, TensorProto) else v
        for k, v in attributes.items()
    }
    names = tuple("" if value is None else f"i{place}" for place, value in enumerate(inputs))
    node = read_node(str(Node(operator, names, ("o0", "o1") if operator == "Split" else ("o0",), attributes)))
    return list(run(node, [None if v is None else torch.from_numpy(np.array(v)) for v in inputs]))


@pytest.mark.parametrize(
    ("operator", "inputs", "attributes"), CASES, ids=[f"{c[0]}-{place}" for place, c in enumerate(CASES)]
)
def test_an_operator_is_what_onnx_runtime_computes(
    operator: str, inputs: list[Any], attributes: dict[str, Any]
) -> None:
    wanted, got = (how(operator, inputs, attributes) for how in (in_onnxruntime, in_torch))
    assert len(wanted) == len(got)
    for theirs, ours in zip(wanted, got):
        assert ours.numpy().dtype == theirs.dtype and tuple(ours.shape) == theirs.shape
        np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-5, atol=1e-5)


def test_every_operator_has_a_case() -> None:
    assert set(OPERATORS) - {case[0] for case in CASES} == set()


@pytest.mark.parametrize(("operator", "inputs", "attributes", "message"), REFUSED, ids=[case[3] for case in REFUSED])
def test_a_use_that_torch_has_no_equal_for_is_named(
    operator: str, inputs: list[Any], attributes: dict[str, Any], message: str
) -> None:
    with pytest.raises(NotImplementedError, match=message):
        in_torch(operator, inputs, attributes)


@pytest.mark.parametrize(
    "text", ["y = Eval(x) {}", "y = Conv(x w) {}", 'y = Conv(x) {"a": }', "import os", 'y = Cast(x) {"value": "[1]"}']
)
def test_text_that_is_no_node_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        read_node(text)


@pytest.mark.parametrize("tensor", [torch.tensor([[1, -2]]), torch.tensor(True), torch.tensor([0.1, 1e-9])])
def test_a_constant_survives_its_text(tensor: torch.Tensor) -> None:
    read = tensor_of(text_of(tensor))
    assert read.dtype == tensor.dtype and torch.equal(read, tensor)
