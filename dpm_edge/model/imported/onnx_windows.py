"""ONNX operators that look at a window, pad or resize, in torch: see onnx_operators.

Shapes: (B, C, …), any number of spatial dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Attributes = dict[str, Any]
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MEANS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_RESIZES = {("linear", 1): "linear", ("linear", 2): "bilinear", ("linear", 3): "trilinear", ("cubic", 2): "bicubic"}
"""ONNX's mode and the number of spatial dimensions → torch's mode."""
_MAXIMA = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _ends(x: Tensor, kernel: Sequence[int], attributes: Attributes) -> tuple[list[int], list[int]]:
    """Pixels to add before and after each spatial dimension."""
    rank, how = x.dim() - 2, attributes.get("auto_pad", "NOTSET")
    strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    if how == "NOTSET":
        pads = attributes.get("pads") or [0] * (2 * rank)
        return list(pads[:rank]), list(pads[rank:])
    if how == "VALID":
        return [0] * rank, [0] * rank
    before, after = [], []
    for size, k, stride, dilation in zip(x.shape[2:], kernel, strides, dilations):
        total = max(0, (-(-size // stride) - 1) * stride + dilation * (k - 1) + 1 - size)
        small = total // 2
        before.append(small if how == "SAME_UPPER" else total - small)
        after.append(total - small if how == "SAME_UPPER" else small)
    return before, after


def _padded(x: Tensor, before: Sequence[int], after: Sequence[int], value: float = 0.0) -> Tensor:
    if not (any(before) or any(after)):
        return x
    ends = [end for pair in zip(reversed(before), reversed(after)) for end in pair]
    return F.pad(x, ends, value=value)


def _ceiled(x: Tensor, kernel: Sequence[int], attributes: Attributes) -> list[int]:
    """Pixels that ceil_mode adds after each spatial dimension of a padded input; a window never starts in padding."""
    rank = x.dim() - 2
    if not attributes.get("ceil_mode", 0):
        return [0] * rank
    strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    ends = attributes.get("pads", [0] * (2 * rank))[rank:]
    made = []
    for size, k, stride, dilation, end in zip(x.shape[2:], kernel, strides, dilations, ends):
        window = dilation * (k - 1) + 1
        windows = -(-(size - window) // stride) + 1
        if (windows - 1) * stride >= size - end:
            windows -= 1
        made.append(max(0, (windows - 1) * stride + window - size))
    return made


def convolution(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    """Compute Conv."""
    x, weight = inputs[:2]
    rank = x.dim() - 2
    before, after = _ends(x, weight.shape[2:], attributes)
    padding: list[int] = before
    if before != after:
        x, padding = _padded(x, before, after), [0] * rank
    return _CONVOLUTIONS[rank](
        x,
        weight,
        inputs[2] if len(inputs) > 2 else None,
        attributes.get("strides") or [1] * rank,
        padding,
        attributes.get("dilations") or [1] * rank,
        attributes.get("group", 1),
    )


def transposed_convolution(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    """Compute ConvTranspose."""
    x, weight = inputs[:2]
    rank = x.dim() - 2
    pads = attributes.get("pads") or [0] * (2 * rank)
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes or pads[:rank] != pads[rank:]:
        raise NotImplementedError("auto_pad, output_shape or uneven pads")
    return _TRANSPOSED[rank](
        x,
        weight,
        inputs[2] if len(inputs) > 2 else None,
        attributes.get("strides") or [1] * rank,
        pads[:rank],
        attributes.get("output_padding") or [0] * rank,
        attributes.get("group", 1),
        attributes.get("dilations") or [1] * rank,
    )


def average_pool(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    """Compute AveragePool: sums over windows divided by the pixels in them."""
    x, kernel = inputs[0], attributes["kernel_shape"]
    rank = x.dim() - 2
    if any(d != 1 for d in attributes.get("dilations", [])):
        raise NotImplementedError("dilations")
    before, after = _ends(x, kernel, attributes)
    counted = _padded(torch.ones_like(x[:1, :1]), before, after, float(attributes.get("count_include_pad", 0)))
    x = _padded(x, before, after)
    more = _ceiled(x, kernel, attributes)
    strides = attributes.get("strides") or [1] * rank
    mean = _MEANS[rank](_padded(x, [0] * rank, more), kernel, strides)
    if not (any(before) or any(after) or any(more)):
        return mean
    return mean / _MEANS[rank](_padded(counted, [0] * rank, more), kernel, strides)


def max_pool(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    """Compute MaxPool, its first output."""
    x, kernel = inputs[0], attributes["kernel_shape"]
    rank = x.dim() - 2
    before, after = _ends(x, kernel, attributes)
    x = _padded(x, before, after, float("-inf"))
    x = _padded(x, [0] * rank, _ceiled(x, kernel, attributes), float("-inf"))
    strides, dilations = (attributes.get(name) or [1] * rank for name in ("strides", "dilations"))
    return _MAXIMA[rank](x, kernel, strides, 0, dilations)


def pad(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    """Compute Pad; padding other than with a constant reaches the spatial dimensions alone."""
    x = inputs[0]
    given = [int(v) for v in inputs[1].tolist()]
    value = inputs[2].item() if len(inputs) > 2 and inputs[2] is not None else 0.0
    axes = [int(v) for v in inputs[3].tolist()] if len(inputs) > 3 and inputs[3] is not None else list(range(x.dim()))
    before, after = [0] * x.dim(), [0] * x.dim()
    for place, axis in enumerate(axes):
        before[axis], after[axis] = given[place], given[place + len(axes)]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        attributes.get("mode", "constant")
    ]
    if mode == "constant":
        return _padded(x, before, after, value)
    if any(before[:2]) or any(after[:2]):
        raise NotImplementedError(f"mode={mode} outside the spatial dimensions")
    ends = [end for pair in zip(reversed(before[2:]), reversed(after[2:])) for end in pair]
    return F.pad(x, ends, mode=mode)


def resize(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    """Compute Resize, as far as torch's interpolation is the same."""
    x = inputs[0]
    rank, mode = x.dim() - 2, str(attributes.get("mode", "nearest"))
    where = attributes.get("coordinate_transformation_mode", "half_pixel")
    scales = inputs[2] if len(inputs) > 2 else None
    sizes = inputs[3] if len(inputs) > 3 else None
    usual = {"antialias": 0, "exclude_outside": 0, "keep_aspect_ratio_policy": "stretch", "cubic_coeff_a": -0.75}
    unusual = [name for name, value in usual.items() if attributes.get(name, value) != value]
    unusual += ["axes"] if "axes" in attributes else []
    if mode == "nearest":
        fits = where == "asymmetric" and attributes.get("nearest_mode") == "floor"
    else:
        fits = (mode, rank) in _RESIZES and where in ("half_pixel", "pytorch_half_pixel", "align_corners")
    how: str = _RESIZES.get((mode, rank), "nearest")
    if not fits or unusual:
        raise NotImplementedError(f"mode={mode}, coordinate_transformation_mode={where} {', '.join(unusual)}".strip())
    corners = None if mode == "nearest" else where == "align_corners"
    if sizes is not None and sizes.numel():
        return F.interpolate(x, [int(v) for v in sizes.tolist()][2:], mode=how, align_corners=corners)
    assert scales is not None, "either sizes or scales are given"
    factors = scales.tolist()[2:]
    return F.interpolate(x, scale_factor=factors, mode=how, align_corners=corners, recompute_scale_factor=False)


def _instance_norm(inputs: Sequence[Any], attributes: Attributes) -> Tensor:
    return F.instance_norm(inputs[0], weight=inputs[1], bias=inputs[2], eps=attributes.get("epsilon", 1e-5))


def _spatial(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


OPERATORS: dict[str, Callable[[Sequence[Any], Attributes], Tensor]] = {
    "AveragePool": average_pool,
    "Conv": convolution,
    "ConvTranspose": transposed_convolution,
    "GlobalAveragePool": lambda inputs, attributes: inputs[0].mean(_spatial(inputs[0]), keepdim=True),
    "GlobalMaxPool": lambda inputs, attributes: inputs[0].amax(_spatial(inputs[0]), keepdim=True),
    "InstanceNormalization": _instance_norm,
    "MaxPool": max_pool,
    "Pad": pad,
    "Resize": resize,
}
"""Name of an operator → what computes it."""
