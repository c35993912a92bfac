"""The mask generator (HMG) of a graph as one node of our TensorRT plugin, in place of TensorRT's own convolutions.

The subgraph is found by its structure, from the output `mask` backwards: sigmoid, linear, global max, three 3×3
convolutions with ReLU and two 2×2 pools, and in front the patch tokens of four blocks, side by side on the grid.

B crops · N = h·w patches · d width · tokens (B, 1+N, d), cls first
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from dpm_edge.build.portable import OUTPUTS
from dpm_edge.errors import SpecError
from dpm_edge.spec import ModelSpec

CHAIN = (
    "Gemm", "ReduceMax", "Relu", "Conv", "MaxPool", "Relu", "Conv", "MaxPool", "Relu", "Conv",
    "Reshape", "Transpose", "Concat",
)  # fmt: skip
"""What stands in front of the mask's sigmoid, backwards."""
PLUGIN_CHANNELS = 64
"""The kernel takes widths that are multiples of this."""


@dataclass(frozen=True)
class _Head:
    """A mask generator that was found."""

    sigmoid: NodeProto
    chain: list[NodeProto]
    """From the linear back to the concatenation."""
    slices: list[NodeProto]
    """What cuts the cls token off each block's tokens."""

    @property
    def nodes(self) -> list[NodeProto]:
        return [self.sigmoid, *self.chain, *self.slices]

    @property
    def tokens(self) -> list[str]:
        return [node.input[0] for node in self.slices]


def mask_head_nodes(model: ModelProto, spec: ModelSpec) -> list[str]:
    """Names of the nodes that `with_mask_head_plugin` will replace: what quantisation should leave alone before.

    Raises:
        SpecError: as `with_mask_head_plugin`.
    """
    return [node.name for node in _find(model, spec).nodes]


def with_mask_head_plugin(model: ModelProto, spec: ModelSpec) -> ModelProto:
    """A copy of a graph whose mask generator is the node DpmMaskHead: tokens and weights in float16, and its mask.

    Call it before `low_precision.lower`, on a graph whose mask generator is float32 (`quantise` with `mask_head_nodes`
    in keep_float leaves it so). The result runs in TensorRT with our plugin library loaded, and nowhere else.

    Args:
        model: the portable graph, or what `quantise` made of it; not changed.
        spec: its description.

    Raises:
        SpecError: the spec's mask generator or width is none of the kernel's, no such subgraph leads to the output
            `mask`, or a weight is beyond float16.
    """
    made = ModelProto()
    made.CopyFrom(model)
    head = _find(made, spec)
    weights = _packed(made, head)
    halves = [f"{name}.mask_head" for name in head.tokens]
    casts = [
        onnx.helper.make_node("Cast", [name], [half], name=half, to=TensorProto.FLOAT16)
        for name, half in zip(head.tokens, halves)
    ]
    for name, values in weights.items():
        made.graph.initializer.append(numpy_helper.from_array(values, name))
    mask = head.sigmoid.output[0]
    height, width = spec.grid
    node = plugin_node(MASK_HEAD, [*halves, *weights], f"{mask}.half", height=height, width=width)
    back = onnx.helper.make_node("Cast", [f"{mask}.half"], [mask], name=f"{mask}.float32", to=TensorProto.FLOAT)
    _replace(made, head, [*casts, node, back])
    declare(made)
    return made


def _find(model: ModelProto, spec: ModelSpec) -> _Head:
    if spec.hmg != "paper" or spec.width % PLUGIN_CHANNELS or len(spec.mask_blocks) != 4:
        raise SpecError(
            "expected a 'paper' mask generator of four blocks at a width that is a multiple of "
            f"{PLUGIN_CHANNELS} for the mask-head plugin, got {spec.hmg!r} of {len(spec.mask_blocks)} blocks at width "
            f"{spec.width} in {spec.name!r}. "
            "Build it with --mask-head native"
        )
    made_by = {out: node for node in model.graph.node for out in node.output}
    sigmoid = _behind_the_mask(made_by)
    chain: list[NodeProto] = []
    node = sigmoid
    for expected in CHAIN:
        before = made_by.get(node.input[0])
        if before is None or before.op_type != expected:
            got = "nothing" if before is None else f"{before.op_type} ({before.name})"
            raise _not_found(f"expected {expected} before {node.op_type} ({node.name}), got {got}")
        node = before
        chain.append(node)
    slices = [made_by.get(name) for name in node.input]
    if len(slices) != 4 or any(s is None or s.op_type != "Slice" for s in slices):
        raise _not_found("expected patch tokens of four blocks under the concatenation, got others")
    head = _Head(sigmoid, chain, [s for s in slices if s is not None])
    _check_shapes(model, head)
    return head


