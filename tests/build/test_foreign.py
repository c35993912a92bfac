"""Other projects' networks become engines that compute what their file does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import foreign_network
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_engine
from foreign_network import DIMENSION, PREPROCESSING, network, save, single
from onnx import TensorProto, helper, numpy_helper

from dpm_edge import families
from dpm_edge.build import build, foreign, portable
from dpm_edge.build.foreign import ForeignOptions
from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.images import preprocess
from dpm_edge.runtime import Engine
from dpm_edge.spec import ModelSpec

OPTIONS = ForeignOptions(**PREPROCESSING)
F, H, I64, U8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8


def built(path: Path, out: Path, crops: Path, options: ForeignOptions = OPTIONS, **more: Any) -> Engine:
    more = {"backend": "onnxruntime", "calibrate": crops, "progress": False, **more}
    build(path, out, foreign=options, **more)
    return Engine.load(out)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(a * b, axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_an_engine_gives_the_files_feature_a_mask_of_ones_and_no_visibility(
    backend: str, crops: Path, tmp_path: Path
) -> None:
    path, people = save(tmp_path / "theirs.onnx"), tiny_engine.people(5)
    with built(path, tmp_path / "engine", crops, backend=backend) as engine:
        found = engine.embed(people)
    np.testing.assert_allclose(found.features, tiny_engine.expected(people)[0], atol=2e-5)
    assert (found.masks == 1).all() and found.visibility is None and found.visibility_map is None
    manifest = engine.manifest
    assert manifest.verification["passed"] and manifest.verification["reference"].startswith("onnxruntime")
    assert (manifest.spec.name, manifest.spec.dimension, manifest.spec.masks) == ("theirs", DIMENSION, False)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch": 1},
        {"batch": 4},
        {"opset": 11},
        {"batch": 1, "opset": 9},
        {"kind": H},
        {"batch": 1, "kind": H, "opset": 12},
        {"size": ("height", "width")},
    ],
    ids=lambda changes: "-".join(map(str, changes.items())),
)
def test_fixed_batches_old_operator_sets_and_float16_files_work(changes: dict, crops: Path, tmp_path: Path) -> None:
    people = tiny_engine.people(5)
    options = ForeignOptions(**PREPROCESSING, input="64x64")
    with built(save(tmp_path / "theirs.onnx", **changes), tmp_path / "engine", crops, options) as engine:
        found = engine.embed(people).features
    assert cosines(found, tiny_engine.expected(people)[0]).min() > 1 - 1e-5


def test_weights_in_a_file_beside_it_work_and_a_missing_one_is_named(crops: Path, tmp_path: Path) -> None:
    onnx.save(network(), tmp_path / "theirs.onnx", save_as_external_data=True, location="theirs.data", size_threshold=0)
    people = tiny_engine.people(3)
    with built(tmp_path / "theirs.onnx", tmp_path / "engine", crops) as engine:
        np.testing.assert_allclose(engine.embed(people).features, tiny_engine.expected(people)[0], atol=2e-5)
    (tmp_path / "theirs.data").unlink()
    with pytest.raises(CheckpointError, match=r"weights in theirs\.data beside it, got none"):
        build(tmp_path / "theirs.onnx", tmp_path / "again", foreign=OPTIONS, progress=False)
    assert not (tmp_path / "again").exists()


def test_a_class_token_in_a_graph_of_fixed_batch_is_repeated_for_each_picture(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "shape": np.array([1, 3, 16]),
        "token": rng.standard_normal((1, 1, 16)).astype(np.float32),
        "first": np.array([0]),
        "P": rng.standard_normal((16, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("AveragePool", ["data"], ["pooled"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Reshape", ["pooled", "shape"], ["patches"]),
        helper.make_node("Concat", ["token", "patches"], ["tokens"], axis=1),
        helper.make_node("MatMul", ["tokens", "transposed"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["attention"], axis=-1),
        helper.make_node("MatMul", ["attention", "tokens"], ["mixed"]),
        helper.make_node("Gather", ["mixed", "first"], ["cls"], axis=1),
        helper.make_node("Squeeze", ["cls", "axis"], ["row"]),
        helper.make_node("MatMul", ["row", "P"], ["embedding"]),
    ]
    nodes.insert(3, helper.make_node("Transpose", ["tokens"], ["transposed"], perm=[0, 2, 1]))
    graph = helper.make_graph(
        nodes,
        "vit",
        [helper.make_tensor_value_info("data", F, [1, 3, 64, 64])],
        [helper.make_tensor_value_info("embedding", F, [1, 8])],
        [numpy_helper.from_array(v, k) for k, v in {**constants, "axis": np.array([1])}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    onnx.save(model, tmp_path / "vit.onnx")
    made = foreign.read(tmp_path / "vit.onnx", OPTIONS).model
    inputs = rng.standard_normal((3, 3, 64, 64)).astype(np.float32)
    theirs = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    ours = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = np.concatenate([theirs.run(None, {"data": one[None]})[0] for one in inputs])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    np.testing.assert_allclose(ours.run(["feature"], {"images": inputs})[0], wanted, atol=1e-5)


def test_a_batch_that_the_graph_mixes_up_is_refused_not_guessed(tmp_path: Path) -> None:
    model = single("ReduceMean", F, [1, 3, 64, 64], F, [1, 64], axes=[0, 1], keepdims=0)
    model.opset_import[0].version = 13
    del model.graph.output[:]
    model.graph.node[0].output[0] = "mean"
    model.graph.node.append(helper.make_node("Reshape", ["mean", "shape"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([1, 4096]), "shape"))
    model.graph.output.append(helper.make_tensor_value_info("y", F, [1, 4096]))
    onnx.save(model, tmp_path / "mixed.onnx")
    with pytest.raises(CheckpointError, match=r"mixed\.onnx.*Export it again with a free batch"):
        foreign.read(tmp_path / "mixed.onnx", OPTIONS)


def test_a_feature_of_four_dimensions_is_flattened(tmp_path: Path) -> None:
    model = single("GlobalAveragePool", F, ["batch", 3, 64, 64], F, ["batch", 3, 1, 1])
    onnx.save(model, tmp_path / "pooled.onnx")
    assert foreign.read(tmp_path / "pooled.onnx", OPTIONS).spec.dimension == 3


def test_normalisation_over_a_channel_that_does_not_vary_gives_no_nan(tmp_path: Path) -> None:
    """ONNX's own definition of the operator takes a difference that rounding makes negative."""
    model = network()
    model.graph.node[0].output[0] = "raw"
    model.graph.node.insert(1, helper.make_node("MeanVarianceNormalization", ["raw"], ["pooled"], axes=[2, 3]))
    onnx.save(model, tmp_path / "norm.onnx")
    made = foreign.read(tmp_path / "norm.onnx", OPTIONS).model
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    constant = np.full((2, 3, 64, 64), 0.067235835, np.float32)
    assert np.isfinite(session.run(["feature"], {"images": constant})[0]).all()


