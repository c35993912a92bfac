"""Which tensor of an ONNX's graph is its last feature map: what a picture's places still have a vector each in.

Shapes: B pictures · H×W pixels · c channels · h×w map · N = h·w tokens
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dpm_edge.model.imported.onnx_graph import OnnxGraph
from dpm_edge.spec import Preprocessing

LEAST_CHANNELS, LEAST_SIDE = 16, 3
"""Of what counts as a feature map: below it a tensor is a small picture, or nearly one vector."""
COARSEST = 64
"""Most pixels of a place's side."""
_AHEAD = ("Conv", "AveragePool", "MaxPool", "LpPool", "DepthToSpace", "SpaceToDepth", "Resize", "Pad", "LRN")
_ELEMENTWISE = (
    "Abs", "Add", "BatchNormalization", "Cast", "Clip", "Concat", "Div", "Dropout", "Elu", "Erf", "Exp", "Gelu",
    "GroupNormalization", "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LeakyRelu", "Log",
    "LpNormalization", "Max", "Mean", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Relu", "Selu", "Sigmoid",
    "Softplus", "Sqrt", "Sub", "Sum", "Tanh", "Where",
)  # fmt: skip
SPATIAL = frozenset((*_AHEAD, *_ELEMENTWISE))
"""Operators that leave a picture's places in order; behind any other, four sizes may mean something else."""
_PICTURES = 2


@dataclass(frozen=True)
class FoundMap:
    """A feature map in a graph."""

    name: str
    channels: int
    grid: tuple[int, int]
    """Rows and columns."""
    tokens: bool
    """Whether it is (B, N or 1 + N, c) in the graph, not (B, c, h, w)."""


@torch.inference_mode()
def find_map(body: OnnxGraph, pre: Preprocessing) -> FoundMap | None:
    """The last feature map of the graph, all of whose nodes lead to its feature; None where there is none.

    Where tokens follow that are as many as the places of a map (a ViT's), or one more, the last of them are it.
    """
    picture = torch.zeros(_PICTURES, 3, pre.height, pre.width)
    spatial, values = {body.image}, {**body.fixed_values(), body.image: picture}
    found: FoundMap | None = None
    for place, node in enumerate(body.nodes):
        body.step(place, values, picture.dtype)
        name = node.outputs[0]
        shape = tuple(values[name].shape) if name in values else ()
        if not shape or shape[0] != _PICTURES:
            continue
        if node.operator in SPATIAL and spatial.intersection(node.inputs):
            spatial.update(node.outputs)
            if len(shape) == 4 and _is_map(shape[1:], pre):
                found = FoundMap(name, shape[1], (shape[2], shape[3]), tokens=False)
        elif found is not None and len(shape) == 3 and shape[2] >= LEAST_CHANNELS:
            grid = _grid_of_tokens(shape[1], found.grid)
            found = found if grid is None else FoundMap(name, shape[2], grid, tokens=True)
    return found


def _grid_of_tokens(count: int, grid: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of so many tokens: those of the map, with or without a cls token, or half of them (Swin)."""
    rows, columns = grid
    if count - rows * columns in (0, 1):
        return grid
    halved = rows // 2, columns // 2
    return halved if min(halved) >= LEAST_SIDE and count == halved[0] * halved[1] else None


def _is_map(sizes: tuple[int, ...], pre: Preprocessing) -> bool:
    channels, rows, columns = sizes
    coarse = pre.height <= COARSEST * rows and pre.width <= COARSEST * columns
    return channels >= LEAST_CHANNELS and min(rows, columns) >= LEAST_SIDE and coarse
