"""What masked_distance promises: types, limits, tolerances, tiles per architecture. Standard library only.

    B queries, N targets, D feature dimensions, k results

    s(q, m, t) = Σ_d q̂_d m_d t̂_d / sqrt(Σ_d m_d² t̂_d²)          (DPM, ACM MM 2022, arXiv 2207.09046)

Both sums are inner products over t, taken from one read of it. Precision: sums in fp32; q̂⊙m, m² and t² are rounded to
the operand type (the targets' own; fp16 for int8 targets), each query's row scaled so that its largest entry is 1.
fp16 targets are squared in fp16, which is exact to half a unit and holds |t| ≤ 255: store L2-normalised rows, or bf16.
Beyond it the similarity is 0. fp32 targets use three TF32 products, which keeps fp32's digits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

OP = "masked_distance"
TARGET_DTYPES = ("float32", "float16", "bfloat16", "int8")
TOLERANCE: Mapping[str, float] = {"float32": 1e-5, "float16": 1e-3, "bfloat16": 1e-2, "int8": 1e-3}
"""Largest |error| against float64 over the largest |value|, per target dtype (int8: the dequantised ones)."""
K_MAX = 128
"""Most results of a top-k."""
GROUP = 32
"""Rows whose best similarity the first pass of top-k keeps; see kernel_topk.py."""
CHUNK = 1024
"""Keys that one program of `select` sorts."""
PAD_D = 128
"""Prepared queries have rows of D rounded up to this."""
SCALE, MARGIN = 30.0, 0.30
"""ArcFace scale and additive angular margin in radians (DPM's)."""
ARCCOS_CLIP = 1e-5
"""Similarities are clipped to ±(1 − this) before arccos and before the margin's sine."""
SMALL_BATCH = 16
"""Up to this many queries the read of the targets binds; above it the tensor cores do."""
TRITON_TYPE = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "int8": "i8"}


@dataclass(frozen=True)
class Tile:
    """One tile: BLOCK_N targets × BLOCK_B queries, BLOCK_K dimensions a step."""

    block_n: int
    block_b: int
    block_k: int
    num_warps: int
    num_stages: int


TILES: Mapping[tuple[str, int], Mapping[int, Tile]] = {
    # (path, bytes of a target element) → compute capability → tile
    ("small", 1): {0: Tile(64, 16, 64, 4, 3), 90: Tile(128, 16, 128, 4, 4), 100: Tile(128, 16, 128, 4, 4)},
    ("small", 2): {0: Tile(64, 16, 64, 4, 3), 90: Tile(128, 16, 64, 4, 4), 100: Tile(128, 16, 64, 4, 4)},
    ("small", 4): {0: Tile(32, 16, 32, 4, 3), 90: Tile(64, 16, 32, 4, 4), 100: Tile(64, 16, 32, 4, 4)},
    ("large", 1): {0: Tile(64, 32, 64, 4, 3), 90: Tile(128, 64, 64, 8, 3), 100: Tile(128, 64, 64, 8, 3)},
    ("large", 2): {0: Tile(64, 32, 64, 4, 3), 90: Tile(128, 128, 64, 8, 3), 100: Tile(128, 128, 64, 8, 3)},
    ("large", 4): {0: Tile(32, 32, 32, 4, 2), 90: Tile(64, 64, 32, 4, 2), 100: Tile(64, 64, 32, 4, 2)},
}
"""Entry 0 serves every architecture not named: it fits Orin (sm_87) without spills."""


def tile_for(batch: int, dtype: str, sm: int, mutual: bool = False) -> Tile:
    """The tile for `batch` queries over targets of `dtype` on compute capability `sm` (90 = Hopper).

    mutual: the targets' masks are read beside them, so that two stages fill the shared memory.
    """
    path = "small" if batch <= SMALL_BATCH else "large"
    table = TILES[path, {"int8": 1, "float32": 4}.get(dtype, 2)]
    tile = table.get(sm, table[0])
    return replace(tile, num_stages=2) if mutual else tile


def operand(dtype: str) -> str:
    """The type in which targets of `dtype` enter the tensor cores."""
    return "float16" if dtype == "int8" else dtype
