"""What masked_distance promises: types, limits, tolerances, tiles per architecture. Standard library only.

    B queries, N targets, D feature dimensions, k results

    s(q, m, t) = Σ_d q̂_d m_d t̂_d / sqrt(Σ_d m_d² t̂_d²)          (DPM, ACM MM 2022, arXiv 2207.09046)

Both sums are inner products over t, taken from one read of it. Precision: sums in fp32; q̂⊙m, m² and t² are rounded to
the operand type (the targets' own; fp16 for int8 targets), each query's row scaled so that its largest entry is 1.
fp16 targets are squared in fp16, which is exact to half a unit and holds |t| ≤ 255: store L2-normalised rows, or bf16.
Beyond it the similarity is 0. fp32 targets use three TF32 products, which keeps fp32's digits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dpm_edge.kernels.variant import Constant, Variant

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
    ("small", 2): {0: Tile(64, 16, 64, 4, 3), 90: Tile(64, 16, 128, 4, 4), 100: Tile(64, 16, 128, 4, 4)},
    ("small", 4): {0: Tile(32, 16, 32, 4, 3), 90: Tile(64, 16, 32, 4, 4), 100: Tile(64, 16, 32, 4, 4)},
    ("large", 1): {0: Tile(64, 32, 64, 4, 3), 90: Tile(128, 64, 64, 8, 3), 100: Tile(128, 64, 64, 8, 3)},
    ("large", 2): {0: Tile(64, 32, 64, 4, 3), 90: Tile(128, 64, 64, 8, 3), 100: Tile(128, 64, 64, 8, 3)},
    ("large", 4): {0: Tile(32, 32, 32, 4, 2), 90: Tile(64, 64, 32, 4, 2), 100: Tile(64, 64, 32, 4, 2)},
}
"""Entry 0 serves every architecture not named: it fits Orin (sm_87) without spills."""
GRADIENT_TILE = Tile(32, 32, 16, 4, 2)
GRADIENT_BLOCK_D = 64
"""Columns of a gradient per program, each of which recomputes its similarities."""


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


_MODULE = "dpm_edge.kernels.masked_distance"
_POINTERS = {
    "Q": "*fp32", "M": "*fp32", "GAIN": "*fp32", "ROW_SCALE": "*fp32", "LABELS": "*i32", "FILTER": "*u8",
    "Q_PERSON": "*i32", "Q_CAMERA": "*i32", "T_PERSON": "*i32", "T_CAMERA": "*i32", "KEYS": "*i64", "GROUPS": "*i64",
    "GRAD": "*fp32", "DA": "*fp32", "DMM": "*fp32", "DT": "*fp32", "SCORES": "*fp32", "ROWS": "*i64",
    **dict.fromkeys(("B", "N", "D", "K", "L", "SPLIT_ROWS"), "i32"),
}  # fmt: skip
_ALIGNED = ("Q", "M", "QM", "MM", "A", "T", "TMASK", "D", "KEYS")
_TARGETS = "QM MM GAIN T ROW_SCALE TMASK"
_FILTERS = "FILTER Q_PERSON Q_CAMERA T_PERSON T_CAMERA"


def _variant(
    name: str,
    kernel: str,
    parameters: str,
    dtype: str,
    constexprs: Mapping[str, Constant],
    absent: str = "",
    **more: Any,
) -> Variant:
    """A variant of `kernel` with run-time `parameters` over targets of `dtype`; pointers in `absent` are left out."""
    kind, inner = TRITON_TYPE[dtype], TRITON_TYPE[operand(dtype)]
    wide = "*fp32" if more.pop("fp32_queries", False) else f"*{inner}"
    types = {**_POINTERS, "QM": wide, "MM": wide, "A": wide, "T": f"*{kind}", "TMASK": f"*{inner}", "OUT": "*fp32"}
    types |= more.pop("types", {})
    constants: dict[str, Constant] = {**constexprs, **dict.fromkeys(absent.split())}
    signature = {p: "constexpr" if p in constants else types[p] for p in parameters.split()}
    signature |= dict.fromkeys(constexprs, "constexpr")
    aligned = tuple(p for p in _ALIGNED if signature.get(p, "constexpr") != "constexpr")
    return Variant(
        op=OP, name=f"masked_{name}_{kind}", kernel=f"{_MODULE}.{kernel}", signature=signature, constexprs=constants,
        divisible_by_16=aligned, **more,
    )  # fmt: skip


def _similarity(name: str, epilogue: int, path: str, dtype: str, absent: str, **more: Any) -> Variant:
    """The main kernel with the tiles of `path`. D must be a multiple of 128."""
    table = TILES[path, {"int8": 1, "float32": 4}.get(dtype, 2)]
    stages = {"num_stages": 2} if "TMASK" not in absent.split() else {}
    tiles = {
        sm: {"BLOCK_N": t.block_n, "BLOCK_B": t.block_b, "BLOCK_K": t.block_k, "num_warps": t.num_warps,
             "num_stages": t.num_stages, **stages}
        for sm, t in table.items()
    }  # fmt: skip
    base = tiles.pop(0)
    options = {name: int(base.pop(name)) for name in ("num_warps", "num_stages")}
    constexprs = {
        "EPILOGUE": epilogue, **base, "PAD_D": PAD_D, "GROUP": GROUP, "EVEN_D": True,
        "PRECISION": "tf32x3" if dtype == "float32" else "tf32", "FP32_DOT": False, "FILTER_BITS": False,
        "SCALE": SCALE, "MARGIN": MARGIN, "COS": math.cos(MARGIN), "SIN": math.sin(MARGIN), "CLIP": ARCCOS_CLIP,
    }  # fmt: skip
    absent += "" if dtype == "int8" else " ROW_SCALE"
    return _variant(
        f"{name}_{path}", "kernel:similarity", f"{_TARGETS} LABELS {_FILTERS} B N D OUT", dtype, constexprs, absent,
        tiles=tiles, grid="ceil(N / BLOCK_N) * ceil(B / BLOCK_B)", matrix=True, **options, **more,
    )  # fmt: skip


def _gradient(name: str, dtype: str, parameters: str, grid: str) -> Variant:
    tile = GRADIENT_TILE
    constexprs = {
        "BLOCK_N": tile.block_n, "BLOCK_B": tile.block_b, "BLOCK_K": tile.block_k, "BLOCK_D": GRADIENT_BLOCK_D,
        "PAD_D": PAD_D, "EVEN_D": True, "PRECISION": "tf32x3" if dtype == "float32" else "tf32", "SCALE": SCALE,
        "COS": math.cos(MARGIN), "SIN": math.sin(MARGIN), "CLIP": ARCCOS_CLIP,
    }  # fmt: skip
    return _variant(
        name, f"kernel_gradient:{name}", f"A MM T LABELS GRAD B N D {parameters}", dtype, constexprs, fp32_queries=True,
        grid=grid, matrix=True, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def _select(k_pad: int, last: bool) -> Variant:
    constexprs = {"CHUNK": CHUNK, "K_PAD": k_pad, "LAST": last, "SORTED": True}
    return replace(
        _variant(
            "", "kernel_topk:select", "KEYS L K OUT SCORES ROWS", "float32", constexprs,
            "OUT" if last else "SCORES ROWS", types={"OUT": "*i64"}, grid="ceil(L / CHUNK), B", num_warps=4,
            num_stages=1, load_bytes=8,
        ),
        name=f"masked_select_{'rows' if last else 'keys'}_{k_pad}",
    )  # fmt: skip


def _rescore(dtype: str) -> Variant:
    constexprs = {"GROUP": GROUP, "BLOCK_K": PAD_D, "PAD_D": PAD_D, "EVEN_D": True, "FILTER_BITS": False}
    absent = "TMASK Q_PERSON Q_CAMERA T_PERSON T_CAMERA" + ("" if dtype == "int8" else " ROW_SCALE")
    return _variant(
        "rescore", "kernel_topk:rescore", f"{_TARGETS} {_FILTERS} GROUPS B N D K KEYS", dtype, constexprs, absent,
        grid="K, B", num_warps=4, num_stages=2,
    )  # fmt: skip


_PLAIN = f"TMASK LABELS {_FILTERS}"
_UNDER_ROW_FILTER = "TMASK LABELS Q_PERSON Q_CAMERA T_PERSON T_CAMERA"

VARIANTS: tuple[Variant, ...] = (
    *(
        _variant(
            "prepare", "kernel:prepare", "Q M B D QM MM GAIN", dtype, {"PAD_D": PAD_D, "BLOCK_D": 1024},
            grid="ceil(B / 128) * 128", num_warps=4, num_stages=1,
        )
        for dtype in ("float32", "float16", "bfloat16")
    ),
    *(_similarity("similarity", 0, path, dtype, _PLAIN) for dtype in TARGET_DTYPES for path in ("small", "large")),
    *(_similarity("mutual", 0, path, "float16", f"LABELS {_FILTERS}") for path in ("small", "large")),
    *(_similarity("logits", 2, "large", dtype, f"TMASK {_FILTERS}") for dtype in ("float32", "bfloat16")),
    *(
        _similarity("groups", 3, path, dtype, _UNDER_ROW_FILTER, types={"OUT": "*i64"})
        for dtype in TARGET_DTYPES
        for path in ("small", "large")
    ),
    *(_select(k_pad, last) for k_pad in (16, 128) for last in (False, True)),
    *(_rescore(dtype) for dtype in TARGET_DTYPES),
    *(
        _gradient(
            "gradient_queries", dtype, "SPLIT_ROWS DA DMM",
            "ceil(B / BLOCK_B), ceil(D / BLOCK_D), ceil(N / SPLIT_ROWS)",
        )
        for dtype in ("float32", "bfloat16")
    ),
    *(
        _gradient("gradient_targets", dtype, "DT", "ceil(N / BLOCK_N), ceil(D / BLOCK_D)")
        for dtype in ("float32", "bfloat16")
    ),
)  # fmt: skip
"""Compiled ahead of time: D a multiple of 128, queries prepared for B rounded up to 128, top-k under a row filter."""
