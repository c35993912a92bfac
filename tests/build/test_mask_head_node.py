"""The mask generator as a plugin node: found, packed as the kernel packs, equal in what it computes, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import ModelProto, helper, numpy_helper
from tiny_network import network

from dpm_edge.build import portable
from dpm_edge.build.export import to_onnx
from dpm_edge.build.low_precision import lower
from dpm_edge.build.mask_head_node import mask_head_nodes, with_mask_head_plugin
from dpm_edge.build.quantise import quantise
from dpm_edge.errors import SpecError
from dpm_edge.kernels.mask_head.pack import fold_batch_norm, pack_paper
from dpm_edge.kernels.mask_head.reference import mask_head
from dpm_edge.spec import ModelSpec

CHANGES = {"width": 64, "heads": 4, "layers": 4, "mask_blocks": (1, 2, 3, 4), "hmg": "paper", "quick_gelu": True}


@pytest.fixture(scope="module")
def source(paper_path: Path) -> portable.Portable:
    return portable.read(paper_path)


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(5).standard_normal((2, 3, 64, 64)).astype(np.float32)


def plugin_of(model: ModelProto) -> onnx.NodeProto:
    (node,) = [n for n in model.graph.node if n.domain]
    return node


def test_weights_are_packed_as_the_kernel_packs_them(source: portable.Portable) -> None:
    """The same network in torch, its batch norms folded in float64, through kernels/mask_head/pack.py."""
    made = with_mask_head_plugin(source.model, source.spec)
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    got = [tensors[name] for name in plugin_of(made).input[4:]]
    head = network(**CHANGES).mask_generator
    pairs = ((head.conv1, head.bn1), (head.conv2, head.bn2), (head.conv3, head.bn3))
    folded = [
        fold_batch_norm(conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var, bn.eps) for conv, bn in pairs
    ]
    packed = pack_paper(folded, (head.linear.weight, head.linear.bias))
    assert len(got) == len(packed.tensors) == 8
    for mine, theirs in zip(got, packed.tensors):
        assert mine.dtype == np.float16 and mine.shape == tuple(theirs.shape) and mine.flags.c_contiguous
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=2e-3, atol=1e-6)


def test_what_goes_into_the_node_gives_the_mask(source: portable.Portable, images: np.ndarray) -> None:
    """Tokens by ONNX Runtime out of the new graph, the kernel's reference on them, the old graph's mask."""
    made = with_mask_head_plugin(source.model, source.spec)
    onnx.checker.check_model(made)
    node = plugin_of(made)
    fields = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    assert node.op_type == "DpmMaskHead"
    assert fields == {"plugin_version": b"1", "plugin_namespace": b"dpm_edge", "height": 4, "width": 4}
    left = {n.op_type for n in made.graph.node}
    assert not {"ReduceMax", "MaxPool", "Relu", "Gemm", "Slice"} & left and len(made.graph.node) < len(
        source.model.graph.node
    )
    fed = ModelProto()
    fed.CopyFrom(made)
    end = [n.name for n in fed.graph.node].index(node.name)
    kept = list(fed.graph.node[:end])
    del fed.graph.node[:], fed.graph.output[:]
    fed.graph.node.extend(kept)
    fed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in node.input[:4])
    tokens = onnxruntime.InferenceSession(fed.SerializeToString()).run(None, {"images": images})
    assert all(t.shape == (2, 17, 64) and t.dtype == np.float16 for t in tokens)
    tensors = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    weights = [torch.from_numpy(tensors[name].copy()) for name in node.input[4:]]
    got = mask_head([torch.from_numpy(t).double() for t in tokens], "paper", weights, 4, 4).numpy()
    session = onnxruntime.InferenceSession(source.model.SerializeToString())
    np.testing.assert_allclose(got, session.run(["mask"], {"images": images})[0], atol=2e-3)


@pytest.mark.slow
def test_concat_features_keep_their_mean_gate() -> None:
    net = network(**CHANGES, feature="concat")
    made = with_mask_head_plugin(to_onnx(net), net.spec)
    node = plugin_of(made)
    readers = [n.op_type for n in made.graph.node if f"{node.output[0].removesuffix('.half')}" in n.input]
    assert sorted(readers) == ["Concat", "ReduceMean"]


def test_it_goes_with_every_precision(source: portable.Portable, images: np.ndarray) -> None:
    """Quantised around the head, then replaced, then lowered; every type fits the next."""
    kept = mask_head_nodes(source.model, source.spec)
    quantised = quantise(source.model, [images], keep_float=kept)
    for graph, precision in ((source.model, "fp16"), (source.model, "bf16"), (quantised, "fp16")):
        made = lower(with_mask_head_plugin(graph, source.spec), precision)
        node = plugin_of(made)
        typed = onnx.shape_inference.infer_shapes(made).graph
        types = {v.name: v.type.tensor_type.elem_type for v in [*typed.value_info, *typed.output]}
        types |= {t.name: t.data_type for t in made.graph.initializer}
        assert {types[name] for name in node.input} == {onnx.TensorProto.FLOAT16}
        assert [o.type.tensor_type.elem_type for o in made.graph.output] == [onnx.TensorProto.FLOAT] * 2


def with_pool_of_three(model: ModelProto) -> None:
    pool = next(n for n in model.graph.node if n.op_type == "MaxPool")
    for attribute in pool.attribute:
        if attribute.name in ("kernel_shape", "strides"):
            attribute.ints[:] = [3, 3]


def with_dilation(model: ModelProto) -> None:
    convolution = [n for n in model.graph.node if n.op_type == "Conv"][-1]
    next(a for a in convolution.attribute if a.name == "dilations").ints[:] = [2, 2]


def with_another_activation(model: ModelProto) -> None:
    next(n for n in model.graph.node if n.op_type == "Relu").op_type = "LeakyRelu"


def without_sigmoid(model: ModelProto) -> None:
    made_by = {out: node for node in model.graph.node for out in node.output}
    made_by["mask"].op_type = "Tanh"


def with_three_blocks(model: ModelProto) -> None:
    concatenation = next(n for n in model.graph.node if n.op_type == "Concat" and len(n.input) == 4)
    concatenation.input.pop()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (with_pool_of_three, "to be a 2×2 pool"),
        (with_dilation, "to be a 3×3 convolution with padding 1"),
        (with_another_activation, "expected Relu before .*, got LeakyRelu"),
        (without_sigmoid, "expected a sigmoid before the output `mask`"),
        (with_three_blocks, "patch tokens of four blocks"),
    ],
)
def test_another_head_is_refused(change: Callable[[ModelProto], None], says: str, source: portable.Portable) -> None:
    model = ModelProto()
    model.CopyFrom(source.model)
    change(model)
    with pytest.raises(SpecError, match=says):
        with_mask_head_plugin(model, source.spec)


@pytest.mark.parametrize("changes", [{"hmg": "lite"}, {"width": 48, "heads": 3}, {"mask_blocks": (1, 2)}])
def test_a_head_that_the_kernel_does_not_compute_is_refused(changes: dict, source: portable.Portable) -> None:
    spec: ModelSpec = source.spec.replace(**changes)
    with pytest.raises(SpecError, match="--mask-head native"):
        with_mask_head_plugin(source.model, spec)


def test_a_weight_beyond_float16_is_refused(source: portable.Portable) -> None:
    model = ModelProto()
    model.CopyFrom(source.model)
    weight = next(t for t in model.graph.initializer if t.name == "mask_generator.conv2.bias")
    weight.CopyFrom(numpy_helper.from_array(np.full(tuple(weight.dims), 7e4, np.float32), weight.name))
    with pytest.raises(SpecError, match=r"expected weights in float16's range, got 7e\+04 in mask_head.bias2"):
        with_mask_head_plugin(model, source.spec)
