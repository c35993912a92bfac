"""FP8: weights and activations against ml_dtypes' own E4M3, calibration from a stream, and what is lost."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import ModelProto, numpy_helper

from dpm_edge.build import portable
from dpm_edge.build.quantise import KINDS, OPSET, outlier_ratio, quantise, ranges
from dpm_edge.errors import SpecError

E4M3 = ml_dtypes.float8_e4m3fn


@pytest.fixture(scope="module")
def model(paper_path: Path) -> ModelProto:
    return portable.read(paper_path).model


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((6, 3, 64, 64)).astype(np.float32)


@pytest.fixture(scope="module")
def fp8(model: ModelProto, images: np.ndarray) -> ModelProto:
    return quantise(model, (x[None] for x in images[:4]), kind="fp8")


def run(model: ModelProto, images: np.ndarray, *outputs: str) -> list[np.ndarray]:
    watched = ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs if n not in ("feature", "mask"))
    session = onnxruntime.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(list(outputs), {"images": images})


def test_every_product_with_a_weight_reads_e4m3(model: ModelProto, fp8: ModelProto) -> None:
    onnx.checker.check_model(fp8, full_check=True)
    assert fp8.opset_import[0].version == OPSET and fp8.ir_version >= 9
    made_by = {out: node.op_type for node in fp8.graph.node for out in node.output}
    weights = {t.name for t in model.graph.initializer}
    before = {n.name: n for n in model.graph.node}
    quantised = 0
    for node in fp8.graph.node:
        if node.op_type in ("MatMul", "Gemm") and before[node.name].input[1] in weights:
            quantised += 1
            assert [made_by[name] for name in node.input[:2]] == ["DequantizeLinear"] * 2
        elif node.op_type in ("MatMul", "Conv"):
            assert "DequantizeLinear" not in [made_by.get(name) for name in node.input], node.name
    assert quantised == 4 * 4 + 1, "four in a block, and the mask's linear"


def test_weights_are_rounded_to_the_nearest_e4m3_per_output_channel(model: ModelProto, fp8: ModelProto) -> None:
    """Against all 254 finite values of the type: no other lies nearer."""
    exact = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    stored = {t.name: numpy_helper.to_array(t) for t in fp8.graph.initializer}
    grid = np.unique(np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float64))
    grid = grid[np.isfinite(grid)]
    names = [n.removesuffix(".quantised") for n in stored if n.endswith(".quantised")]
    assert len(names) == 4 * 4 + 1
    for name in names:
        weight, scale = exact[name].astype(np.float64), stored[f"{name}.scale"].astype(np.float64)
        axis = 0 if name == "mask_generator.linear.weight" else 1  # Gemm's is transposed
        np.testing.assert_allclose(scale, np.abs(weight).max(axis=1 - axis) / 448, rtol=1e-6)
        scaled = weight / (scale[:, None] if axis == 0 else scale)
        error = np.abs(stored[f"{name}.quantised"].astype(np.float64) - scaled)
        best = np.abs(scaled[..., None] - grid).min(axis=-1)
        np.testing.assert_allclose(error, best, atol=1e-4)


def test_activation_scales_are_the_largest_value_of_all_crops(model: ModelProto, fp8: ModelProto, images) -> None:
    stored = {t.name: numpy_helper.to_array(t) for t in fp8.graph.initializer}
    names = [n.input[0] for n in fp8.graph.node if n.op_type == "QuantizeLinear"]
    assert len(names) == 4 * 4 + 1
    for name, values in zip(names, run(model, images[:4], *names)):
        np.testing.assert_allclose(stored[f"{name}.scale"], np.abs(values).max() / 448, rtol=1e-4)


def test_fp8_keeps_the_features(model: ModelProto, fp8: ModelProto, images: np.ndarray) -> None:
    """ONNX Runtime computes float8 Q/DQ by itself; crops that were not calibrated on."""
    exact, got = (run(graph, images[4:], "feature", "mask") for graph in (model, fp8))
    assert 0.995 < (exact[0] * got[0]).sum(1).min() < 0.9999999, "rounding shows, and costs little"
    assert np.abs(exact[1] - got[1]).max() < 0.05


def test_calibration_keeps_no_crop(model: ModelProto) -> None:
    """Five hundred crops of 48 KiB from a generator: memory stays far below theirs."""
    draw = np.random.default_rng(2)

    def stream(count: int) -> Iterator[np.ndarray]:
        for _ in range(count):
            yield draw.standard_normal((1, 3, 64, 64), dtype=np.float32)

    ranges(model, ["cat"], stream(2))  # what importing takes
    tracemalloc.start()
    found = ranges(model, ["cat"], stream(500))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found["cat"] > 0 and peak < 8 << 20, f"{peak / 2**20:.1f} MiB for 23 MiB of crops"


def test_ranges_and_outliers_by_hand() -> None:
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Mul", ["images", "two"], ["feature"], name="double")],
        "double",
        [onnx.helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 4])],
        [onnx.helper.make_tensor_value_info("feature", onnx.TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.float32(2), "two")],
    )
    made = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    crops = [np.array([[1, 0, 0, -3]], np.float32), np.array([[2, 0, 0, 0]], np.float32)]
    assert ranges(made, ["feature", "images"], crops) == {"feature": 6.0, "images": 3.0}
    assert outlier_ratio(made, ["feature"], crops[1])["feature"] == pytest.approx(2)


def test_ties_saturation_and_dead_channels(model: ModelProto) -> None:
    assert KINDS["int8"].round(np.float32([2.5, 3.5, -300])).tolist() == [2, 4, -127]
    assert KINDS["fp8"].round(np.float32([17, 19, 500, -1e9])).astype(float).tolist() == [16, 20, 448, -448]
    dead = ModelProto()
    dead.CopyFrom(model)
    weight = next(t for t in dead.graph.initializer if t.name == "mask_generator.linear.weight")
    values = numpy_helper.to_array(weight).copy()
    values[3] = 0
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    images = np.zeros((1, 3, 64, 64), np.float32)
    for kind in KINDS:
        assert all(np.isfinite(x).all() for x in run(quantise(dead, [images], kind=kind), images, "feature", "mask"))


def test_an_unknown_type_and_no_crops_are_refused(model: ModelProto) -> None:
    with pytest.raises(SpecError, match="got 'fp9'"):
        quantise(model, [], kind="fp9")
    with pytest.raises(SpecError, match="to calibrate on, got none"):
        quantise(model, iter(()))
