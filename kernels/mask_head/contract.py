"""Contract of the mask head: what goes in and out, tolerances, and the table of tiles per architecture.

Shapes: B images · H×W grid of patches · d width · tokens (B, 1 + H·W, d) of four blocks · mask (B, d).
Heads: `paper`, three 3×3 convolutions (DPM, ACM MM 2022, arXiv 2207.09046); `lite`, depthwise-separable (this project).
"""

from __future__ import annotations

from dataclasses import dataclass

NAME = "dpm_edge::mask_head"
HEADS = ("paper", "lite")
BLOCKS = 4
DTYPES = ("float16", "bfloat16", "float32")
TOLERANCE = {"float16": 1e-3, "bfloat16": 1e-2, "float32": 1e-5}
"""‖mask − mask in float64‖ / ‖mask in float64‖ that is allowed, per dtype of the tokens."""
WEIGHTS = {"paper": 8, "lite": 16}
"""Number of tensors in a packed head: a weight and a bias per layer, in the order in which they act."""


@dataclass(frozen=True)
class Tile:
    """One program's share of a matrix product, and how it is compiled."""

    block_m: int
    block_n: int
    block_k: int
    group_m: int
    warps: int
    stages: int


STREAMING_MULTIPROCESSORS = {80: 108, 86: 84, 87: 16, 89: 142, 90: 132, 100: 148, 110: 20}
"""Used to choose how often a sum is split; a neighbour's count costs speed, never correctness."""

LARGE = {
    80: Tile(128, 128, 32, 8, 8, 3),
    86: Tile(128, 128, 32, 8, 8, 2),
    87: Tile(64, 128, 32, 8, 4, 3),
    89: Tile(128, 128, 32, 8, 8, 2),
    90: Tile(128, 256, 64, 8, 8, 3),
    100: Tile(128, 128, 64, 8, 8, 3),
    110: Tile(128, 128, 64, 8, 8, 3),
}
"""At least as many rows as block_m fills several times: bound by arithmetic."""

SMALL = {
    80: Tile(64, 64, 64, 8, 4, 4),
    86: Tile(64, 64, 64, 8, 4, 3),
    87: Tile(64, 64, 32, 8, 4, 4),
    89: Tile(64, 64, 64, 8, 4, 3),
    90: Tile(64, 128, 64, 8, 4, 4),
    100: Tile(64, 128, 64, 8, 4, 4),
    110: Tile(64, 128, 64, 8, 4, 4),
}
"""Few rows: bound by reading the weights."""

WIDE = {4: Tile(32, 32, 32, 4, 4, 2)}
"""float32 tokens on any architecture, by size of an element."""

INTERPRETER = Tile(32, 32, 32, 2, 4, 1)
GATES = Tile(16, 32, 64, 1, 4, 3)
"""The last linear: 16 rows are the fewest that a matrix instruction takes."""
DEPTHWISE = (8, 128, 4)
"""Pixels, channels, warps."""
POOL_COLUMNS = 128
WINOGRAD_INPUT = (4, 256, 4)
"""Windows, channels, warps."""
WINOGRAD_OUTPUT = (4, 256, 4)
"""Windows, columns, warps."""
WINOGRAD_FROM_WINDOWS = 64
"""Pool windows in a batch from which Winograd's transform is faster than the implicit GEMM; below, weights bound both."""


def architecture(major: int, minor: int) -> int:
    """The table's architecture for a compute capability: the newest that is not newer than the device."""
    known = [arch for arch in LARGE if arch <= 10 * major + minor]
    return max(known) if known else 80


def product_tile(arch: int, rows: int, element_size: int) -> Tile:
    """Tile of a matrix product with so many rows; 0 is the interpreter."""
    if arch == 0:
        return INTERPRETER
    if element_size in WIDE:
        return WIDE[element_size]
    return LARGE[arch] if rows >= 4 * LARGE[arch].block_m else SMALL[arch]


def splits(arch: int, tiles: int, steps: int) -> int:
    """Into how many parts the sum over `steps` is cut so that `tiles` output tiles fill the device evenly.

    The cost is counted in steps: full waves times (steps of a part + start-up), and adding up the parts.
    """
    multiprocessors = STREAMING_MULTIPROCESSORS.get(arch, 2)
    start_up = 6

    def cost(parts: int) -> int:
        waves = -(-tiles * parts // multiprocessors)
        adding = 0 if parts == 1 else 8 + parts
        return waves * (-(-steps // parts) + start_up) + adding

    return min(range(1, min(32, max(1, steps // 4)) + 1), key=cost)
