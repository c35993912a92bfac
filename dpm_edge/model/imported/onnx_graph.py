"""A network that was read from an ONNX, in torch: the nodes of its graph run one after another, its weights trained.

The graph is text and numbers (a checkpoint's JSON); its nodes name operators of OPERATORS and nothing else, so that
loading it runs no code of anybody's.

Shapes: B images · H×W pixels · D feature dimensions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dpm_edge.model.imported.onnx_operators import OPERATORS, STEERING, Attributes
from dpm_edge.spec import Preprocessing

_NODE = re.compile(r"(?P<outputs>[\w,]+) = (?P<operator>\w+)\((?P<inputs>[\w,]*)\) (?P<attributes>\{.*\})")
KINDS = {"float32": torch.float32, "int32": torch.int32, "int64": torch.int64, "bool": torch.bool}
"""Types of constants."""


@dataclass(frozen=True)
class Node:
    """One step of a graph."""

    operator: str
    inputs: tuple[str, ...]
    """Names of tensors; "" where an optional input is left out."""
    outputs: tuple[str, ...]
    attributes: Attributes
    """Numbers, text, lists of them, and tensors."""

    def __str__(self) -> str:
        """Write it as `read_node` reads it."""
        plain = {k: text_of(v) if isinstance(v, Tensor) else v for k, v in self.attributes.items()}
        return f"{','.join(self.outputs)} = {self.operator}({','.join(self.inputs)}) {json.dumps(plain)}"


def read_node(text: str) -> Node:
    """Read a node such as `y = Conv(x,weight) {"strides": [2, 2]}`.

    Raises:
        ValueError: it is no such line, or its operator is unknown.
    """
    found = _NODE.fullmatch(text)
    if found is None or found["operator"] not in OPERATORS:
        raise ValueError(f"node {text[:80]!r}")
    attributes = json.loads(found["attributes"])
    if "value" in attributes:
        attributes["value"] = tensor_of(attributes["value"])
    inputs = tuple(found["inputs"].split(",")) if found["inputs"] else ()
    return Node(found["operator"], inputs, tuple(found["outputs"].split(",")), attributes)


def text_of(tensor: Tensor) -> str:
    """Write a small tensor as JSON, [type, sizes, values]."""
    return json.dumps([str(tensor.dtype).removeprefix("torch."), list(tensor.shape), tensor.flatten().tolist()])


def tensor_of(text: str) -> Tensor:
    """Read what `text_of` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        kind, sizes, values = json.loads(text)
        return torch.tensor(values, dtype=KINDS[kind]).reshape(sizes)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"constant {str(text)[:80]!r}") from error


def _zeros(sizes: str) -> Tensor:
    return torch.zeros([int(size) for size in sizes.split("x") if size])


