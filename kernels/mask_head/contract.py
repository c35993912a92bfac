"""Contract of the mask head: what goes in and out, tolerances, and the table of tiles per architecture.

Shapes: B images · H×W grid of patches · d width · tokens (B, 1 + H·W, d) of four blocks · mask (B, d).
Heads: `paper`, three 3×3 convolutions (DPM, ACM MM 2022, arXiv 2207.09046); `lite`, depthwise-separable (this project).
"""

from __future__ import annotations

from dataclasses import dataclass

from dpm_edge.kernels.variant import ARCHITECTURES, Constant, Variant

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
    descriptors: bool = False
    """Read operands through the tensor memory accelerator (compute capability 9.0 and later)."""


STREAMING_MULTIPROCESSORS = {80: 108, 86: 84, 87: 16, 89: 142, 90: 132, 100: 148, 110: 20}
"""Used to choose how often a sum is split; a neighbour's count costs speed, never correctness."""

LARGE = {
    80: Tile(128, 128, 32, 8, 8, 3),
    86: Tile(128, 128, 32, 8, 8, 2),
    87: Tile(64, 128, 32, 8, 4, 3),
    89: Tile(128, 128, 32, 8, 8, 2),
    90: Tile(128, 256, 64, 8, 8, 4, descriptors=True),
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
GATES = Tile(16, 32, 256, 1, 4, 3)
"""The last linear: 16 rows are the fewest that a matrix instruction takes."""
DEPTHWISE = (8, 128, 4)
"""Pixels, channels, warps."""
ADD_AND_POOL = (256, 2)
"""Columns, warps."""
WINOGRAD_INPUT = (4, 256, 4)
"""Windows, channels, warps."""
WINOGRAD_OUTPUT = (4, 256, 4)
"""Windows, columns, warps."""
WINOGRAD_FROM_WINDOWS = 64
"""Pool windows in a batch from which Winograd is faster than the implicit GEMM; below, reading weights bounds both."""


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

    The cost is counted in steps: full waves times (steps of a part + start-up), and writing and adding up the parts
    (a tile of fp32 sums takes about a tenth of the time that the whole device takes for a step).
    """
    multiprocessors = STREAMING_MULTIPROCESSORS.get(arch, 2)
    start_up = 6

    def cost(parts: int) -> int:
        waves = -(-tiles * parts // multiprocessors)
        adding = 0 if parts == 1 else 8 + parts * tiles // 10
        return waves * (-(-steps // parts) + start_up) + adding

    return min(range(1, min(32, max(1, steps // 4)) + 1), key=cost)


_HALF = "*fp16"
_TOKENS = {f"token_{index}": _HALF for index in range(BLOCKS)}
_SIZES = ("batch", "height", "width")
_ALIGNED = ("channels", "out_channels", "depth")
"""Sizes that every caller of a compiled kernel promises to be multiples of 16: d and d/2 of the networks here are."""


def _variant(
    name: str, kernel: str, run_time: dict[str, str], constexprs: dict[str, Constant], grid: str, warps: int,
    stages: int = 3, tiles: dict[int, dict[str, Constant]] | None = None, matrix: bool = False, load_bytes: int = 16,
) -> Variant:  # fmt: skip
    aligned = tuple(key for key, kind in run_time.items() if kind.startswith("*") or key in _ALIGNED)
    return Variant(
        op="mask_head",
        name=f"mask_head_{name}_fp16",
        kernel=f"dpm_edge.kernels.mask_head.{kernel}",
        signature={**run_time, **dict.fromkeys(constexprs, "constexpr")},
        constexprs=constexprs,
        num_warps=warps,
        num_stages=stages,
        divisible_by_16=aligned,
        grid=grid,
        tiles=tiles or {},
        matrix=matrix,
        load_bytes=load_bytes,
    )


def _integers(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


def _product(
    name: str, kernel: str, run_time: dict[str, str], constexprs: dict[str, Constant], grid: str
) -> list[Variant]:
    """One variant for many rows and one for few, each with its tile per architecture."""
    variants = []
    for size, table in (("large", LARGE), ("small", SMALL)):
        tiles: dict[int, dict[str, Constant]] = {
            sm: {
                "BLOCK_M": table[sm].block_m, "BLOCK_N": table[sm].block_n, "BLOCK_K": table[sm].block_k,
                "GROUP_M": table[sm].group_m, "num_warps": table[sm].warps, "num_stages": table[sm].stages,
            }
            for sm in ARCHITECTURES
        }  # fmt: skip
        first = {key: value for key, value in tiles[80].items() if key.isupper()}
        constants = {**constexprs, **first}
        variants.append(_variant(f"{name}_{size}", kernel, run_time, constants, grid, 4, 3, tiles, matrix=True))
    return variants


def _convolution(name: str, sources: int, taps: int, pool: int) -> list[Variant]:
    """Convolution to fp32 partial sums, which `add_and_pool` ends; it works with one part, too."""
    run_time = {
        **_TOKENS, "weight": _HALF, "bias": _HALF, **_integers(*_SIZES, "channels", "out_channels", "splits"),
        "out": "*fp32",
    }  # fmt: skip
    constexprs: dict[str, Constant] = {
        "SOURCES": sources, "SKIP": int(sources > 1), "TAPS": taps, "POOL": pool,
        "PARTIAL": True, "EVEN_K": taps == 9, "UPCAST": False, "DESCRIPTORS": False, "OVERLAP": False,
    }  # fmt: skip
    grid = "ceil(rows / BLOCK_M) * ceil(out_channels / BLOCK_N), splits"
    return _product(name, "kernel:conv_pool", run_time, constexprs, grid)


def _input_transform(name: str, sources: int) -> Variant:
    block_p, block_c, warps = WINOGRAD_INPUT
    return _variant(
        name,
        "winograd:transform_input",
        {**_TOKENS, **_integers(*_SIZES, "channels"), "out": _HALF},
        {
            "SOURCES": sources,
            "SKIP": int(sources > 1),
            "OVERLAP": False,
            "BLOCK_P": block_p,
            "BLOCK_C": block_c,
        },
        f"ceil(windows / BLOCK_P), ceil(channels / BLOCK_C), {sources}",
        warps,
    )


VARIANTS: tuple[Variant, ...] = (
    *_convolution("first_convolution", sources=4, taps=9, pool=2),
    *_convolution("pooled_convolution", sources=1, taps=9, pool=2),
    *_convolution("last_convolution", sources=1, taps=9, pool=1),
    *_convolution("lite_reduction", sources=4, taps=1, pool=1),
    *_convolution("lite_pooled_pointwise", sources=1, taps=1, pool=2),
    *_convolution("lite_last_pointwise", sources=1, taps=1, pool=1),
    _variant(
        "add_and_pool",
        "kernel:pool_partials",
        {"partial": "*fp32", "bias": _HALF, **_integers("groups", "group_rows", "out_channels", "splits"),
         "out": _HALF},
        {"OVERLAP": False, "BLOCK_N": ADD_AND_POOL[0]},
        "groups, ceil(out_channels / BLOCK_N)",
        ADD_AND_POOL[1],
    ),
    _variant(
        "depthwise",
        "kernel:depthwise",
        {"grid_map": _HALF, "weight": _HALF, "bias": _HALF, **_integers("pixels", "height", "width", "channels"),
         "out": _HALF},
        {"OVERLAP": False, "BLOCK_P": DEPTHWISE[0], "BLOCK_C": DEPTHWISE[1]},
        "ceil(pixels / BLOCK_P), ceil(channels / BLOCK_C)",
        DEPTHWISE[2],
    ),
    _input_transform("winograd_first_input", sources=4),
    _input_transform("winograd_pooled_input", sources=1),
    *_product(
        "winograd_products",
        "winograd:multiply_points",
        {"transformed": _HALF, "weight": _HALF, **_integers("windows", "depth", "out_channels"), "products": _HALF},
        {"EVEN_K": True, "UPCAST": False, "DESCRIPTORS": False, "OVERLAP": False},
        "ceil(windows / BLOCK_M) * ceil(out_channels / BLOCK_N), 16",
    ),
    _variant(
        "winograd_output",
        "winograd:transform_output",
        {"products": _HALF, "bias": _HALF, **_integers("windows", "out_channels"), "out": _HALF},
        {"OVERLAP": False, "BLOCK_P": WINOGRAD_OUTPUT[0], "BLOCK_N": WINOGRAD_OUTPUT[1]},
        "ceil(windows / BLOCK_P), ceil(out_channels / BLOCK_N)",
        WINOGRAD_OUTPUT[2],
    ),
    _variant(
        "gates",
        "kernel:gates",
        {"pooled": _HALF, "weight": _HALF, "bias": _HALF, "feature": _HALF, **_integers("batch", "channels"),
         "mask": _HALF, "masked_feature": _HALF, "squared_mask": _HALF},
        {"HAS_FEATURE": True, "UPCAST": False, "OVERLAP": False, "BLOCK_M": GATES.block_m, "BLOCK_N": GATES.block_n,
         "BLOCK_K": GATES.block_k},
        "ceil(batch / BLOCK_M), ceil(channels / BLOCK_N)",
        GATES.warps,
        matrix=True,
    ),
)  # fmt: skip
"""Compiled ahead of time, float16 only: what an engine runs. `paper` takes widths that are multiples of 64."""
