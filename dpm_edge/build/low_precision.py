"""float16 or bfloat16 written into the graph, for libraries that take each operator's type from it (TensorRT).

Products (MatMul, Gemm, Conv) run in the low type with their weights stored in it; everything else, residual sums,
LayerNorm, softmax and the final normalisation, stays in float32. The same split that autocast makes in training.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

TYPES = {"fp16": (TensorProto.FLOAT16, np.float16), "bf16": (TensorProto.BFLOAT16, ml_dtypes.bfloat16)}
PRODUCTS = ("MatMul", "Gemm", "Conv")


def lower(model: ModelProto, precision: str) -> ModelProto:
    """A copy of a float32 graph whose products run in "fp16" or "bf16"; inputs and outputs stay float32."""
    kind, dtype = TYPES[precision]
    lowered = ModelProto()
    lowered.CopyFrom(model)
    graph = lowered.graph
    weights = {t.name: t for t in graph.initializer}
    stored: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            nodes.append(node)
            continue
        for place, name in enumerate(node.input):
            if name in weights:
                if name not in stored:
                    stored[name] = f"{name}.{precision}"
                    values = numpy_helper.to_array(weights[name]).astype(dtype)
                    graph.initializer.append(numpy_helper.from_array(values, stored[name]))
                node.input[place] = stored[name]
            elif name:
                cast = f"{node.name}.input{place}.{precision}"
                nodes.append(onnx.helper.make_node("Cast", [name], [cast], name=cast, to=kind))
                node.input[place] = cast
        out, low = node.output[0], f"{node.name}.output.{precision}"
        node.output[0] = low
        nodes += [node, onnx.helper.make_node("Cast", [low], [out], name=f"{low}.float32", to=TensorProto.FLOAT)]
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(lowered)
    return lowered


def _drop_unused(model: ModelProto) -> None:
    """Remove initialisers that no node reads any more."""
    read = {name for node in model.graph.node for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