def test_an_openvino_ir_gives_what_openvino_gives(crops: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    theirs = openvino.convert_model(save(tmp_path / "theirs.onnx", batch=1))
    openvino.save_model(theirs, tmp_path / "ir.xml", compress_to_fp16=True)
    people = tiny_engine.people(4)
    with built(tmp_path / "ir.xml", tmp_path / "engine", crops) as engine:
        found = engine.embed(people).features
    compiled = openvino.Core().compile_model(tmp_path / "ir.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = preprocess(people, engine.spec.preprocessing)
    wanted = np.concatenate([compiled(one[None])[0] for one in inputs])
    assert cosines(found, wanted).min() > 1 - 1e-6
    assert cosines(found, tiny_engine.expected(people)[0]).min() > 1 - 1e-4  # weights of float16


def test_an_ir_without_its_weights_or_with_other_operators_is_named(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    from openvino import opset13 as ops

    x = ops.parameter([1, 3, 64, 64], np.float32)
    openvino.save_model(openvino.Model([ops.lrn(x, [1], 1.0, 0.5, 1.0, 3)], [x]), tmp_path / "ir.xml")
    with pytest.raises(CheckpointError, match=r"got LRN .* in ir\.xml\. Give the ONNX"):
        foreign.read(tmp_path / "ir.xml", OPTIONS)
    (tmp_path / "ir.bin").unlink()
    with pytest.raises(CheckpointError, match=r"weights in ir\.bin beside it, got none"):
        foreign.read(tmp_path / "ir.xml", OPTIONS)


def test_precisions_and_a_rebuild_from_the_engine_work(crops: Path, tmp_path: Path) -> None:
    path, people = save(tmp_path / "theirs.onnx", batch=1), tiny_engine.people(6)
    with built(path, tmp_path / "int8", crops, precision="int8") as engine:
        assert engine.manifest.verification["cosine_mean"] > 0.995
        fingerprint = engine.fingerprint
    build(tmp_path / "int8" / "model.onnx", tmp_path / "again", backend="onnxruntime", progress=False, calibrate=crops)
    with Engine.load(tmp_path / "again") as engine:
        assert engine.fingerprint == fingerprint
        np.testing.assert_allclose(engine.embed(people).features, tiny_engine.expected(people)[0], atol=2e-5)


def test_int8_on_a_cpu_leaves_thin_convolutions_in_float_and_room_in_16_bits(crops: Path, tmp_path: Path) -> None:
    model = network()
    rng = np.random.default_rng(0)
    for name, shape in (
        ("few", (64, 3, 3, 3)),
        ("deep", (64, 1, 3, 3)),
        ("wide", (64, 64, 1, 1)),
        ("out", (3, 64, 1, 1)),
    ):
        model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    body = [
        helper.make_node("Conv", ["data", "few"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["a", "deep"], ["b"], pads=[1, 1, 1, 1], group=64),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "wide"], ["e"]),
        helper.make_node("Conv", ["e", "out"], ["d"]),
    ]
    for place, node in enumerate(body):
        model.graph.node.insert(place, node)
    model.graph.node[5].input[0] = "d"
    onnx.save(model, tmp_path / "theirs.onnx")
    with built(tmp_path / "theirs.onnx", tmp_path / "engine", crops, precision="int8", force=True):
        made = onnx.load(tmp_path / "engine" / "engine.onnx").graph
    stored = {t.name: numpy_helper.to_array(t) for t in made.initializer}
    by = {out: node for node in made.node for out in node.output}
    convolutions = [node for node in made.node if node.op_type == "Conv"]
    groups = [next((a.i for a in node.attribute if a.name == "group"), 1) for node in convolutions]
    quantised = [by[n.input[1]].op_type == "DequantizeLinear" if n.input[1] in by else False for n in convolutions]
    assert groups == [1, 64, 1, 1] and quantised == [False, False, True, False]
    assert all(np.abs(v.astype(int)).max() == 63 for v in stored.values() if v.dtype == np.int8 and v.ndim > 1)


def test_auto_chooses_among_the_precisions(crops: Path, tmp_path: Path) -> None:
    with built(save(tmp_path / "theirs.onnx"), tmp_path / "engine", crops, precision="auto") as engine:
        assert {row["precision"] for row in engine.manifest.verification["candidates"]} == {"fp32", "int8"}


def test_the_fingerprint_follows_the_file_and_what_was_said_of_it(tmp_path: Path) -> None:
    path = save(tmp_path / "theirs.onnx")
    first = foreign.read(path, OPTIONS).fingerprint
    assert foreign.read(path, OPTIONS).fingerprint == first
    bgr = ForeignOptions(**{**PREPROCESSING, "color": "bgr"})
    assert foreign.read(path, bgr).fingerprint != first
    other = save(path, weights=tiny_engine.weights(seed=1)[0])
    assert foreign.read(other, OPTIONS).fingerprint != first


def test_the_output_is_found_where_one_alone_can_be_the_feature(tmp_path: Path) -> None:
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("pooled", F, ["batch", 3, 4, 4]))
    onnx.save(model, tmp_path / "two.onnx")
    assert foreign.read(tmp_path / "two.onnx", OPTIONS).spec.dimension == DIMENSION


def test_a_tensor_inside_the_graph_can_be_named_as_the_feature(tmp_path: Path) -> None:
    made = foreign.read(save(tmp_path / "theirs.onnx"), ForeignOptions(**PREPROCESSING, feature="flat"))
    assert made.spec.dimension == 48
    assert not any(t.name.endswith("P") for t in made.model.graph.initializer)


def test_several_possible_features_are_asked_for_by_name(tmp_path: Path) -> None:
    model = network()
    model.graph.output.append(helper.make_tensor_value_info("flat", F, ["batch", 48]))
    onnx.save(model, tmp_path / "two.onnx")
    with pytest.raises(SpecError, match=r"--feature.*embedding float32 \(batch, 24\), flat float32 \(batch, 48\)"):
        foreign.read(tmp_path / "two.onnx", OPTIONS)
    with pytest.raises(SpecError, match=r"tensor of two\.onnx, got 'feat'\. It gives embedding"):
        foreign.read(tmp_path / "two.onnx", ForeignOptions(**PREPROCESSING, feature="feat"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({}, r"expected --color, --mean, --std for theirs.onnx.*input data float32 \(batch, 3, 64, 64\)"),
        ({"color": "rgb"}, "expected --mean, --std for"),
        ({"color": "rgb", "mean": "0.5,0.5,0.5"}, "expected --std for"),
        ({"color": "rgb", "mean": "imagnet"}, "three numbers such as 0.485,0.456,0.406, or one of imagenet"),
        ({"color": "rgb", "mean": "imagenet", "input": "256*128"}, "height x width, such as 256x128, got '256"),
        ({"color": "rgb", "mean": "imagenet", "input": "256x128"}, "the input size of theirs.onnx, 64x64"),
        ({"family": "torchreid"}, None),
        ({"family": "fastreid"}, "expected a model family, got 'fastreid'. Did you mean 'fast-reid'"),
    ],
)
def test_what_the_file_cannot_say_is_asked_for(said: dict, message: str | None, tmp_path: Path) -> None:
    path = save(tmp_path / "theirs.onnx")
    if message is None:
        assert foreign.read(path, ForeignOptions(**said)).spec.preprocessing.height == 64  # the file's word comes first
        return
    with pytest.raises(SpecError, match=message):
        foreign.read(path, ForeignOptions(**said))


def test_a_file_of_any_size_asks_for_one(tmp_path: Path) -> None:
    path = save(tmp_path / "theirs.onnx", size=("height", "width"))
    with pytest.raises(SpecError, match="expected --input, such as 256x128"):
        foreign.read(path, OPTIONS)


def test_options_about_one_of_our_own_models_are_refused(tmp_path: Path) -> None:
    portable_path = tiny_engine.write_portable(tmp_path / "ours.onnx")
    with pytest.raises(SpecError, match=r"for --color, --mean, --std, got .*Leave these options out"):
        build(portable_path, tmp_path / "engine", foreign=OPTIONS, progress=False)


PICTURE = np.random.default_rng(5).integers(0, 256, (256, 128, 3), np.uint8)
RGB = PICTURE[:, :, ::-1].astype(np.float64).transpose(2, 0, 1)
MEAN = np.array([0.485, 0.456, 0.406]).reshape(3, 1, 1)
PUBLISHED: dict[str, Callable[[], np.ndarray]] = {
    "torchreid": lambda: (RGB / 255 - MEAN) / np.array([0.229, 0.224, 0.225]).reshape(3, 1, 1),
    "fast-reid": lambda: RGB,
    "clip-reid": lambda: (RGB / 255 - 0.5) / 0.5,
    "openvino": lambda: PICTURE.astype(np.float64).transpose(2, 0, 1),
    "tao": lambda: (RGB / 255 - MEAN) / 0.226,
}
"""Family → what its own code makes of PICTURE, which has the input's size already, written out in float64."""


@pytest.mark.parametrize("name", families.FAMILIES)
def test_a_familys_input_is_what_its_own_code_makes(name: str) -> None:
    (made,) = preprocess([PICTURE], families.FAMILIES[name])
    np.testing.assert_allclose(
        made, PUBLISHED[name](), rtol=1e-5, atol=3e-5 if name in ("fast-reid", "openvino") else 2e-6
    )


def test_fast_reid_resizes_bicubic() -> None:
    small = PICTURE[:100, :40]
    (made,) = preprocess([small], families.FAMILIES["fast-reid"])
    wanted = cv2.resize(small[:, :, ::-1], (128, 256), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    np.testing.assert_allclose(made, wanted.transpose(2, 0, 1), atol=1e-3)


def test_the_spec_of_a_network_with_masks_is_written_as_before() -> None:
    assert "masks" not in tiny_engine.SPEC.to_dict()
    read = ModelSpec.from_dict(tiny_engine.SPEC.to_dict())
    assert read.masks and read == tiny_engine.SPEC


def test_the_portable_form_of_a_foreign_network_reads_back(tmp_path: Path) -> None:
    made = foreign.read(foreign_network.save(tmp_path / "theirs.onnx"), OPTIONS)
    portable.write(made.model, tmp_path / "portable.onnx", made.spec, made.fingerprint)
    read = portable.read(tmp_path / "portable.onnx")
    assert (read.spec, read.fingerprint) == (made.spec, made.fingerprint)
