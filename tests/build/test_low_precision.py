"""float16 and bfloat16 written into the graph: where the islands are, and what is lost."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from dpm_edge.build import low_precision, portable
from dpm_edge.build.low_precision import TYPES, lower
from dpm_edge.build.quantise import quantise
from dpm_edge.errors import SpecError

LOST = {"fp16": (1e-6, 5e-4), "bf16": (5e-5, 4e-3), "int8": (1e-4, 2e-3), "fp8": (1e-3, 8e-3)}
"""What 1 − cosine of a feature and the error of a mask may be."""


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def model(portable_path: Path) -> ModelProto:
    return portable.read(portable_path).model


def checked(model: ModelProto) -> ModelProto:
    """The graph itself, once ONNX's checker has inferred every type. Conv has bfloat16 from opset 22 on."""
    newest = ModelProto()
    newest.CopyFrom(model)
    newest.opset_import[0].version = max(22, model.opset_import[0].version)
    onnx.checker.check_model(newest, full_check=True)
    return model


def types(model: ModelProto) -> dict[str, int]:
    """Element type of every tensor, as ONNX infers them."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    found = {v.name: v.type.tensor_type.elem_type for v in [*graph.input, *graph.value_info, *graph.output]}
    return found | {t.name: t.data_type for t in graph.initializer}


def in_float64(model: ModelProto, images: np.ndarray) -> list[np.ndarray]:
    """The float32 graph with every weight, and so every operator, in float64, by ONNX's own reference evaluator."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for tensor in wide.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    wide.graph.input[0].type.tensor_type.elem_type = TensorProto.DOUBLE
    return ReferenceEvaluator(wide).run(None, {"images": images.astype(np.float64)})


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("path", ["portable_path", "paper_path"], ids=["lite, GELU", "paper, QuickGELU"])
def test_islands_are_float32_and_everything_else_is_low(
    precision: str, path: str, request: pytest.FixtureRequest
) -> None:
    portable_onnx = portable.read(request.getfixturevalue(path))
    blocks, model = portable_onnx.spec.layers, portable_onnx.model
    lowered = checked(lower(model, precision))
    kind, found = TYPES[precision][0], types(lowered)
    weights = {t.name for t in lowered.graph.initializer}
    floats = Counter()
    for node in lowered.graph.node:
        used = {found.get(name) for name in (*node.input, *node.output)} & {kind, TensorProto.FLOAT}
        assert node.op_type == "Cast" or len(used) < 2, f"{node.name} mixes types"
        residual = node.op_type == "Add" and not weights & set(node.input)
        if node.op_type in low_precision.NORMS or residual:
            assert used == {TensorProto.FLOAT}, node.name
        if used == {TensorProto.FLOAT}:
            floats[node.op_type] += 1
    assert floats["LayerNormalization"] == 2 + 2 * blocks and floats["Softmax"] == blocks
    assert not {"MatMul", "Gemm", "Conv", "Split", "Erf", "Relu", "MaxPool"} & set(floats), floats
    assert floats["Add"] == 2 * blocks + 1, "two residual sums a block, and the neck's shift"
    assert floats["Mul"] == 1 and floats["Sigmoid"] == 1, "the neck's factor and the mask's gates"
    assert [o.type.tensor_type.elem_type for o in lowered.graph.output] == [TensorProto.FLOAT] * 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_casts_only_where_islands_begin_and_end(precision: str, model: ModelProto) -> None:
    lowered = lower(model, precision)
    casts = [n for n in lowered.graph.node if n.op_type == "Cast"]
    assert len({(c.input[0], c.attribute[0].i) for c in casts}) == len(casts), "a tensor is cast once"
    blocks, mask_blocks = 2, 2
    assert len(casts) == 1 + 1 + 6 * blocks + mask_blocks + 1, (
        "the images, the patch tokens; in a block: two norms out, softmax in and out, two residual branches; the "
        "tokens of the mask; its gates"
    )
    assert sum(len(t.raw_data) for t in lowered.graph.initializer) < 0.6 * sum(
        len(t.raw_data) for t in model.graph.initializer
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("quantised", ["", "int8", "fp8"])
def test_computes_what_float64_computes(precision: str, quantised: str, model: ModelProto, images: np.ndarray) -> None:
    """By ONNX's own reference evaluator: ONNX Runtime is never given a float16 graph."""
    feature, mask = in_float64(model, images)
    source = quantise(model, [images], kind=quantised) if quantised else model
    got = ReferenceEvaluator(checked(lower(source, precision))).run(None, {"images": images})
    assert got[0].dtype == got[1].dtype == np.float32
    cosine, gates = np.add(LOST[precision], LOST[quantised] if quantised else 0)
    assert 1 - (feature * got[0]).sum(1).min() < cosine
    np.testing.assert_allclose(got[1], mask, atol=gates)


def test_a_quantised_graph_keeps_its_products_and_lowers_the_rest(model: ModelProto, images: np.ndarray) -> None:
    """Every DQ hands on float16, which is what the rest of a TensorRT INT8 engine should run in."""
    lowered = lower(quantise(model, [images]), "fp16")
    found = types(lowered)
    dequantised = [n.output[0] for n in lowered.graph.node if n.op_type == "DequantizeLinear"]
    assert dequantised and all(found[name] == TensorProto.FLOAT16 for name in dequantised)
    quantised = [n for n in lowered.graph.node if n.op_type == "QuantizeLinear"]
    assert all(found[n.input[0]] == found[n.input[1]] for n in quantised), "TensorRT wants one type for both"
    assert {found[n.input[0]] for n in quantised} == {TensorProto.FLOAT, TensorProto.FLOAT16}, (
        "what a LayerNorm makes is quantised from float32, without a rounding between"
    )


def test_a_weight_beyond_float16_is_refused(model: ModelProto) -> None:
    huge = ModelProto()
    huge.CopyFrom(model)
    weight = next(t for t in huge.graph.initializer if t.name == "mask_generator.linear.weight")
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), 1e5, np.float32), weight.name))
    with pytest.raises(SpecError, match=r"got 1e\+05 in .*linear\.weight.*bf16"):
        lower(huge, "fp16")
    lower(huge, "bf16")
