"""Triton kernels of the mask head: convolution as implicit GEMM on token tensors, pooling of partial sums, gates.

Shapes: B images · H×W grid · C channels of one source · S sources · N output channels · K = taps·S·C
    tokens   (B, SKIP + H·W, C)  channels last; SKIP = 1 leaves out the cls token
    weight   (taps, S·C, N)      taps of a 3×3 in row order, or one tap for a 1×1
    rows     output pixels ordered pool-window-major: the POOL·POOL pixels of one window are neighbours
Method: DPM, ACM MM 2022 (arXiv 2207.09046), batch normalisation folded into weight and bias.
"""

import triton
import triton.language as tl


@triton.jit
def await_previous_kernel():
    """Lets the next kernel of the stream start, and waits until the one before has written everything.

    For kernels that are launched with programmatic dependent launch (compute capability 9.0 and later): the launch of
    one kernel then overlaps the end of another.
    """
    tl.extra.cuda.gdc_launch_dependents()
    tl.extra.cuda.gdc_wait()


@triton.jit
def conv_pool(
    token_0, token_1, token_2, token_3, weight, bias,
    batch, height, width, channels, out_channels, splits,
    out,
    SOURCES: tl.constexpr, SKIP: tl.constexpr, TAPS: tl.constexpr, POOL: tl.constexpr,
    PARTIAL: tl.constexpr, EVEN_K: tl.constexpr, UPCAST: tl.constexpr, DESCRIPTORS: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP_M: tl.constexpr,
):  # fmt: skip
    """out (windows, N) = max over the window of ReLU(conv + bias); PARTIAL: out (splits, rows, N) fp32 sums.

    Grid: (row tiles · column tiles, splits). UPCAST multiplies in fp32 (the interpreter's bfloat16 product is wrong).
    DESCRIPTORS (needs EVEN_K): weight is a tensor descriptor of (taps·S·C, N), for compute capability 9.0 and later.
    """
    if OVERLAP:
        await_previous_kernel()
    AREA: tl.constexpr = POOL * POOL
    windows_x = width // POOL
    windows = (height // POOL) * windows_x
    rows = batch * windows * AREA
    tiles_m = tl.cdiv(rows, BLOCK_M)
    tiles_n = tl.cdiv(out_channels, BLOCK_N)
    tile_m, tile_n = _grouped(tl.program_id(0), tiles_m, tiles_n, GROUP_M)

    row = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    window = row // AREA
    image = window // windows
    at = window % windows
    y0 = (at // windows_x) * POOL + (row % AREA) // POOL
    x0 = (at % windows_x) * POOL + (row % AREA) % POOL
    pixel_0 = image * (height * width + SKIP) + SKIP + y0 * width + x0
    column = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    column_ok = column < out_channels

    chunks = tl.cdiv(channels, BLOCK_K)
    steps = TAPS * SOURCES * chunks
    share = tl.cdiv(steps, splits)
    first = tl.program_id(1) * share
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for step in range(first, min(first + share, steps)):
        tap_source = step // chunks
        channel = (step - tap_source * chunks) * BLOCK_K
        source = tap_source % SOURCES
        dy = 0
        dx = 0
        if TAPS == 9:
            dy = tap_source // (3 * SOURCES) - 1
            dx = (tap_source // SOURCES) % 3 - 1
        tokens = token_0
        if SOURCES == 4:
            low = tl.where(source == 0, token_0, token_1)
            high = tl.where(source == 2, token_2, token_3)
            tokens = tl.where(source < 2, low, high)
        y = y0 + dy
        x = x0 + dx
        inside = (row < rows) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        a_at = (pixel_0 + dy * width + dx) * channels + channel
        if EVEN_K:
            a_tile = tl.load(tokens + a_at[:, None] + k[None, :], mask=inside[:, None], other=0.0)
        else:
            k_ok = k < channels - channel
            a_tile = tl.load(tokens + a_at[:, None] + k[None, :], mask=inside[:, None] & k_ok[None, :], other=0.0)
        if DESCRIPTORS:
            b_tile = weight.load([tap_source * channels + channel, tile_n * BLOCK_N])
        else:
            weight_row = (tap_source * channels + channel).to(tl.int64) * out_channels
            b = weight + weight_row + k[:, None] * out_channels + column[None, :]
            if EVEN_K:
                b_tile = tl.load(b, mask=column_ok[None, :], other=0.0)
            else:
                b_tile = tl.load(b, mask=k_ok[:, None] & column_ok[None, :], other=0.0)
        if UPCAST:
            a_tile = a_tile.to(tl.float32)
            b_tile = b_tile.to(tl.float32)
        acc = tl.dot(a_tile, b_tile, acc, input_precision="ieee")

    if PARTIAL:
        partial = (tl.program_id(1) * rows + row).to(tl.int64)[:, None] * out_channels + column[None, :]
        tl.store(out + partial, acc, mask=(row < rows)[:, None] & column_ok[None, :])
    else:
        acc += tl.load(bias + column, mask=column_ok, other=0.0).to(tl.float32)[None, :]
        best = tl.max(tl.reshape(tl.maximum(acc, 0.0), (BLOCK_M // AREA, AREA, BLOCK_N)), axis=1)
        pooled = tile_m * (BLOCK_M // AREA) + tl.arange(0, BLOCK_M // AREA)
        at = pooled.to(tl.int64)[:, None] * out_channels + column[None, :]
        tl.store(out + at, best.to(out.dtype.element_ty), mask=(pooled < rows // AREA)[:, None] & column_ok[None, :])


@triton.jit
def _grouped(program, tiles_m, tiles_n, GROUP_M: tl.constexpr):
    """Tile of a program such that GROUP_M row tiles share their weight tiles while those are in L2."""
    per_group = GROUP_M * tiles_n
    first_m = (program // per_group) * GROUP_M
    height = min(tiles_m - first_m, GROUP_M)
    return first_m + (program % per_group) % height, (program % per_group) // height


@triton.jit
def pool_partials(
    partial, bias, groups, group_rows, out_channels, splits, out, OVERLAP: tl.constexpr, BLOCK_N: tl.constexpr
):
    """partial (splits, groups·group_rows, N) fp32 → out (groups, N): sum of splits, bias, ReLU, max over a group.

    Grid: (groups, column tiles). A group is a pool window, or all positions of one image for the global max.
    """
    if OVERLAP:
        await_previous_kernel()
    group = tl.program_id(0)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    ok = column < out_channels
    shift = tl.load(bias + column, mask=ok, other=0.0).to(tl.float32)
    best = tl.zeros((BLOCK_N,), tl.float32)
    for member in range(group_rows):
        total = shift
        for split in range(splits):
            row = split * groups * group_rows + group * group_rows + member
            total += tl.load(partial + tl.cast(row, tl.int64) * out_channels + column, mask=ok, other=0.0)
        best = tl.maximum(best, total)
    tl.store(out + group.to(tl.int64) * out_channels + column, best.to(out.dtype.element_ty), mask=ok)


@triton.jit
def depthwise(
    grid_map, weight, bias, pixels, height, width, channels, out,
    OVERLAP: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    """grid_map (B·H·W, C) → out (B·H·W, C): depthwise 3×3, bias, ReLU; weight (9, C). Grid: (pixel, channel tiles)."""
    if OVERLAP:
        await_previous_kernel()
    pixel = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    channel_ok = channel < channels
    x0 = pixel % width
    y0 = (pixel // width) % height
    shift = tl.load(bias + channel, mask=channel_ok, other=0.0).to(tl.float32)
    total = tl.zeros((BLOCK_P, BLOCK_C), tl.float32) + shift[None, :]
    for tap in tl.static_range(9):
        y = y0 + (tap // 3 - 1)
        x = x0 + (tap % 3 - 1)
        inside = (pixel < pixels) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
        at = (pixel + (tap // 3 - 1) * width + (tap % 3 - 1))[:, None] * channels + channel[None, :]
        value = tl.load(grid_map + at, mask=inside[:, None] & channel_ok[None, :], other=0.0)
        tap_weight = tl.load(weight + tap * channels + channel, mask=channel_ok, other=0.0)
        total += value.to(tl.float32) * tap_weight.to(tl.float32)[None, :]
    at = pixel[:, None] * channels + channel[None, :]
    ok = (pixel < pixels)[:, None] & channel_ok[None, :]
    tl.store(out + at, tl.maximum(total, 0.0).to(out.dtype.element_ty), mask=ok)


@triton.jit
def gates(
    pooled, weight, bias, feature,
    batch, channels,
    mask, masked_feature, squared_mask,
    HAS_FEATURE: tl.constexpr, UPCAST: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """mask = sigmoid(pooled · weight + bias), all (B, C); with a feature q also q⊙mask and mask⊙mask for matching.

    weight (C in, C out). Grid: (row tiles, column tiles). The products use the fp32 mask, before it is rounded.
    """
    if OVERLAP:
        await_previous_kernel()
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    column = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = row < batch
    column_ok = column < channels
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, channels, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_ok = k < channels
        a = tl.load(pooled + row[:, None] * channels + k[None, :], mask=row_ok[:, None] & k_ok[None, :], other=0.0)
        weight_ok = k_ok[:, None] & column_ok[None, :]
        b = tl.load(weight + k[:, None] * channels + column[None, :], mask=weight_ok, other=0.0)
        if UPCAST:
            a = a.to(tl.float32)
            b = b.to(tl.float32)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    acc += tl.load(bias + column, mask=column_ok, other=0.0).to(tl.float32)[None, :]
    gate = 1.0 / (1.0 + tl.exp(-acc))
    at = row[:, None] * channels + column[None, :]
    ok = row_ok[:, None] & column_ok[None, :]
    tl.store(mask + at, gate.to(mask.dtype.element_ty), mask=ok)
    if HAS_FEATURE:
        q = tl.load(feature + at, mask=ok, other=0.0).to(tl.float32)
        tl.store(masked_feature + at, (q * gate).to(masked_feature.dtype.element_ty), mask=ok)
        tl.store(squared_mask + at, (gate * gate).to(squared_mask.dtype.element_ty), mask=ok)
