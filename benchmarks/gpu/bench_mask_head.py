"""Mask head: correctness against float64, and time against cuDNN chains. Run by `suite.py`.

Question: is the head faster without concat, transpose, separate BN, ReLU and pool, and is Winograd worth its memory?
Shapes: B images · H×W grid · d width · tokens four of (B, 1 + H·W, d).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from timing import median_ms
from torch import Tensor, nn

from dpm_edge.kernels.mask_head import contract, launch, op, reference
from dpm_edge.kernels.mask_head.contract import Tile

Row = dict[str, Any]
Grid = tuple[int, int]


class Chain(nn.Module):
    """The head as research code writes it: concat, permute, then convolution, BN, ReLU, pool one after the other."""

    def __init__(self, head: str, width: int, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        half = width // 2
        if head == "paper":
            layers = [*_layer(4 * width, 2 * width, 3), nn.MaxPool2d(2), *_layer(2 * width, width, 3), nn.MaxPool2d(2)]
            self.layers = nn.Sequential(*layers, *_layer(width, width, 3))
        else:
            layers = [*_layer(4 * width, half, 1)]
            for out, pool in ((half, True), (half, True), (width, False)):
                layers += [*_layer(half, half, 3, groups=half), *_layer(half, out, 1)]
                layers += [nn.MaxPool2d(2)] if pool else []
            self.layers = nn.Sequential(*layers)
        self.linear = nn.Linear(width, width)

    def forward(self, tokens: list[Tensor], grid: Grid) -> Tensor:
        """(B, d) mask."""
        x = torch.cat([block[:, 1:] for block in tokens], dim=2).unflatten(1, grid).permute(0, 3, 1, 2)
        if not self.channels_last:
            x = x.contiguous()
        return torch.sigmoid(self.linear(self.layers(x).amax(dim=(2, 3))))


def _layer(channels: int, out: int, size: int, groups: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, out, size, padding=size // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight)
    norm = nn.BatchNorm2d(out)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    nn.init.normal_(norm.bias, std=0.1)
    nn.init.normal_(norm.running_mean, std=0.1)
    nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return [convolution, norm, nn.ReLU()]


def packed_from(chain: Chain, head: str, winograd: bool, dtype: torch.dtype) -> op.PackedHead:
    """The chain's weights, BN folded and rounded to dtype, as the kernels read them."""
    layers = list(chain.layers)
    folded = [
        op.fold_batch_norm(a.weight, b.weight, b.bias, b.running_mean, b.running_var, b.eps)
        for a, b in pairwise(layers)
        if isinstance(a, nn.Conv2d)
    ]
    folded = [(weight.to(dtype), bias.to(dtype)) for weight, bias in folded]
    linear = (chain.linear.weight, chain.linear.bias)
    if head == "paper":
        return op.pack_paper(folded, linear, winograd=winograd, dtype=dtype)
    blocks = [(folded[i], folded[i + 1]) for i in (1, 3, 5)]
    return op.pack_lite(folded[0], blocks, linear, dtype=dtype)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """Every tensor that torch allocates without a value is filled with NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _tokens(batch: int, grid: Grid, width: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    return [torch.randn(batch, 1 + grid[0] * grid[1], width, device=device).to(dtype) for _ in range(contract.BLOCKS)]


def _row(name: str, dtype: torch.dtype, shape: str, got: Tensor, wanted: Tensor, tolerance: float) -> Row:
    error = ((got.double() - wanted).norm() / wanted.norm()).item()
    label = str(dtype).removeprefix("torch.")
    ok = bool(torch.isfinite(got).all()) and error <= tolerance
    return {"name": name, "dtype": label, "shape": shape, "error": error, "tolerance": tolerance, "ok": ok}


def check(device: str, quick: bool) -> list[Row]:
    """Both heads, both algorithms, against float64 on fresh data; odd grids, one image, a width no tile divides."""
    shapes = [(2, (5, 4), 24)] if quick else [
        (1, (16, 8), 768), (9, (16, 8), 768), (5, (22, 11), 384), (7, (21, 10), 192), (3, (7, 5), 72), (1, (4, 4), 64),
    ]  # fmt: skip
    rows = []
    for dtype in (torch.float16, torch.bfloat16):
        for batch, grid, width in shapes:
            for head in contract.HEADS:
                chain = Chain(head, width).to(device).eval()
                tokens = _tokens(batch, grid, width, dtype, device)
                feature = F.normalize(torch.randn(batch, width, device=device), dim=1).to(dtype)
                exact = packed_from(chain, head, False, dtype).to(dtype=torch.float64)
                wide = [block.double() for block in tokens]
                wanted = reference.mask_head(wide, head, exact.tensors, *grid)
                for winograd in (False, True) if head == "paper" else (False,):
                    packed = packed_from(chain, head, winograd, dtype)
                    with poisoned_memory():
                        mask, masked, squared = op.mask_head_for_matching(tokens, packed, grid, feature)
                    name = f"mask_head {head}{' winograd' if winograd else ''}"
                    shape = f"B={batch} grid={grid[0]}x{grid[1]} d={width}"
                    tolerance = contract.TOLERANCE[str(dtype).removeprefix("torch.")]
                    rows.append(_row(name, dtype, shape, mask, wanted, tolerance))
                    rows.append(_row(f"{name}, q*m", dtype, shape, masked, feature.double() * wanted, tolerance))
                    rows.append(_row(f"{name}, m*m", dtype, shape, squared, wanted * wanted, 2 * tolerance))
                if head == "paper":
                    rows += _check_first_stage(chain, wide, tokens, grid, dtype, shape)
    return rows


def _check_first_stage(
    chain: Chain, wide: list[Tensor], tokens: list[Tensor], grid: Grid, dtype: torch.dtype, shape: str
) -> list[Row]:
    """The first convolution alone: an error there is not damped by a sigmoid. Also through the copy engine, if any."""
    rows = []
    arch = launch.device_architecture(tokens[0])
    x = torch.cat([block[:, 1:] for block in wide], dim=2).transpose(1, 2).unflatten(2, grid)
    exact = packed_from(chain, "paper", False, dtype).to(dtype=torch.float64).tensors
    convolved = F.relu(F.conv2d(x, reference.unpack_convolution(exact[0]), exact[1], padding=1))
    wanted = F.max_pool2d(convolved, 2).flatten(2).transpose(1, 2)
    for winograd in (False, True):
        packed = packed_from(chain, "paper", winograd, dtype).tensors
        products = wanted.shape[0] * wanted.shape[1] * (1 if winograd else 4)
        for descriptors in (False, True) if arch >= 90 else (False,):
            tile = replace(contract.product_tile(arch, products, packed[0].element_size()), descriptors=descriptors)
            with poisoned_memory():
                got = launch.convolve_and_pool(tokens, packed[0], packed[1], grid, 2, tile)
            name = f"first convolution{' winograd' if winograd else ''}{', descriptors' if descriptors else ''}"
            tolerance = contract.TOLERANCE[str(dtype).removeprefix("torch.")]
            rows.append(_row(name, dtype, shape, got, wanted, tolerance))
    return rows


def _floating_point_operations(head: str, batch: int, grid: Grid, width: int) -> int:
    """Multiply-adds times two of the heads as defined, whatever algorithm computes them."""
    positions, d = [grid[0] * grid[1]], width
    for _ in range(2):
        grid = launch.pooled_grid(grid)
        positions.append(grid[0] * grid[1])
    half = d // 2
    paper = 9 * (positions[0] * 8 * d * d + positions[1] * 2 * d * d + positions[2] * d * d)
    lite = positions[0] * (4 * d * half + 9 * half + half * half) + positions[1] * (9 * half + half * half)
    lite += positions[2] * (9 * half + half * d)
    return 2 * batch * ((paper if head == "paper" else lite) + d * d)


def timings(device: str, quick: bool) -> list[Row]:
    """Ours by both algorithms beside eager NCHW, channels-last and compiled chains, each in a CUDA graph."""
    if device == "cuda":
        torch.backends.cudnn.benchmark = True
    cases = [("paper", 1, (4, 4), 16), ("lite", 1, (4, 4), 16)] if quick else [
        ("paper", 32, (16, 8), 768), ("paper", 1, (16, 8), 768), ("paper", 8, (16, 8), 768),
        ("paper", 32, (22, 11), 768), ("lite", 32, (16, 8), 768), ("lite", 1, (16, 8), 768),
    ]  # fmt: skip
    rows = []
    for index, (head, batch, grid, width) in enumerate(cases):
        dtype = torch.float32 if quick else torch.float16
        tokens = _tokens(batch, grid, width, dtype, device)
        variants, parameters = _variants(head, grid, tokens, with_compile=index in (0, 1, 4) and not quick)
        for label, function in variants.items():
            row = {
                "name": f"mask_head {head}: {label}", "shape": f"B={batch} grid={grid[0]}x{grid[1]} d={width}",
                "dtype": str(dtype).removeprefix("torch."),
                "flops": _floating_point_operations(head, batch, grid, width),
                "bytes": (sum(t.numel() for t in tokens) + parameters + batch * width) * tokens[0].element_size(),
            }  # fmt: skip
            rows.append({**row, **_timed(function, device)})
    return rows


def _variants(
    head: str, grid: Grid, tokens: list[Tensor], with_compile: bool
) -> tuple[dict[str, Callable[[], Tensor]], int]:
    """What is timed, by name, and the number of parameters of the head as defined."""
    width, dtype, device = tokens[0].shape[2], tokens[0].dtype, tokens[0].device
    planar = Chain(head, width).to(device).eval()
    direct = packed_from(planar, head, False, dtype)
    variants: dict[str, Callable[[], Tensor]] = {"ours, implicit GEMM": lambda: op.mask_head(tokens, direct, grid)}
    if head == "paper":
        points = packed_from(planar, head, True, dtype)
        variants["ours, Winograd"] = lambda: op.mask_head(tokens, points, grid)
    planar = planar.to(dtype)
    variants["torch eager, NCHW"] = lambda: planar(tokens, grid)
    last = Chain(head, width, channels_last=True).to(device, dtype).eval().to(memory_format=torch.channels_last)
    variants["torch eager, channels-last"] = lambda: last(tokens, grid)
    if with_compile:
        compiled = torch.compile(last)
        variants["torch.compile, channels-last"] = lambda: compiled(tokens, grid)
    return variants, sum(tensor.numel() for tensor in direct.tensors)


def _timed(function: Callable[[], Any], device: str) -> Row:
    """Median time in a CUDA graph; without one where capture fails, and saying so."""
    with torch.no_grad():
        if device != "cuda":
            return {"ms": median_ms(function), "graph": False}
        try:
            return {"ms": median_ms(function, graph=True), "graph": True}
        except RuntimeError as error:
            torch.cuda.synchronize()
            return {"ms": median_ms(function), "graph": False, "capture_error": str(error)[:200]}


LARGE_TILES = (
    Tile(128, 256, 64, 8, 8, 4), Tile(128, 256, 64, 8, 8, 3, True), Tile(128, 256, 64, 8, 8, 4, True),
    Tile(128, 256, 64, 4, 8, 4, True), Tile(128, 256, 128, 8, 8, 2, True), Tile(256, 128, 64, 4, 8, 4, True),
)  # fmt: skip
SMALL_TILES = (
    Tile(64, 256, 64, 8, 8, 4, True), Tile(128, 128, 64, 8, 8, 6, True), Tile(64, 64, 128, 8, 4, 4, True),
    Tile(64, 128, 128, 8, 4, 4, True), Tile(32, 128, 64, 8, 4, 5), Tile(16, 128, 128, 8, 4, 4),
    Tile(32, 64, 128, 8, 4, 4),
)  # fmt: skip


def sweep(device: str) -> list[Row]:
    """Tiles of every stage at B=32 and B=1, d=768, grid 16×8; Winograd's parts one by one."""
    grid, width, dtype = (16, 8), 768, torch.float16
    chain = Chain("paper", width).to(device).eval()
    direct = packed_from(chain, "paper", False, dtype).tensors
    points = packed_from(chain, "paper", True, dtype).tensors
    tokens = _tokens(32, grid, width, dtype, device)
    second = torch.randn(32, 32, 2 * width, device=device).to(dtype)
    third = torch.randn(32, 8, width, device=device).to(dtype)
    one = [[block[:1].contiguous() for block in tokens], [second[:1].contiguous()], third[:1].contiguous()]
    rows: list[Row] = []

    def add(name: str, function: Callable[[], Any], tile: object = None) -> None:
        try:
            row = _timed(function, device)
        except Exception as error:  # a tile may not fit the device: that is a finding
            row = {"error": f"{type(error).__name__}: {error}"[:200]}
        rows.append({"name": name, "dtype": "float16", "tile": str(tile), **row})

    for depth, columns, windows in ((4 * width, 2 * width, 1024), (2 * width, width, 256)):
        transformed = torch.randn(16, windows, depth, device=device).to(dtype)
        weight = points[0] if windows == 1024 else points[2]
        name = f"Winograd products {windows}x{depth}x{columns}"
        for tile in LARGE_TILES:
            add(name, lambda t=tile, a=transformed, b=weight: launch.multiply_points(a, b, t), tile)
        add(f"{name}, torch.bmm", lambda a=transformed, b=weight: torch.bmm(a, b))
    for tile in LARGE_TILES[1:4]:
        add("stage 1 implicit GEMM", lambda t=tile: launch.convolve_and_pool(tokens, *direct[:2], grid, 2, t), tile)
    for block in (
        (4, 256, 4),
        (4, 128, 4),
        (8, 128, 4),
        (2, 256, 4),
        (4, 128, 2),
        (4, 256, 8),
        (2, 256, 2),
        (1, 256, 2),
    ):
        add("stage 1 Winograd, input transform", lambda b=block: launch.transform_input(tokens, grid, b), block)
    products = torch.randn(16, 1024, 2 * width, device=device).to(dtype)
    for block in ((4, 256, 4), (2, 256, 4), (1, 512, 4), (1, 256, 2), (2, 256, 2), (1, 512, 2)):
        add(
            "stage 1 Winograd, output transform",
            lambda b=block: launch.transform_output(products, points[1], 32, b),
            block,
        )
    add("stage 1 Winograd, whole", lambda: launch.convolve_and_pool(tokens, *points[:2], grid, 2))
    add("stage 2 Winograd, whole", lambda: launch.convolve_and_pool([second], *points[2:4], (8, 4), 2))
    for tile in SMALL_TILES:
        add("stage 3 + global max", lambda t=tile: launch.convolve_and_max(third, *direct[4:6], (4, 2), t), tile)
        add("stage 1, B=1", lambda t=tile: launch.convolve_and_pool(one[0], *direct[:2], grid, 2, t), tile)
        add("stage 2, B=1", lambda t=tile: launch.convolve_and_pool(one[1], *direct[2:4], (8, 4), 2, t), tile)
        add("stage 3, B=1", lambda t=tile: launch.convolve_and_max(one[2], *direct[4:6], (4, 2), t), tile)
    pooled = torch.randn(32, width, device=device).to(dtype)
    for columns, depth in ((16, 256), (32, 256), (32, 128), (64, 256)):
        tile = replace(contract.GATES, block_n=columns, block_k=depth)
        add("linear + sigmoid", lambda t=tile: launch.gates(pooled, *direct[6:], pooled, t), tile)
    return rows
