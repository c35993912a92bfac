"""The sight of an imported ONNX joined to its graph: what `dpm-edge train mask` taught becomes nodes beside its own.

B batch · c channels · h×w map · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from onnx import ModelProto, NodeProto, TensorProto, helper
from torch import Tensor, nn

from dpm_edge.build import adopt, portable
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.model.imported.onnx_graph import OnnxGraph

PREFIX = "sight."
"""Before every name of the sight's graph."""
ON = "on"
"""The sight's output that stands in the map's place further on."""

Export = Callable[[nn.Module, tuple[Tensor, ...], list[str], list[str]], ModelProto]
"""A module, inputs of two rows, names of inputs and outputs → its graph with a free batch."""


class _Outputs(nn.Module):
    """What a sight makes of the tensor called `map`, or of the pictures, and of the feature: what the graph needs."""

    def __init__(self, net: ForeignNetwork) -> None:
        super().__init__()
        assert net.sight is not None and isinstance(net.body, OnnxGraph), "an imported ONNX with a sight"
        self.sight = net.sight
        self.names = [portable.MAP, *(["mask"] if net.sight.gates is not None else [])]
        self.names += [ON] if net.sight.pools else []
        self._grid_of = (lambda pictures: pictures) if net.sight.picture else net.body.grid_of

    def forward(self, made: Tensor, raw: Tensor) -> tuple[Tensor, ...]:
        grid = self._grid_of(made)
        logits, on = self.sight(grid)
        outputs = {portable.MAP: torch.sigmoid(logits), ON: on, "mask": self.sight.mask(grid, logits, raw)}
        return tuple(outputs[name] for name in self.names)


def add_sight(model: ModelProto, net: ForeignNetwork, export: Export) -> None:
    """Give a graph in the portable form, in place, the outputs `visibility` and `mask` of a network's sight.

    Raises:
        CheckpointError: an operator is not standard.
    """
    body, sight, pre = net.body, net.sight, net.spec.preprocessing
    assert sight is not None and isinstance(body, OnnxGraph), "an imported ONNX with a sight"
    outputs = _Outputs(net).eval()
    picture = torch.zeros(2, 3, pre.height, pre.width)
    source = portable.INPUT if sight.picture else body.map
    with torch.no_grad():
        example = picture if sight.picture else body.to_map(picture)[1][body.map]
    seen = export(outputs, (example, torch.ones(2, net.spec.dimension)), [source, adopt.RAW], outputs.names)
    kept = {source, adopt.RAW, *outputs.names} - {ON}
    for node in seen.graph.node:
        node.input[:] = [_renamed(name, kept) for name in node.input]
        node.output[:] = [_renamed(name, kept) for name in node.output]
    for tensor in seen.graph.initializer:
        tensor.name = _renamed(tensor.name, kept)
    ones = {"mask", "tail.shape"} if "mask" in outputs.names else set()
    theirs = [node for node in model.graph.node if not ones.intersection(node.output)]
    if ON in outputs.names:
        for node in theirs:
            node.input[:] = [PREFIX + ON if name == source else name for name in node.input]
    given = {portable.INPUT} | {tensor.name for one in (model, seen) for tensor in one.graph.initializer}
    nodes = in_order([*theirs, *seen.graph.node], given)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(seen.graph.initializer)
    sizes: list[str | int | None] = ["batch", 2, *net.spec.grid]
    model.graph.output.append(helper.make_tensor_value_info(portable.MAP, TensorProto.FLOAT, sizes))
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}.{number}"
    portable.check_standard(model)


def _renamed(name: str, kept: set[str]) -> str:
    return name if name in kept or not name else PREFIX + name


def in_order(nodes: Sequence[NodeProto], given: set[str]) -> list[NodeProto]:
    """The nodes, each behind those that make its inputs; `given` tensors need no node."""
    known, waiting, done = {"", *given}, list(nodes), []
    while waiting:
        ready = [node for node in waiting if known.issuperset(node.input)]
        assert ready, f"nothing makes {sorted(set(waiting[0].input) - known)}"
        for node in ready:
            known.update(node.output)
        done += ready
        left = {id(node) for node in ready}
        waiting = [node for node in waiting if id(node) not in left]
    return done