class OnnxGraph(nn.Module):
    """(B, 3, H, W) → (B, D), not normalised.

    Args:
        opset: operator set of the graph, for who writes it as an ONNX again.
        image, feature: names of its input and output.
        nodes: in their order, each as `read_node` reads it.
        trained: name → sizes, such as "16x3x7x7", of each weight that training changes.
        fixed: name → sizes of each other weight: statistics of batch norms, single numbers.
        constants: name → tensor as `tensor_of` reads it: sizes, axes, indices.
        dimension: D.
        map: name of the tensor that `to_map` gives; "" without.
        map_grid: rows and columns of it where it holds tokens, (B, N or 1 + N, c), N rows · columns.
        preprocessing: taken for the sake of the other networks, not used.

    Raises:
        ValueError: a node or constant cannot be read, or names a tensor that is not there.
    """

    def __init__(
        self,
        *,
        opset: int,
        image: str,
        feature: str,
        nodes: Sequence[str],
        trained: dict[str, str],
        fixed: dict[str, str],
        constants: dict[str, str],
        dimension: int,
        map: str = "",
        map_grid: Sequence[int] = (),
        preprocessing: Preprocessing | None = None,
    ) -> None:
        super().__init__()
        self.opset, self.image, self.feature, self.dimension = opset, image, feature, dimension
        self.weights = nn.Module()
        try:
            self.nodes = [read_node(text) for text in nodes]
            self.constants = {name: tensor_of(text) for name, text in constants.items()}
            for name, sizes in trained.items():
                self.weights.register_parameter(name, nn.Parameter(_zeros(sizes)))
            for name, sizes in fixed.items():
                self.weights.register_buffer(name, _zeros(sizes))
        except (AttributeError, KeyError, RuntimeError) as error:  # no dictionary, a name that a Module has, odd sizes
            raise ValueError(str(error)) from error
        self.map, self.map_grid = map, tuple(map_grid)
        self._check()
        self._last_use = {name: place for place, node in enumerate(self.nodes) for name in node.inputs if name}

    def _check(self) -> None:
        """Every tensor is made before it is read."""
        known = {self.image, *self.constants, *(name for name, _ in self.named_weights())}
        for node in self.nodes:
            if missing := {name for name in node.inputs if name} - known:
                raise ValueError(f"node of {', '.join(sorted(missing))}, which nothing before it makes")
            known.update(node.outputs)
        for what, name in {"feature": self.feature, **({"map": self.map} if self.map else {})}.items():
            if name not in known:
                raise ValueError(f"{what} {name!r}")

    def named_weights(self) -> list[tuple[str, Tensor]]:
        """Name in the graph, and tensor, of each weight, trained or not."""
        return [*self.weights.named_parameters(), *self.weights.named_buffers()]

    def forward(self, images: Tensor) -> Tensor:
        return self.from_map(*self.to_map(images))

    def to_map(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, 3, H, W) → the map (B, c, h, w), without one the pictures, and the tensors that are needed further on."""
        values = {**self.fixed_values(), self.image: images}
        if not self.map:
            return images, values
        for place in range(self._map_at + 1):
            self.step(place, values, images.dtype)
        return self.grid_of(values[self.map]), values

    def from_map(self, grid: Tensor, values: dict[str, Tensor]) -> Tensor:
        """What `to_map` gave → (B, D). Another map in its place counts, but for tokens."""
        values = dict(values)
        if self.map and not self.map_grid:
            values[self.map] = grid
        for place in range(self._map_at + 1, len(self.nodes)):
            self.step(place, values, grid.dtype)
        return values[self.feature].reshape(-1, self.dimension)

    def fixed_values(self) -> dict[str, Tensor]:
        """Name → tensor of all that no picture changes."""
        return {**self.constants, **dict(self.named_weights())}

    @property
    def _map_at(self) -> int:
        """Place of the node that gives the map, −1 without one."""
        return next((place for place, node in enumerate(self.nodes) if self.map in node.outputs and self.map), -1)

    def grid_of(self, made: Tensor) -> Tensor:
        """The tensor called `map` as a map (B, c, h, w)."""
        if not self.map_grid:
            return made
        rows, columns = self.map_grid
        return made[:, made.shape[1] - rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))

    def step(self, place: int, values: dict[str, Tensor], dtype: torch.dtype) -> None:
        """Run one node; tensors that no later one reads are let go."""
        node = self.nodes[place]
        inputs = [values[name] if name else None for name in node.inputs]
        made = [_typed(one, dtype) for one in run(node, _together(node.operator, inputs))]
        values.update(zip(node.outputs, made))
        for name in node.inputs:
            if self._last_use.get(name) == place and name not in (self.feature, self.map):
                values.pop(name, None)


def run(node: Node, inputs: Sequence[Tensor | None]) -> Sequence[Tensor]:
    """Compute one node's outputs.

    Raises:
        NotImplementedError: torch has no equal for this use of the operator, which is named.
    """
    try:
        made = OPERATORS[node.operator](inputs, node.attributes)
    except NotImplementedError as error:
        raise NotImplementedError(f"{node.operator} with {error}") from error
    return [made] if isinstance(made, Tensor) else made


def _typed(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Floats that a graph makes of integers (a square root of a size) are of the pictures' type, not float32."""
    return tensor.to(dtype) if tensor.is_floating_point() and tensor.dim() else tensor


def _together(operator: str, inputs: list[Tensor | None]) -> list[Tensor | None]:
    """All inputs on the GPU where one is there, but for those that are read as numbers."""
    device = next((t.device for t in inputs if t is not None and t.device.type != "cpu"), None)
    if device is None:
        return inputs
    kept = STEERING.get(operator, ())
    moves = [t is not None and t.dim() > 0 and place not in kept for place, t in enumerate(inputs)]
    return [t.to(device) if move and t is not None else t for t, move in zip(inputs, moves)]
