"""Another project's ONNX as a checkpoint in torch that can be trained, and such a checkpoint as an ONNX again.

The graph is the one that `dpm-edge build` adopts, without the tail that dpm-edge adds to it (norm and mask). Its
weights keep their names, so that the way back to ONNX puts each where it came from: no converter, no second export.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import ModelProto, TensorProto, helper, numpy_helper

from dpm_edge.build import adopt, foreign, portable
from dpm_edge.build.foreign import Foreign, ForeignOptions
from dpm_edge.errors import CheckpointError
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.model.imported.onnx_graph import KINDS, Node, OnnxGraph, text_of
from dpm_edge.model.imported.onnx_operators import OPERATORS, STEERING

KIND = "onnx"
"""Of the network in a checkpoint's JSON."""
MOST_DIFFERENCE = 1e-4
"""Most that a number of a feature of length 1 may differ between torch and ONNX Runtime. Float32 rounding stays below
2e-6 on published OSNet x0.25 (tests hold 1e-5); a wrong operator is far above."""
_STATISTICS = {"BatchNormalization": (3, 4)}
"""Operator → inputs that training leaves as they are."""


def read(path: Path, options: ForeignOptions) -> ForeignNetwork:
    """Read another project's ONNX or OpenVINO IR as a network that can be trained.

    Its features are compared with those of ONNX Runtime before it is given.

    Raises:
        CheckpointError: as `foreign.read`; or an operator is not known in torch (it is named), or features differ.
        SpecError, MissingLibrary: as `foreign.read`.
    """
    if path.suffix.lower() != ".xml" and not portable.is_foreign(portable.parse(path)[0]):
        raise CheckpointError(
            f"expected another project's ONNX, got {path}, which dpm-edge wrote or which holds no network. Give the "
            "checkpoint or the file that it was made of"
        )
    theirs = foreign.read(path, options)
    net = _network(theirs, path.name)
    _check(net, theirs, path.name)
    return net


def to_onnx(net: ForeignNetwork) -> ModelProto:
    """The graph of a network that `read` gave, with the weights it has now, in the portable form."""
    body, pre = net.body, net.spec.preprocessing
    assert isinstance(body, OnnxGraph), "a network of kind onnx"
    nodes = [
        helper.make_node(
            node.operator,
            list(node.inputs),
            list(node.outputs),
            **{k: _proto(v, "") if isinstance(v, torch.Tensor) else v for k, v in node.attributes.items()},
        )
        for node in body.nodes
    ]
    tensors = [*body.constants.items(), *body.named_weights()]
    graph = helper.make_graph(nodes, "foreign", [], [], [_proto(tensor, name) for name, tensor in tensors])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", body.opset)], ir_version=8)
    adopt.finish(model, body.image, body.feature, (pre.height, pre.width), net.spec.dimension)
    return model


def _proto(tensor: torch.Tensor, name: str) -> TensorProto:
    return numpy_helper.from_array(tensor.detach().cpu().numpy(), name)


def _network(theirs: Foreign, name: str) -> ForeignNetwork:
    """The network of an adopted graph.

    Raises:
        CheckpointError: it has operators or types that are not known in torch.
    """
    graph, feature = theirs.model.graph, _before_the_tail(theirs.model)
    wanted = {feature}
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
    nodes = [node for node in graph.node if wanted.intersection(node.output)]
    unknown = sorted({node.op_type for node in nodes} - set(OPERATORS))
    if unknown:
        raise CheckpointError(
            f"expected operators that can be trained in torch, got {', '.join(unknown)} in {name}. `dpm-edge build` "
            "takes the file as it is; to adapt it, export it without them"
        )
    names = _names([portable.INPUT, *wanted, *(out for node in nodes for out in node.output)])
    read = [_node(node, names, wanted) for node in nodes]
    steering = {n.inputs[i] for n in read for i in STEERING.get(n.operator, ()) if i < len(n.inputs)}
    kept = {n.inputs[i] for n in read for i in _STATISTICS.get(n.operator, ()) if i < len(n.inputs)}
    tensors = {names[t.name]: _tensor(t, name) for t in graph.initializer if t.name in wanted}
    constants = {n: t for n, t in tensors.items() if not t.is_floating_point() or n in steering}
    weights = {n: t for n, t in tensors.items() if n not in constants}
    fixed = {n for n, t in weights.items() if t.numel() == 1 or n in kept}
    network: dict[str, Any] = {
        "kind": KIND,
        "opset": next(o.version for o in theirs.model.opset_import),
        "image": names[portable.INPUT],
        "feature": names[feature],
        "nodes": [str(node) for node in read],
        "trained": {n: "x".join(map(str, t.shape)) for n, t in weights.items() if n not in fixed},
        "fixed": {n: "x".join(map(str, t.shape)) for n, t in weights.items() if n in fixed},
        "constants": {n: text_of(t) for n, t in constants.items()},
    }
    card = dataclasses.replace(theirs.spec.weights, recipe=f"{name}, imported as an ONNX")
    net = ForeignNetwork(theirs.spec.replace(weights=card), network)
    net.body.load_state_dict({f"weights.{n}": t for n, t in weights.items()})
    return net.eval()


