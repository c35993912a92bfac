"""Small networks of "another project": the arithmetic of `tiny_engine`'s feature, exported in other ways.

feature = vec(average-pooled input) · P, of any norm; `tiny_engine.expected` says what it is in float64.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tiny_engine
from onnx import ModelProto, TensorProto, helper, numpy_helper

DIMENSION = tiny_engine.SPEC.width
PREPROCESSING = {"color": "rgb", "mean": "0.4,0.45,0.5", "std": "0.2,0.25,0.3"}
"""What `tiny_engine.expected` does, as it is typed."""


def network(
    *,
    batch: int | str = "batch",
    size: tuple[int | str, int | str] = (64, 64),
    opset: int = 18,
    kind: int = TensorProto.FLOAT,
    output: str = "embedding",
    weights: np.ndarray | None = None,
) -> ModelProto:
    """The network: its batch free or fixed (a Reshape then holds the number), its weights of float32 or float16."""
    dtype = np.float16 if kind == TensorProto.FLOAT16 else np.float32
    project = tiny_engine.weights()[0] if weights is None else weights
    rows = batch if isinstance(batch, int) else -1
    nodes = [
        helper.make_node("AveragePool", ["data"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Reshape", ["pooled", "shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "P"], [output]),
    ]
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("data", kind, [batch, 3, *size])],
        [helper.make_tensor_value_info(output, kind, [batch, project.shape[1]])],
        [
            numpy_helper.from_array(project.astype(dtype), "P"),
            numpy_helper.from_array(np.array([rows, project.shape[0]], np.int64), "shape"),
        ],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, producer_name="theirs"
    )


def save(path: Path, **changes: Any) -> Path:
    """Write `network(**changes)`."""
    onnx.save(network(**changes), path)
    return path


def single(op: str, kind: int, shape: list[Any], out_kind: int, out: list[Any], **attributes: Any) -> ModelProto:
    """A graph of one operator between an input `x` and an output `y`."""
    graph = helper.make_graph(
        [helper.make_node(op, ["x"], ["y"], **attributes)],
        "single",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", out_kind, out)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