def _behind_the_mask(made_by: dict[str, NodeProto]) -> NodeProto:
    """The sigmoid nearest to the output `mask`; with "concat" features there is a concatenation behind it."""
    open_tensors = [OUTPUTS[1]]
    while open_tensors:
        node = made_by.get(open_tensors.pop(0))
        if node is not None and node.op_type == "Sigmoid":
            return node
        if node is not None and node.op_type in ("Concat", "Expand", "ReduceMean", "Cast"):
            open_tensors += node.input
    raise _not_found("expected a sigmoid before the output `mask`, got none")


def _check_shapes(model: ModelProto, head: _Head) -> None:
    """3×3 convolutions with padding 1 and 2×2 pools: what the kernel computes, and nothing else."""
    shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
    d = 0
    for node in head.chain:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type == "MaxPool" and [attributes.get(n) for n in ("kernel_shape", "strides")] != [[2, 2]] * 2:
            raise _not_found(f"expected {node.name} to be a 2×2 pool, got another")
        if node.op_type == "Gemm":
            d = shapes.get(node.input[1], (0,))[0]
        if node.op_type == "Conv":
            plain = attributes.get("pads") == [1] * 4 and attributes.get("strides", [1, 1]) == [1, 1]
            plain &= attributes.get("dilations", [1, 1]) == [1, 1] and attributes.get("group", 1) == 1
            if not plain or len(node.input) != 3 or shapes.get(node.input[1], ())[2:] != (3, 3):
                raise _not_found(
                    f"expected {node.name} to be a 3×3 convolution with padding 1, float32 weight and bias, got another"
                )
    convolutions = [shapes[n.input[1]][:2] for n in head.chain if n.op_type == "Conv"]
    if convolutions != [(d, d), (d, 2 * d), (2 * d, 4 * d)]:
        raise _not_found(
            f"expected other output and input channels of the convolutions at width {d}, got {convolutions[::-1]}"
        )


def _not_found(why: str) -> SpecError:
    return SpecError(
        f"the graph's mask generator is not the one that the plugin computes: {why}. Build with --mask-head native, or "
        "export the checkpoint again with this version"
    )


def _packed(model: ModelProto, head: _Head) -> dict[str, NDArray[np.float16]]:
    """The eight weights as the kernel reads them (kernels/mask_head/pack.py), in the order in which they act."""
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    packed: dict[str, NDArray] = {}
    convolutions = [node for node in reversed(head.chain) if node.op_type == "Conv"]
    for number, node in enumerate(convolutions, start=1):
        weight = tensors[node.input[1]]
        taps = weight.transpose(2, 3, 1, 0)  # (N, C, 3, 3) → (9, C, N)
        packed[f"mask_head.weight{number}"] = taps.reshape(9, weight.shape[1], weight.shape[0])
        packed[f"mask_head.bias{number}"] = tensors[node.input[2]]
    gemm = head.chain[0]
    transposed = any(a.name == "transB" and a.i for a in gemm.attribute)
    weight = tensors[gemm.input[1]]
    packed["mask_head.weight4"] = weight.T if transposed else weight
    packed["mask_head.bias4"] = tensors[gemm.input[2]]
    halves = {}
    for name, values in packed.items():
        if np.abs(values).max() > np.finfo(np.float16).max:
            raise SpecError(
                f"expected weights in float16's range, got {np.abs(values).max():.3g} in {name}. "
                "Build with --mask-head native"
            )
        halves[name] = np.ascontiguousarray(values.astype(np.float16))
    return halves


def _replace(model: ModelProto, head: _Head, nodes: list[NodeProto]) -> None:
    """Put `nodes` where the sigmoid stood, and drop what nobody reads any more."""
    graph = model.graph
    kept = []
    for node in graph.node:
        if node.name == head.sigmoid.name:
            kept += nodes
        elif node.name not in {n.name for n in head.nodes}:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    read = {name for node in graph.node for name in node.input}
    tensors = [t for t in graph.initializer if t.name in read]
    del graph.initializer[:]
    graph.initializer.extend(tensors)


DOMAIN = "dpm_edge"
VERSION = "1"
MASKED_SIMILARITY, MASK_HEAD = "DpmMaskedSimilarity", "DpmMaskHead"


def plugin_node(kind: str, inputs: Sequence[str], output: str, **fields: int) -> NodeProto:
    """A node of plugin `kind`; `fields` are the plugin's own."""
    node = onnx.helper.make_node(
        kind,
        list(inputs),
        [output],
        name=f"{output}.plugin",
        domain=DOMAIN,
        plugin_version=VERSION,
        plugin_namespace=DOMAIN,
    )
    node.attribute.extend(onnx.helper.make_attribute(name, value) for name, value in fields.items())
    return node


def declare(model: ModelProto) -> None:
    """Name the plugin's domain among the graph's operator sets, which ONNX asks for."""
    if DOMAIN not in {opset.domain for opset in model.opset_import}:
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
