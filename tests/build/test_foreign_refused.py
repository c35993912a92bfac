"""What is no network of features is refused in one line, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import tiny_engine
from foreign_network import DIMENSION, PREPROCESSING, network, save, single
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dpm_edge.build import build, foreign
from dpm_edge.build.foreign import ForeignOptions
from dpm_edge.errors import CheckpointError, DpmError

OPTIONS = ForeignOptions(**PREPROCESSING)
F, H, I64, U8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8


def yolo() -> ModelProto:
    return single("MaxPool", F, [1, 3, 64, 64], F, [1, 3, 64, 64], kernel_shape=[1, 1])


def with_shape(model: ModelProto, shape: list[int]) -> ModelProto:
    """The graph with its output reshaped."""
    model.graph.node[0].output[0] = "before"
    model.graph.node.append(helper.make_node("Reshape", ["before", "shape"], ["y"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array(shape), "shape"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info("y", F, shape))
    return model


def with_output(model: ModelProto, node: Any, kind: int, shape: list[Any]) -> ModelProto:
    model.graph.node.append(node)
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(node.output[0], kind, shape))
    return model


def two_pictures() -> ModelProto:
    model = network()
    model.graph.input.append(helper.make_tensor_value_info("other", F, ["batch", 3, 64, 64]))
    return model


def nan_weights() -> ModelProto:
    weights = tiny_engine.weights()[0].copy()
    weights[3, 4] = np.nan
    return network(weights=weights)


def quantised() -> ModelProto:
    model = network()
    scale = [numpy_helper.from_array(np.float32(0.1), "s"), numpy_helper.from_array(np.int8(0), "z")]
    model.graph.initializer.extend(scale)
    model.graph.node.append(helper.make_node("QuantizeLinear", ["embedding", "s", "z"], ["q"]))
    return with_output(model, helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]), F, ["batch", DIMENSION])


def fused() -> ModelProto:
    model = network()
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    node = helper.make_node("BiasGelu", ["embedding", "bias"], ["y"], domain="com.microsoft")
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(DIMENSION, np.float32), "bias"))
    return with_output(model, node, F, ["batch", DIMENSION])


BAD: dict[str, tuple[Callable[[], ModelProto], str]] = {
    "detector": (
        lambda: with_shape(yolo(), [1, 3, 4096]),
        r"expected a feature \(batch, D\), got y float32 \(1, 3, 4096\).*boxes of a detector",
    ),
    "feature map": (yolo, r"got y float32 \(1, 3, 64, 64\).*feature map"),
    "classifier by its softmax": (
        lambda: with_output(network(), helper.make_node("Softmax", ["embedding"], ["y"]), F, ["batch", DIMENSION]),
        r"classes of a classifier.*--feature NAME \(before its last product lies 'flat'\)",
    ),
    "classifier by its name": (lambda: network(output="cls_score"), "classes of a classifier"),
    "ImageNet's classes": (
        lambda: network(weights=np.ones((48, 1000), np.float32)), r"\(batch, 1000\).*classes of a classifier"
    ),
    "text": (
        lambda: single("Cast", I64, ["batch", "sequence"], F, ["batch", "sequence"], to=F),
        r"got x int64 \(batch, sequence\).*text or tokens",
    ),
    "sound": (lambda: single("Relu", F, ["batch", 16000], F, ["batch", 16000]), "It takes no pictures"),
    "two pictures": (two_pictures, r"got 2: data .* other .*two pictures at once"),
    "channels last": (
        lambda: single("ReduceMax", F, ["batch", 256, 128, 3], F, ["batch", 3]), "channels come last .NHWC.",
    ),
    "grey": (lambda: single("GlobalAveragePool", F, [1, 1, 64, 64], F, [1, 1, 1, 1]), "colour pictures"),
    "pixels of uint8": (
        lambda: single("Cast", U8, [1, 3, 64, 64], F, [1, 3, 64, 64], to=F), r"got x uint8 .*its pixels inside",
    ),
    "an integer feature": (
        lambda: with_output(network(), helper.make_node("ArgMax", ["embedding"], ["y"], axis=1), I64, ["batch", 1]),
        r"got y int64 .*no float numbers",
    ),
    "one number": (
        lambda: network(weights=np.ones((48, 1), np.float32)), "one number a picture",
    ),
    "NaN": (nan_weights, "got NaN or infinity in 'P'"),
    "quantised": (quantised, "which is quantised"),
    "fused operators": (fused, "got com.microsoft::BiasGelu"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_network_of_features_is_refused_in_one_line_and_nothing_is_written(
    kind: str, tmp_path: Path
) -> None:
    make, message = BAD[kind]
    onnx.save(make(), tmp_path / "bad.onnx")
    with pytest.raises(CheckpointError, match=message) as caught:
        build(tmp_path / "bad.onnx", tmp_path / "engine", foreign=OPTIONS, progress=False)
    assert "\n" not in str(caught.value) and str(caught.value).startswith("expected")
    assert "bad.onnx" in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["bad.onnx"]


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(share: float, tmp_path: Path) -> None:
    data = save(tmp_path / "whole.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(data[: int(share * len(data))])
    with pytest.raises(DpmError, match=r"^expected .*cut\.onnx"):
        build(tmp_path / "cut.onnx", tmp_path / "engine", foreign=OPTIONS, progress=False)
    assert not (tmp_path / "engine").exists()


def test_a_network_that_gives_nan_is_refused(tmp_path: Path) -> None:
    model = with_output(network(), helper.make_node("Log", ["embedding"], ["y"]), F, ["batch", DIMENSION])
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(CheckpointError, match=r"NaN or infinity from nan\.onnx itself"):
        foreign.read(tmp_path / "nan.onnx", OPTIONS)
