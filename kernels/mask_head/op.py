"""The mask head as a torch operator: tokens of four blocks and packed weights → mask, ready for masked matching.

Shapes: B images · H×W grid of patches · d width · tokens four of (B, 1 + H·W, d), cls first · mask (B, d).
On a GPU, and under TRITON_INTERPRET=1, the Triton kernels run; on other CPUs the reference does.
Source: DPM, ACM MM 2022 (arXiv 2207.09046); the `lite` form is this project's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpm_edge.kernels.dispatch import runs_kernel

from . import contract, reference
from .pack import PackedHead, fold_batch_norm, pack_lite, pack_paper

__all__ = ["PackedHead", "fold_batch_norm", "mask_head", "mask_head_for_matching", "pack_lite", "pack_paper"]


def mask_head(tokens: Sequence[Tensor], packed: PackedHead, grid: tuple[int, int]) -> Tensor:
    """Prototype mask of every image; inference only.

    Args:
        tokens: four contiguous (B, 1 + H·W, d) of one dtype: float16, bfloat16 or float32.
        packed: from `pack_paper` or `pack_lite`, same dtype and device.
        grid: (H, W).

    Returns:
        (B, d) in (0, 1), in the dtype of the tokens.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit together.
    """
    _check(tokens, packed, grid, None)
    return torch.ops.dpm_edge.mask_head(list(tokens), packed.head, list(packed.tensors), *grid)


def mask_head_for_matching(
    tokens: Sequence[Tensor], packed: PackedHead, grid: tuple[int, int], feature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As `mask_head`, with what masked matching reads next, from the same kernel.

    Args:
        feature: (B, d), L2-normalised, in the dtype of the tokens.

    Returns:
        mask, feature⊙mask and mask⊙mask, each (B, d); the products are formed before the mask is rounded.
    """
    _check(tokens, packed, grid, feature)
    return torch.ops.dpm_edge.mask_head_for_matching(list(tokens), packed.head, list(packed.tensors), *grid, feature)


@torch.library.custom_op("dpm_edge::mask_head", mutates_args=())
def _mask_head(tokens: list[Tensor], head: str, weights: list[Tensor], height: int, width: int) -> Tensor:
    if runs_kernel(tokens[0]):
        from . import launch

        return launch.gates(_pooled(tokens, head, weights, (height, width)), weights[-2], weights[-1], None)[0]
    return reference.mask_head(tokens, head, weights, height, width).to(tokens[0].dtype)


@_mask_head.register_fake
def _(tokens: list[Tensor], head: str, weights: list[Tensor], height: int, width: int) -> Tensor:
    return tokens[0].new_empty(tokens[0].shape[0], tokens[0].shape[2])


@torch.library.custom_op("dpm_edge::mask_head_for_matching", mutates_args=())
def _mask_head_for_matching(
    tokens: list[Tensor], head: str, weights: list[Tensor], height: int, width: int, feature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    if runs_kernel(tokens[0]):
        from . import launch

        return launch.gates(_pooled(tokens, head, weights, (height, width)), weights[-2], weights[-1], feature)
    mask = reference.mask_head(tokens, head, weights, height, width)
    masked, squared = reference.match_inputs(mask, feature)
    dtype = tokens[0].dtype
    return mask.to(dtype, copy=True), masked.to(dtype), squared.to(dtype)


@_mask_head_for_matching.register_fake
def _(
    tokens: list[Tensor], head: str, weights: list[Tensor], height: int, width: int, feature: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(feature), torch.empty_like(feature), torch.empty_like(feature)


def _pooled(tokens: Sequence[Tensor], head: str, weights: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
    """Everything up to the global max: (B, d)."""
    from . import launch

    tokens = [block.contiguous() for block in tokens]
    if head == "paper":
        for weight, bias in ((weights[0], weights[1]), (weights[2], weights[3])):
            tokens = [launch.convolve_and_pool(tokens, weight, bias, grid, 2)]
            grid = launch.pooled_grid(grid)
        return launch.convolve_and_max(tokens[0], weights[4], weights[5], grid)
    x = launch.convolve_and_pool(tokens, weights[0], weights[1], grid, 1)
    for depth, depth_bias, point, point_bias in (weights[2:6], weights[6:10]):
        x = launch.depthwise(x, depth, depth_bias, grid)
        x = launch.convolve_and_pool([x], point, point_bias, grid, 2)
        grid = launch.pooled_grid(grid)
    x = launch.depthwise(x, weights[10], weights[11], grid)
    return launch.convolve_and_max(x, weights[12], weights[13], grid)


def _check(tokens: Sequence[Tensor], packed: PackedHead, grid: tuple[int, int], feature: Tensor | None) -> None:
    first = tokens[0]
    if len(tokens) != contract.BLOCKS or first.dim() != 3 or first.shape[1] != 1 + grid[0] * grid[1]:
        raise ValueError(
            f"expected {contract.BLOCKS} token tensors (B, 1 + {grid[0]}·{grid[1]}, d), got {len(tokens)}, the first "
            f"{tuple(first.shape)}. Pass the network's own grid"
        )
    if min(grid) < 4:
        raise ValueError(f"expected a grid of at least 4×4, for two 2×2 poolings, got {grid}")
    others = [*tokens[1:], *([] if feature is None else [feature])]
    for tensor in [*others, *packed.tensors]:
        if tensor.dtype != first.dtype or tensor.device != first.device:
            raise ValueError(
                f"expected one dtype and one device, got {tensor.dtype} on {tensor.device} beside tokens of "
                f"{first.dtype} on {first.device}. Use PackedHead.to(device, dtype)"
            )
    if any(block.shape != first.shape for block in tokens[1:]):
        raise ValueError(f"expected four token tensors of one shape, got {[tuple(t.shape) for t in tokens]}")
    if str(first.dtype).removeprefix("torch.") not in (*contract.DTYPES, "float64"):
        raise ValueError(f"expected tokens of one of {contract.DTYPES}, got {first.dtype}")
    width = first.shape[2]
    if feature is not None and feature.shape != (first.shape[0], width):
        raise ValueError(f"expected feature ({first.shape[0]}, {width}), got {tuple(feature.shape)}")
    if packed.tensors[0].shape[1] != contract.BLOCKS * width:
        read = packed.tensors[0].shape[1]
        raise ValueError(
            f"expected weights for {contract.BLOCKS} × {width} channels, got {read}. Pack the head of this network"
        )
