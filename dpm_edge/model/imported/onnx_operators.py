"""ONNX operators in torch, as operator sets 18 and newer define them, for networks that are imported from an ONNX.

Each takes its inputs (None: left out) and its attributes. A use that torch has no equal for raises NotImplementedError.
Sizes, axes and other integers that steer an operator are tensors on the CPU.

Source of every definition: https://onnx.ai/onnx/operators
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.model.imported import onnx_windows

Inputs = Sequence[Any]
"""Tensors, None where an optional one is left out."""
Attributes = dict[str, Any]
Operator = Callable[[Inputs, Attributes], "Tensor | Sequence[Tensor]"]

STEERING: dict[str, tuple[int, ...]] = {
    "Clip": (1, 2),
    "ConstantOfShape": (0,),
    "Expand": (1,),
    "Pad": (1, 2, 3),
    "Range": (0, 1, 2),
    "Reshape": (1,),
    "Resize": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Split": (1,),
    "Squeeze": (1,),
    "Tile": (1,),
    "Unsqueeze": (1,),
}
"""Operator → places of inputs that are read as numbers: they stay on the CPU and are never trained. All Reduce…: 1."""
DTYPES = {1: torch.float32, 6: torch.int32, 7: torch.int64, 9: torch.bool, 10: torch.float32, 11: torch.float64}
"""ONNX's number of a type → torch's; float16 became float32 when the graph was adopted."""


def numbers(tensor: Any) -> list[int]:
    """The integers of a steering input, [] where it is left out."""
    return [] if tensor is None else [int(v) for v in tensor.flatten().tolist()]


def at(inputs: Inputs, place: int) -> Any:
    """An input, None where it is left out."""
    return inputs[place] if place < len(inputs) else None


def _prod(x: Tensor, dim: list[int], keepdim: bool) -> Tensor:
    for axis in sorted((d % x.dim() for d in dim), reverse=True):
        x = x.prod(axis, keepdim=keepdim)
    return x


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "ReduceMean": torch.mean,
    "ReduceSum": torch.sum,
    "ReduceMax": torch.amax,
    "ReduceMin": torch.amin,
    "ReduceProd": _prod,
    "ReduceL1": lambda x, **how: x.abs().sum(**how),
    "ReduceL2": lambda x, **how: x.square().sum(**how).sqrt(),
    "ReduceSumSquare": lambda x, **how: x.square().sum(**how),
    "ReduceLogSum": lambda x, **how: x.sum(**how).log(),
    "ReduceLogSumExp": torch.logsumexp,
}


def _divide(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b = inputs
    whole = not (a.is_floating_point() or b.is_floating_point())
    return torch.div(a, b, rounding_mode="trunc" if whole else None)


def _clip(inputs: Inputs, attributes: Attributes) -> Tensor:
    low, high = (None if at(inputs, place) is None else at(inputs, place).item() for place in (1, 2))
    return inputs[0] if low is None and high is None else inputs[0].clamp(low, high)


def _gemm(inputs: Inputs, attributes: Attributes) -> Tensor:
    a, b, c = inputs[0], inputs[1], at(inputs, 2)
    a = a.t() if attributes.get("transA", 0) else a
    b = b.t() if attributes.get("transB", 0) else b
    made = attributes.get("alpha", 1.0) * (a @ b)
    return made if c is None else made + attributes.get("beta", 1.0) * c


def _batch_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, shift, mean, variance = inputs
    if attributes.get("training_mode", 0):
        raise NotImplementedError("training_mode=1")
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, attributes.get("epsilon", 1e-5))


def _layer_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", -1)
    sizes = list(x.shape[axis:])
    scale = inputs[1].expand(sizes)
    shift = None if at(inputs, 2) is None else inputs[2].expand(sizes)
    return F.layer_norm(x, sizes, scale, shift, attributes.get("epsilon", 1e-5))


def _group_norm(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, scale, shift = inputs
    each = x.shape[1] // len(scale)  # operator set 18 has one number a group, 21 one a channel
    scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
    return F.group_norm(x, attributes["num_groups"], scale, shift, attributes.get("epsilon", 1e-5))


def _cast(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, wanted = inputs[0], DTYPES.get(attributes["to"])
    if wanted is None:
        raise NotImplementedError(f"to={attributes['to']}")
    return x if x.is_floating_point() and wanted.is_floating_point else x.to(wanted)


def _reshape(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, sizes = inputs[0], numbers(inputs[1])
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[place] if size == 0 else size for place, size in enumerate(sizes)]
    return x.reshape(sizes)


def _flatten(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axis = inputs[0], attributes.get("axis", 1)
    return x.reshape(math.prod(x.shape[: axis if axis >= 0 else x.dim() + axis]), -1)


def _squeeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    axes = numbers(at(inputs, 1)) or [d for d, size in enumerate(inputs[0].shape) if size == 1]
    return inputs[0].squeeze(tuple(axes))


def _unsqueeze(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, axes = inputs[0], numbers(inputs[1])
    rank = x.dim() + len(axes)
    for axis in sorted(a % rank for a in axes):
        x = x.unsqueeze(axis)
    return x


def _split(inputs: Inputs, attributes: Attributes) -> Sequence[Tensor]:
    x, axis, sizes = inputs[0], attributes.get("axis", 0), numbers(at(inputs, 1))
    if sizes:
        return x.split(sizes, axis)
    parts = attributes.get("num_outputs")
    if parts is None:
        raise NotImplementedError("neither sizes nor num_outputs")
    return x.split(-(-x.shape[axis] // parts), axis)


def _slice(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, starts, ends = inputs[0], numbers(inputs[1]), numbers(inputs[2])
    axes = numbers(at(inputs, 3)) or list(range(len(starts)))
    steps = numbers(at(inputs, 4)) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps):
        size = x.shape[axis]
        first, last, step = slice(start, end, step).indices(size)
        if step > 0:
            x = x[(slice(None),) * (axis % x.dim()) + (slice(first, max(first, last), step),)]
        else:
            x = x.index_select(axis, torch.tensor(list(range(first, last, step)), dtype=torch.int64, device=x.device))
    return x


def _gather(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, index = inputs
    axis = attributes.get("axis", 0) % x.dim()
    if index.dim() == 0:
        return x.select(axis, int(index))
    index = torch.where(index < 0, index + x.shape[axis], index).long()
    return x.index_select(axis, index.flatten()).reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _expand(inputs: Inputs, attributes: Attributes) -> Tensor:
    return inputs[0].expand(torch.broadcast_shapes(inputs[0].shape, numbers(inputs[1])))


def _constant_of_shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    value = attributes.get("value", torch.zeros(1))
    return torch.full(numbers(inputs[0]), value.item(), dtype=value.dtype)


def _range(inputs: Inputs, attributes: Attributes) -> Tensor:
    first, last, step = (tensor.item() for tensor in inputs)
    return torch.arange(first, last, step, dtype=inputs[0].dtype)


def _shape(inputs: Inputs, attributes: Attributes) -> Tensor:
    sizes = list(inputs[0].shape)
    return torch.tensor(sizes[attributes.get("start", 0) : attributes.get("end", len(sizes))], dtype=torch.int64)


def _depth_to_space(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, block = inputs[0], attributes["blocksize"]
    if attributes.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    n, c, h, w = x.shape
    x = x.reshape(n, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(n, c // block**2, h * block, w * block)


def _space_to_depth(inputs: Inputs, attributes: Attributes) -> Tensor:
    x, block = inputs[0], attributes["blocksize"]
    n, c, h, w = x.shape
    x = x.reshape(n, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(n, c * block**2, h // block, w // block)


def _gelu(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.gelu(inputs[0], approximate=attributes.get("approximate", "none"))


def _lp_normalisation(inputs: Inputs, attributes: Attributes) -> Tensor:
    return F.normalize(inputs[0], p=attributes.get("p", 2), dim=attributes.get("axis", -1))


def _hard_sigmoid(inputs: Inputs, attributes: Attributes) -> Tensor:
    return (attributes.get("alpha", 0.2) * inputs[0] + attributes.get("beta", 0.5)).clamp(0, 1)


def _fold(how: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    """An operator of any number of inputs out of one of two."""

    def run(inputs: Inputs, attributes: Attributes) -> Tensor:
        made = inputs[0]
        for other in inputs[1:]:
            made = how(made, other)
        return made

    return run


def _mean(inputs: Inputs, attributes: Attributes) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*inputs)).mean(0)


def _reduction(how: Callable[..., Tensor]) -> Operator:
    """An operator over some axes, which are its second input; all axes where it is left out."""

    def run(inputs: Inputs, attributes: Attributes) -> Tensor:
        x, axes = inputs[0], numbers(at(inputs, 1))
        if not axes and attributes.get("noop_with_empty_axes", 0):
            return x
        return how(x, dim=axes or list(range(x.dim())), keepdim=bool(attributes.get("keepdims", 1)))

    return run


def _plain(how: Callable[..., Tensor]) -> Operator:
    """An operator without attributes."""
    return lambda inputs, attributes: how(*inputs)


PLAIN: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "Add": torch.add,
    "And": torch.logical_and,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Equal": torch.eq,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "HardSwish": F.hardswish,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "Log": torch.log,
    "MatMul": torch.matmul,
    "Mish": F.mish,
    "Mul": torch.mul,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Or": torch.logical_or,
    "Pow": torch.pow,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Round": torch.round,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Sqrt": torch.sqrt,
    "Sub": torch.sub,
    "Tan": torch.tan,
    "Tanh": torch.tanh,
    "Where": torch.where,
}
"""Name of an operator without attributes → what computes it."""

OPERATORS: dict[str, Operator] = {
    **{name: _plain(how) for name, how in PLAIN.items()},
    **{name: _reduction(how) for name, how in REDUCTIONS.items()},
    **onnx_windows.OPERATORS,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda inputs, attributes: torch.cat(list(inputs), attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Div": _divide,
    "Dropout": lambda inputs, attributes: inputs[0],
    "Einsum": lambda inputs, attributes: torch.einsum(attributes["equation"], *inputs),
    "Elu": lambda inputs, attributes: F.elu(inputs[0], attributes.get("alpha", 1.0)),
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "HardSigmoid": _hard_sigmoid,
    "Identity": lambda inputs, attributes: inputs[0],
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda inputs, attributes: F.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "LogSoftmax": lambda inputs, attributes: torch.log_softmax(inputs[0], attributes.get("axis", -1)),
    "LpNormalization": _lp_normalisation,
    "Max": _fold(torch.maximum),
    "Mean": _mean,
    "Min": _fold(torch.minimum),
    "PRelu": lambda inputs, attributes: torch.where(inputs[0] > 0, inputs[0], inputs[0] * inputs[1]),
    "Range": _range,
    "Reshape": _reshape,
    "Selu": lambda inputs, attributes: F.selu(inputs[0]),
    "Shape": _shape,
    "Slice": _slice,
    "Softmax": lambda inputs, attributes: torch.softmax(inputs[0], attributes.get("axis", -1)),
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sum": _fold(torch.add),
    "Tile": lambda inputs, attributes: inputs[0].repeat(numbers(inputs[1])),
    "Transpose": lambda inputs, attributes: inputs[0].permute(
        attributes.get("perm") or list(range(inputs[0].dim()))[::-1]
    ),
    "Unsqueeze": _unsqueeze,
}
"""Name of an operator → what computes it."""
STEERING |= dict.fromkeys(REDUCTIONS, (1,))
