"""Somebody else's small networks for the tests of masks that are taught to them: as an ONNX, and as a checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dpm_edge.build import trainable
from dpm_edge.build.foreign import ForeignOptions
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.spec import Preprocessing, WeightsCard, foreign_spec

OPTIONS = ForeignOptions(color="rgb", mean="0.5,0.5,0.5", std="0.5,0.5,0.5")
GRID, DIMENSION, CHANNELS = (8, 4), 40, 24
_PATCHES = helper.make_node("Conv", ["images", "first"], ["a"], kernel_shape=[8, 8], strides=[8, 8])


def weights(mapped: bool = True) -> dict[str, NDArray[np.float32]]:
    """The weights of `write` by name."""
    draw = np.random.default_rng(0)

    def weight(*shape: int) -> NDArray[np.float32]:
        return (draw.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    if not mapped:
        return {"last": weight(DIMENSION, 3 * GRID[0] * GRID[1]).T.copy()}
    made = {"first": weight(CHANNELS, 3, 8, 8), "second": weight(CHANNELS, CHANNELS, 3, 3)}
    return {**made, "last": weight(DIMENSION, CHANNELS).T.copy()}


def write(form: str) -> ModelProto:
    """A network of 64×32 pictures. form: "map": two convolutions, a mean and a product; "tokens": patches as tokens,
    their mean and a product; "picture": a product of the picture, without a feature map."""
    if form == "map":
        nodes = [
            _PATCHES,
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("Conv", ["b", "second"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("GlobalAveragePool", ["d"], ["e"]),
            helper.make_node("Flatten", ["e"], ["f"]),
        ]
    elif form == "tokens":
        nodes = [
            _PATCHES,
            helper.make_node("Reshape", ["a", "flat"], ["b"]),
            helper.make_node("Transpose", ["b"], ["c"], perm=[0, 2, 1]),
            helper.make_node("Tanh", ["c"], ["d"]),
            helper.make_node("ReduceMean", ["d", "axis"], ["f"], keepdims=0),
        ]
    else:
        nodes = [
            helper.make_node("AveragePool", ["images"], ["a"], kernel_shape=[8, 8], strides=[8, 8]),
            helper.make_node("Flatten", ["a"], ["f"]),
        ]
    nodes.append(helper.make_node("MatMul", ["f", "last"], ["embedding"]))
    used = {name for node in nodes for name in node.input}
    tensors = {**weights(form != "picture"), "flat": np.array([0, CHANNELS, -1]), "axis": np.array([1])}
    graph = helper.make_graph(
        nodes,
        "theirs",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, 64, 32])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", DIMENSION])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items() if name in used],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def imported(folder: Path, form: str = "map") -> ForeignNetwork:
    """`write`'s network as `dpm-edge import onnx` makes it, or with form "osnet" an untrained OSNet x0.25."""
    if form != "osnet":
        onnx.save(write(form), folder / "theirs.onnx")
        return trainable.read(folder / "theirs.onnx", OPTIONS)
    torch.manual_seed(0)
    card, pre = WeightsCard(licence="MIT", recipe="tests"), Preprocessing(height=64, width=32)
    spec = foreign_spec("osnet", DIMENSION, pre, card)
    net = ForeignNetwork(spec, {"kind": "osnet", "size": "x0_25", "instance_norm": False}).eval()
    for name, statistic in net.named_buffers():
        if name.endswith("running_var"):
            statistic.uniform_(0.15, 0.225)  # else pictures hardly differ
    return net
