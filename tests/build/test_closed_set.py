"""Closed-set logits: native operators against `dpm_edge.metrics` in float64, the plugin node against its own format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
from onnx import ModelProto, helper, numpy_helper

from dpm_edge.build import portable
from dpm_edge.build.closed_set import closed_set
from dpm_edge.build.low_precision import lower
from dpm_edge.build.quantise import quantise
from dpm_edge.errors import SpecError
from dpm_edge.metrics import similarity

PEOPLE = 5


@pytest.fixture(scope="module")
def model(portable_path: Path) -> ModelProto:
    return portable.read(portable_path).model


@pytest.fixture(scope="module")
def prototypes() -> np.ndarray:
    """Rows of very different lengths: the metric is of their directions."""
    draw = np.random.default_rng(3)
    return (draw.standard_normal((PEOPLE, 48)) * 10.0 ** np.arange(-2, 3)[:, None]).astype(np.float32)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(4).standard_normal((3, 3, 64, 64)).astype(np.float32)


def with_onnxruntime(model: ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"images": images})))


def with_openvino(model: ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    compiled = openvino.Core().compile_model(openvino.Core().read_model(model.SerializeToString()), "CPU",
                                             {"INFERENCE_PRECISION_HINT": "f32"})  # fmt: skip
    return {out.any_name: values for out, values in compiled([images]).items()}


def expected(found: dict[str, np.ndarray], prototypes: np.ndarray) -> np.ndarray:
    feature, mask = found["feature"].astype(np.float64), found["mask"].astype(np.float64)
    return similarity(feature, prototypes.astype(np.float64), query_masks=mask)


@pytest.mark.parametrize("run", [with_onnxruntime, with_openvino])
def test_native_logits_are_the_masked_similarity(run, model: ModelProto, prototypes, images) -> None:
    made = closed_set(model, prototypes, native=True)
    onnx.checker.check_model(made, full_check=True)
    found = run(made, images)
    assert found["logits"].shape == (3, PEOPLE) and found["logits"].dtype == np.float32
    np.testing.assert_allclose(found["logits"], expected(found, prototypes), atol=2e-6)
    before = run(model, images)
    np.testing.assert_array_equal(found["feature"], before["feature"])
    assert [o.name for o in model.graph.output] == ["feature", "mask"], "the graph that came is as it was"


def test_a_mask_of_zeros_gives_zero_as_the_metric_does(prototypes: np.ndarray) -> None:
    """Feature and mask straight from the inputs, so that both can be zero."""
    names = ("feature", "mask")
    values = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 48]) for n in ("image", "gates")]
    nodes = [helper.make_node("Identity", [v.name], [n]) for v, n in zip(values, names)]
    outputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 48]) for n in names]
    graph = helper.make_graph(nodes, "identities", values, outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    feature = np.eye(2, 48, dtype=np.float32)
    gates = np.stack([np.zeros(48), np.ones(48)]).astype(np.float32)
    session = onnxruntime.InferenceSession(closed_set(model, prototypes, native=True).SerializeToString())
    logits = session.run(["logits"], {"image": feature, "gates": gates})[0]
    assert (logits[0] == 0).all()
    np.testing.assert_allclose(logits[1], prototypes[:, 1] / np.linalg.norm(prototypes, axis=1), rtol=1e-5)


def test_the_plugin_node_has_what_tensorrt_looks_for(model: ModelProto, prototypes, images) -> None:
    """Name, version, namespace and inputs as kernels/csrc/tensorrt declares them, and the same numbers as native."""
    made = closed_set(model, prototypes, native=False)
    onnx.checker.check_model(made)
    (node,) = [n for n in made.graph.node if n.domain]
    fields = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert (node.op_type, fields) == ("DpmMaskedSimilarity", {"plugin_version": b"1", "plugin_namespace": b"dpm_edge"})
    assert node.output == ["logits"] and len(node.input) == 3
    targets = next(numpy_helper.to_array(t) for t in made.graph.initializer if t.name == node.input[2])
    assert targets.dtype == np.float16 and targets.shape == (PEOPLE, 128), "48 values, filled up with zeros"
    fed = ModelProto()
    fed.CopyFrom(made)
    fed.graph.node.remove(node)
    del fed.graph.output[:]
    fed.graph.output.extend(onnx.ValueInfoProto(name=n) for n in ("feature", "mask", *node.input[:2]))
    found = with_onnxruntime(fed, images)
    query, mask = (found[name].astype(np.float64) for name in node.input[:2])
    assert query.shape == mask.shape == (3, 128) and not query[:, 48:].any() and not mask[:, 48:].any()
    got = similarity(query, targets.astype(np.float64), query_masks=mask)
    np.testing.assert_allclose(got, expected(found, prototypes), atol=1e-3)


def test_a_width_that_fits_needs_no_padding() -> None:
    outputs = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 256]) for n in ("feature", "mask")]
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["batch", 256])
    nodes = [helper.make_node("Identity", ["images"], [o.name]) for o in outputs]
    model = helper.make_model(helper.make_graph(nodes, "wide", [images], outputs))
    made = closed_set(model, np.eye(2, 256, dtype=np.float32), native=False)
    assert [n.op_type for n in made.graph.node] == ["Identity", "Identity", "DpmMaskedSimilarity"]
    assert made.graph.node[-1].input[:2] == ["feature", "mask"]


def test_logits_stay_float32_in_every_precision(model: ModelProto, prototypes: np.ndarray, images: np.ndarray) -> None:
    for graph in (
        lower(model, "fp16"),
        quantise(model, [images]),
        lower(quantise(model, [images], kind="fp8"), "fp16"),
    ):
        made = closed_set(graph, prototypes, native=True)
        typed = onnx.shape_inference.infer_shapes(made).graph
        types = {v.name: v.type.tensor_type.elem_type for v in [*typed.value_info, *typed.output]}
        assert {types[name] for name in types if name.startswith("logits")} == {onnx.TensorProto.FLOAT}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (np.ones((2, 47), np.float32), r"\(2, 47\); \(people, 48\)"),
        (np.ones((0, 48), np.float32), r"\(0, 48\); \(people, 48\)"),
        (np.ones(48, np.float32), r"\(48,\); \(people, 48\)"),
        (np.array([[1.0] * 48, [np.nan] * 48], np.float32), "row 1 .* is not finite"),
        (np.array([[1.0] * 48, [0.0] * 48], np.float32), "row 1 .* is zero"),
    ],
)
def test_prototypes_that_cannot_be(model: ModelProto, rows: np.ndarray, says: str) -> None:
    with pytest.raises(SpecError, match=says):
        closed_set(model, rows, native=True)


def test_logits_are_added_once(model: ModelProto, prototypes: np.ndarray) -> None:
    with pytest.raises(SpecError, match="logits already"):
        closed_set(closed_set(model, prototypes, native=True), prototypes, native=True)