def _before_the_tail(model: ModelProto) -> str:
    """The tensor that the tail of `adopt.finish` starts from."""
    return next(node.input[0] for node in model.graph.node if adopt.RAW in node.output)


def _names(given: Iterable[str]) -> dict[str, str]:
    """Each name → one of letters, digits and underscores, no two alike."""
    made: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(given):
        plain = re.sub(r"\W", "_", name, flags=re.ASCII).removeprefix("net_") if name else ""
        plain = f"t_{plain}" if name else ""
        number, wanted = 2, plain
        while name and plain in taken:
            plain, number = f"{wanted}_{number}", number + 1
        made[name] = plain
        taken.add(plain)
    return made


def _node(node: onnx.NodeProto, names: dict[str, str], wanted: set[str]) -> Node:
    attributes: dict[str, Any] = {}
    for attribute in node.attribute:
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            attributes[attribute.name] = _tensor(value, node.op_type)
        elif isinstance(value, bytes):
            attributes[attribute.name] = value.decode()
        elif isinstance(value, (int, float)):
            attributes[attribute.name] = value
        elif len(value):
            attributes[attribute.name] = list(value)
    outputs = [names[out] for out in node.output]
    while (
        len(outputs) > 1 and not (outputs[-1] and node.output[len(outputs) - 1] in wanted) and node.op_type != "Split"
    ):
        outputs.pop()
    if len(outputs) > 1 and node.op_type != "Split":
        raise CheckpointError(
            f"expected operators with one output, got {node.op_type} with {len(outputs)}. `dpm-edge build` takes the "
            "file as it is"
        )
    return Node(node.op_type, tuple(names[i] for i in node.input), tuple(outputs), attributes)


def _tensor(proto: TensorProto, name: str) -> torch.Tensor:
    """An initialiser or attribute in torch.

    Raises:
        CheckpointError: it holds neither float32 nor integers nor truth.
    """
    tensor = torch.from_numpy(np.array(numpy_helper.to_array(proto)))
    if tensor.dtype not in KINDS.values():
        raise CheckpointError(
            f"expected tensors of {', '.join(KINDS)}, got {str(tensor.dtype).removeprefix('torch.')} in {proto.name!r} "
            f"of {name}. `dpm-edge build` takes the file as it is"
        )
    return tensor


def _check(net: ForeignNetwork, theirs: Foreign, name: str) -> None:
    """Compare with ONNX Runtime on a few pictures.

    Raises:
        CheckpointError: features differ, or torch cannot run a node as it is used (its operator is named).
    """
    inputs = foreign.some_inputs(theirs.spec.preprocessing)
    wanted: NDArray[np.float32] = adopt.session(theirs.model).run(["feature"], {portable.INPUT: inputs})[0]
    advice = "`dpm-edge build` takes the file as it is"
    try:
        with torch.inference_mode():
            got = net(torch.from_numpy(inputs))[0].numpy()
    except NotImplementedError as error:
        raise CheckpointError(
            f"expected operators that can be trained in torch, got {error} in {name}. {advice}"
        ) from error
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        raise CheckpointError(f"expected a graph that torch can run, got {name} ({first}). {advice}") from error
    difference = float(np.abs(got - wanted).max())
    if not difference <= MOST_DIFFERENCE:
        raise CheckpointError(
            f"expected the features that ONNX Runtime gives for {name}, got others from torch (by {difference:.2g}). "
            f"{advice}; please report this"
        )
