"""INT8: which products are quantised, how, and what is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import numpy_helper

from dpm_edge.build import portable
from dpm_edge.build.quantise import peaked, products_of_activations, quantise
from dpm_edge.images import preprocess, read_image


@pytest.fixture(scope="module")
def inputs(crops: Path, portable_path: Path) -> np.ndarray:
    spec = portable.read(portable_path).spec
    return preprocess([read_image(p) for p in sorted(crops.iterdir())], spec.preprocessing)


@pytest.fixture(scope="module")
def int8(portable_path: Path, inputs: np.ndarray) -> onnx.ModelProto:
    return quantise(portable.read(portable_path).model, (x[None] for x in inputs[:12]))


def producers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {out: node for node in model.graph.node for out in node.output}


def test_products_with_weights_read_dequantised_inputs_and_the_others_do_not(int8: onnx.ModelProto) -> None:
    made_by, float_products = producers(int8), 0
    for node in int8.graph.node:
        if node.op_type in ("Conv", "Gemm") or node.op_type == "MatMul":
            kinds = [made_by[name].op_type if name in made_by else "" for name in node.input[:2]]
            if node.op_type == "MatMul" and kinds[1] != "DequantizeLinear":
                float_products += 1
            else:
                assert kinds == ["DequantizeLinear"] * 2, node.name
    assert float_products == 2 * 2, "queries by keys and attention by values, in each of two blocks"


def test_scales_are_symmetric_and_weights_per_channel(int8: onnx.ModelProto) -> None:
    tensors = {t.name: numpy_helper.to_array(t) for t in int8.graph.initializer}
    weights = 0
    for node in int8.graph.node:
        if node.op_type == "DequantizeLinear":
            assert (tensors[node.input[2]] == 0).all(), node.name
            assert tensors[node.input[2]].dtype == np.int8
            values = tensors.get(node.input[0])
            if values is not None and values.ndim >= 2:
                weights += 1
                assert tensors[node.input[1]].size in values.shape[:2] and tensors[node.input[1]].size > 1
    assert weights == 1 + 2 * 4 + 7 + 1, "patches, four per block, seven of the mask generator, and its linear"


def test_int8_keeps_the_features(portable_path: Path, int8: onnx.ModelProto, inputs: np.ndarray) -> None:
    def run(model: onnx.ModelProto) -> list[np.ndarray]:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(["feature", "mask"], {"images": inputs[12:]})

    exact, got = run(portable.read(portable_path).model), run(int8)
    assert (exact[0] * got[0]).sum(1).min() > 0.99
    assert np.abs(exact[1] - got[1]).max() < 0.05


def test_keep_float_keeps_a_node_float(portable_path: Path, inputs: np.ndarray) -> None:
    model = portable.read(portable_path).model
    patches = next(n.name for n in model.graph.node if n.op_type == "Conv")
    kept = quantise(model, [inputs[:1]], keep_float=[patches])
    made_by = producers(kept)
    conv = next(n for n in kept.graph.node if n.name == patches)
    assert not any(made_by[n].op_type == "DequantizeLinear" for n in conv.input if n in made_by)
    assert len(products_of_activations(model)) == 4


def test_openvino_really_multiplies_in_int8(int8: onnx.ModelProto, tmp_path: Path, inputs: np.ndarray) -> None:
    """The compiled graph's own account of each product's arithmetic."""
    onnx.save(int8, tmp_path / "int8.onnx")
    compiled = openvino.Core().compile_model(tmp_path / "int8.onnx", "CPU", {"PERF_COUNT": True})
    request = compiled.create_infer_request()
    request.infer([inputs[:1]])
    products = [p for p in request.profiling_info if p.node_type.startswith("FullyConnected")]
    assert len(products) >= 2 * 4
    floats = [p.node_name for p in products if not p.exec_type.lower().endswith("i8")]
    assert not floats, f"still in float: {floats}"


def test_products_of_activations_with_outliers_are_found() -> None:
    """Two products in a row; one channel between them is made 200 times larger: the second product is named."""
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("MatMul", ["images", "first"], ["hidden"], name="first"),
            onnx.helper.make_node("MatMul", ["hidden", "second"], ["feature"], name="second"),
        ],
        "two products",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 512])],
        [onnx.helper.make_tensor_value_info("feature", onnx.TensorProto.FLOAT, ["n", 4])],
    )
    draw = np.random.default_rng(0)
    first = draw.normal(size=(512, 1024)).astype(np.float32)
    second = draw.normal(size=(1024, 4)).astype(np.float32)
    for factor, wanted in ((1.0, []), (200.0, ["second"])):
        scaled = first.copy()
        scaled[:, 7] *= factor
        graph.ClearField("initializer")
        graph.initializer.extend([numpy_helper.from_array(scaled, "first"), numpy_helper.from_array(second, "second")])
        made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
        assert peaked(made, draw.normal(size=(50, 512)).astype(np.float32)) == wanted
