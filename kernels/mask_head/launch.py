"""Launches of the mask head's kernels on torch tensors: grids, tiles, intermediate maps. No checks, no autograd.

Shapes: B images · H×W grid · C channels of one source · S sources · N output channels.
    maps (B, H·W, C) channels last; tokens the same with a cls row first; products accumulate in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from . import contract, kernel, winograd
from .contract import Tile

Grid = tuple[int, int]


def device_architecture(tensor: Tensor) -> int:
    """Key into the tables of `contract`; 0 for the interpreter."""
    return contract.architecture(*torch.cuda.get_device_capability(tensor.device)) if tensor.is_cuda else 0


def pooled_grid(grid: Grid) -> Grid:
    """Grid after a 2×2 max-pool with floor."""
    return grid[0] // 2, grid[1] // 2


def convolve_and_pool(
    sources: Sequence[Tensor], weight: Tensor, bias: Tensor, grid: Grid, pool: int, tile: Tile | None = None,
    parts: int | None = None,
) -> Tensor:  # fmt: skip
    """Convolution (1×1, 3×3, or 3×3 by Winograd, as the weight is packed), bias, ReLU, max over `pool`.

    Args:
        sources: one or four tensors (B, skip + H·W, C) whose channels follow one another.
        weight, bias: packed (taps, S·C, N) and (N,).
        grid, pool: (H, W) of the sources; side of the max's window, 2, or 1 for none.
        tile, parts: override the table's tile and the number of parts into which the sum is cut.

    Returns:
        (B, ⌊H/pool⌋·⌊W/pool⌋, N) in the dtype of the sources.
    """
    if weight.shape[0] == 16:
        return winograd_and_pool(sources, weight, bias, grid, tile)
    windows = (grid[0] // pool) * (grid[1] // pool)
    batch, out_channels = sources[0].shape[0], weight.shape[2]
    rows = batch * windows * pool * pool
    arch = device_architecture(bias)
    tile = tile or contract.product_tile(arch, rows, bias.element_size())
    tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(out_channels, tile.block_n)
    if parts is None:
        steps = weight.shape[0] * len(sources) * triton.cdiv(sources[0].shape[2], tile.block_k)
        parts = contract.splits(arch, tiles, steps)
    out = bias.new_empty(batch, windows, out_channels)
    target = out if parts == 1 else partial_sums(bias, parts, rows, out_channels)
    _convolve(sources, weight, bias, grid, pool, tile, tiles, parts, target, parts > 1)
    if parts > 1:
        add_and_pool(target, bias, out)
    return out


def convolve_and_max(source: Tensor, weight: Tensor, bias: Tensor, grid: Grid, tile: Tile | None = None) -> Tensor:
    """Convolution, bias, ReLU, max over the whole grid: (B, H·W, C) → (B, N). The sum is always cut into parts."""
    batch, positions, channels = source.shape
    rows, out_channels = batch * positions, weight.shape[2]
    arch = device_architecture(bias)
    tile = tile or contract.product_tile(arch, rows, bias.element_size())
    tiles = triton.cdiv(rows, tile.block_m) * triton.cdiv(out_channels, tile.block_n)
    parts = contract.splits(arch, tiles, weight.shape[0] * triton.cdiv(channels, tile.block_k))
    target = partial_sums(bias, parts, rows, out_channels)
    _convolve([source], weight, bias, grid, 1, tile, tiles, parts, target, True)
    out = bias.new_empty(batch, out_channels)
    add_and_pool(target, bias, out)
    return out


def partial_sums(like: Tensor, parts: int, rows: int, columns: int) -> Tensor:
    """Uninitialised (parts, rows, columns) float32 on the device of `like`."""
    return like.new_empty(parts, rows, columns, dtype=torch.float32)


def add_and_pool(partial: Tensor, bias: Tensor, out: Tensor) -> None:
    """(parts, rows, N) → out (…, N): sums the parts, adds the bias, ReLU, max over the rows of each output row."""
    parts, rows, columns = partial.shape
    groups = out.numel() // columns
    block_n, warps = contract.ADD_AND_POOL
    kernel.pool_partials[(groups, triton.cdiv(columns, block_n))](
        partial, bias, groups, rows // groups, columns, parts, out, BLOCK_N=block_n, num_warps=warps, **_overlap(bias)
    )  # fmt: skip


def _convolve(
    sources: Sequence[Tensor], weight: Tensor, bias: Tensor, grid: Grid, pool: int, tile: Tile, tiles: int, parts: int,
    target: Tensor, partial: bool,
) -> None:  # fmt: skip
    batch, length, channels = sources[0].shape
    described = _describable(tile, channels, weight.shape[2])
    operand = _descriptor(weight, tile.block_k, tile.block_n) if described else weight
    kernel.conv_pool[(tiles, parts)](
        *_four(sources), operand, bias, batch, *grid, channels, weight.shape[2], parts, target,
        SOURCES=len(sources), SKIP=length - grid[0] * grid[1], TAPS=weight.shape[0], POOL=pool,
        PARTIAL=partial, EVEN_K=channels % tile.block_k == 0, UPCAST=_upcast(bias), DESCRIPTORS=described,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=tile.group_m,
        num_warps=tile.warps, num_stages=tile.stages, **_overlap(bias),
    )  # fmt: skip


def winograd_and_pool(
    sources: Sequence[Tensor], weight: Tensor, bias: Tensor, grid: Grid, tile: Tile | None = None
) -> Tensor:
    """3×3 convolution, bias, ReLU and 2×2 max-pool by Winograd: arguments and result as `convolve_and_pool`."""
    products = multiply_points(transform_input(sources, grid), weight, tile)
    return transform_output(products, bias, sources[0].shape[0])


def transform_input(
    sources: Sequence[Tensor], grid: Grid, block: tuple[int, int, int] = contract.WINOGRAD_INPUT
) -> Tensor:
    """Winograd's input transform: one or four (B, skip + H·W, C) → (16, B·windows, S·C)."""
    batch, length, channels = sources[0].shape
    windows = batch * (grid[0] // 2) * (grid[1] // 2)
    out = sources[0].new_empty(16, windows, len(sources) * channels)
    block_p, block_c, warps = block
    winograd.transform_input[(triton.cdiv(windows, block_p), triton.cdiv(channels, block_c), len(sources))](
        *_four(sources), batch, *grid, channels, out,
        SOURCES=len(sources), SKIP=length - grid[0] * grid[1], BLOCK_P=block_p, BLOCK_C=block_c,
        num_warps=warps, **_overlap(out),
    )  # fmt: skip
    return out


def transform_output(
    products: Tensor, bias: Tensor, batch: int, block: tuple[int, int, int] = contract.WINOGRAD_OUTPUT
) -> Tensor:
    """Winograd's output transform, bias, ReLU and max over the window: (16, B·windows, N) → (B, windows, N)."""
    windows, out_channels = products.shape[1:]
    out = bias.new_empty(batch, windows // batch, out_channels)
    block_p, block_n, warps = block
    winograd.transform_output[(triton.cdiv(windows, block_p), triton.cdiv(out_channels, block_n))](
        products, bias, windows, out_channels, out,
        BLOCK_P=block_p, BLOCK_N=block_n, num_warps=warps, **_overlap(bias),
    )  # fmt: skip
    return out


def multiply_points(transformed: Tensor, weight: Tensor, tile: Tile | None = None) -> Tensor:
    """The 16 matrix products of Winograd: (16, P, K) · (16, K, N) → (16, P, N), float32 for bfloat16.

    The output transform adds and subtracts nine of them, which would multiply bfloat16's rounding error.
    """
    windows, depth = transformed.shape[1:]
    out_channels = weight.shape[2]
    arch = device_architecture(weight)
    tile = tile or contract.product_tile(arch, windows * (16 if windows >= 128 else 1), weight.element_size())
    dtype = torch.float32 if weight.dtype == torch.bfloat16 else weight.dtype
    products = transformed.new_empty(16, windows, out_channels, dtype=dtype)
    tiles = triton.cdiv(windows, tile.block_m) * triton.cdiv(out_channels, tile.block_n)
    described = _describable(tile, depth, out_channels)
    a = _descriptor(transformed, tile.block_m, tile.block_k) if described else transformed
    b = _descriptor(weight, tile.block_k, tile.block_n) if described else weight
    winograd.multiply_points[(tiles, 16)](
        a, b, windows, depth, out_channels, products,
        EVEN_K=depth % tile.block_k == 0, UPCAST=_upcast(weight), DESCRIPTORS=described,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=tile.group_m,
        num_warps=tile.warps, num_stages=tile.stages, **_overlap(weight),
    )  # fmt: skip
    return products


def depthwise(source: Tensor, weight: Tensor, bias: Tensor, grid: Grid) -> Tensor:
    """Depthwise 3×3, bias, ReLU on a map (B, H·W, C)."""
    pixels, channels = source.shape[0] * source.shape[1], source.shape[2]
    out = torch.empty_like(source)
    block_p, block_c, warps = contract.DEPTHWISE
    kernel.depthwise[(triton.cdiv(pixels, block_p), triton.cdiv(channels, block_c))](
        source, weight, bias, pixels, *grid, channels, out,
        BLOCK_P=block_p, BLOCK_C=block_c, num_warps=warps, **_overlap(bias),
    )  # fmt: skip
    return out


def gates(
    pooled: Tensor, weight: Tensor, bias: Tensor, feature: Tensor | None, tile: Tile | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """sigmoid(pooled · weight + bias), and with a feature also feature⊙mask, mask⊙mask (else empty tensors)."""
    batch, channels = pooled.shape
    tile = tile or (contract.GATES if pooled.is_cuda else contract.INTERPRETER)
    mask = torch.empty_like(pooled)
    extra = [torch.empty_like(pooled) if feature is not None else pooled.new_empty(0) for _ in range(2)]
    kernel.gates[(triton.cdiv(batch, tile.block_m), triton.cdiv(channels, tile.block_n))](
        pooled, weight, bias, pooled if feature is None else feature, batch, channels, mask, *extra,
        HAS_FEATURE=feature is not None, UPCAST=_upcast(bias), BLOCK_M=tile.block_m, BLOCK_N=tile.block_n,
        BLOCK_K=tile.block_k, num_warps=tile.warps, num_stages=tile.stages, **_overlap(bias),
    )  # fmt: skip
    return mask, extra[0], extra[1]


def _four(sources: Sequence[Tensor]) -> list[Tensor]:
    return [sources[min(index, len(sources) - 1)] for index in range(4)]


def _describable(tile: Tile, depth: int, columns: int) -> bool:
    """Whether the copy engine can read the operands: no ragged channel chunk, rows of whole 16 bytes."""
    return tile.descriptors and depth % tile.block_k == 0 and columns % 8 == 0


def _descriptor(tensor: Tensor, block_rows: int, block_columns: int) -> TensorDescriptor:
    """All leading axes as rows."""
    return TensorDescriptor.from_tensor(tensor.flatten(0, -2), [block_rows, block_columns])


def _overlap(tensor: Tensor) -> dict[str, bool]:
    """Launch options and constant that let a kernel start while the one before it ends, where the device can."""
    able = device_architecture(tensor) >= 90
    return {"OVERLAP": True, "launch_pdl": True} if able else {"OVERLAP": False}


def _upcast(tensor: Tensor) -> bool:
    """The interpreter's matrix product is wrong for bfloat16."""
    return not tensor.is_cuda and tensor.dtype == torch.bfloat16
