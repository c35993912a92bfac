"""Gradients of masked similarity and of margin logits; the B×N tile is recomputed, never kept.

B queries, N targets, D dimensions; A (B, D) = q̂⊙m and MM (B, D) = m⊙m in fp32, padded as `kernel.prepare` pads
s = (A·t) r,  r = 1/sqrt(MM·t²),  G = ∂L/∂s;   P = G r,  R = G s r²
∂L/∂A = P t     ∂L/∂MM = −½ R t²     ∂L/∂t = Pᵀ A − (Rᵀ MM) ⊙ t
"""

import triton
import triton.language as tl

from dpm_edge.kernels.masked_distance.kernel import products


@triton.jit
def tile_weights(A, MM, T, LABELS, GRAD, row0, query0, B, N, D, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
                 BLOCK_K: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
                 SCALE: tl.constexpr, COS: tl.constexpr, SIN: tl.constexpr, CLIP: tl.constexpr):  # fmt: skip
    """P and R of one tile, (BLOCK_N, BLOCK_B); 0 outside and where nothing of the target is left under the mask."""
    dot, norm = products(A, MM, T, None, row0, query0, N, D, BLOCK_N, BLOCK_B, BLOCK_K, PAD_D, EVEN_D, PRECISION, False)
    rows = row0 + tl.arange(0, BLOCK_N)[:, None]
    queries = query0 + tl.arange(0, BLOCK_B)[None, :]
    inside = (rows < N) & (queries < B)
    grad = tl.load(GRAD + queries.to(tl.int64) * N + rows, mask=inside, other=0.0)
    some = norm > 0.0
    r = tl.where(some, tl.rsqrt(tl.where(some, norm, 1.0)), 0.0)
    s = dot * r
    if LABELS is not None:
        label = tl.load(LABELS + queries, mask=queries < B, other=-1)
        within = tl.abs(s) <= 1.0 - CLIP  # the sine is clipped beyond, and has no slope there
        slope = tl.where(within, s / tl.sqrt(1.0 - tl.where(within, s * s, 0.0)), 0.0)
        turned = tl.where(s > -COS, COS + SIN * slope, 1.0)
        grad = grad * SCALE * tl.where(rows == label, turned, 1.0)
    return grad * r, grad * s * r * r


@triton.jit
def gradient_queries(A, MM, T, LABELS, GRAD, B, N, D, SPLIT_ROWS, DA, DMM, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
                     BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
                     PRECISION: tl.constexpr, SCALE: tl.constexpr, COS: tl.constexpr, SIN: tl.constexpr,
                     CLIP: tl.constexpr):  # fmt: skip
    """∂L/∂A and ∂L/∂MM, fp32 (splits, B, D), each split summed over SPLIT_ROWS targets. GRAD fp32 (B, N).

    Grid: ceil(B/BLOCK_B), ceil(D/BLOCK_D), splits.
    """
    query0 = tl.program_id(0) * BLOCK_B
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first = tl.program_id(2) * SPLIT_ROWS
    sum_a = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    sum_mm = tl.zeros((BLOCK_B, BLOCK_D), tl.float32)
    for step in range(0, SPLIT_ROWS, BLOCK_N):
        row0 = first + step
        p, r = tile_weights(A, MM, T, LABELS, GRAD, row0, query0, B, N, D, BLOCK_N, BLOCK_B, BLOCK_K, PAD_D, EVEN_D,
                            PRECISION, SCALE, COS, SIN, CLIP)  # fmt: skip
        rows = row0 + tl.arange(0, BLOCK_N)
        inside = (rows < N)[:, None] & (cols < D)[None, :]
        t = tl.load(T + rows[:, None].to(tl.int64) * D + cols[None, :], mask=inside, other=0.0).to(tl.float32)
        sum_a = tl.dot(tl.trans(p), t, sum_a, input_precision=PRECISION)
        sum_mm = tl.dot(tl.trans(r), t * t, sum_mm, input_precision=PRECISION)
    queries = query0 + tl.arange(0, BLOCK_B)
    at = (tl.program_id(2) * B + queries)[:, None].to(tl.int64) * D + cols[None, :]
    inside = (queries < B)[:, None] & (cols < D)[None, :]
    tl.store(DA + at, sum_a, mask=inside)
    tl.store(DMM + at, -0.5 * sum_mm, mask=inside)


@triton.jit
def gradient_targets(A, MM, T, LABELS, GRAD, B, N, D, DT, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
                     BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
                     PRECISION: tl.constexpr, SCALE: tl.constexpr, COS: tl.constexpr, SIN: tl.constexpr,
                     CLIP: tl.constexpr):  # fmt: skip
    """∂L/∂t, fp32 (N, D). Grid: ceil(N/BLOCK_N), ceil(D/BLOCK_D). BLOCK_D divides PAD_D. GRAD fp32 (B, N)."""
    row0 = tl.program_id(0) * BLOCK_N
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    width = tl.cdiv(D, PAD_D) * PAD_D
    toward = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    shrink = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for query0 in range(0, B, BLOCK_B):
        p, r = tile_weights(A, MM, T, LABELS, GRAD, row0, query0, B, N, D, BLOCK_N, BLOCK_B, BLOCK_K, PAD_D, EVEN_D,
                            PRECISION, SCALE, COS, SIN, CLIP)  # fmt: skip
        at = (query0 + tl.arange(0, BLOCK_B))[:, None] * width + cols[None, :]
        toward = tl.dot(p, tl.load(A + at), toward, input_precision=PRECISION)
        shrink = tl.dot(r, tl.load(MM + at), shrink, input_precision=PRECISION)
    rows = row0 + tl.arange(0, BLOCK_N)
    at = rows[:, None].to(tl.int64) * D + cols[None, :]
    inside = (rows < N)[:, None] & (cols < D)[None, :]
    t = tl.load(T + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(DT + at, toward - shrink * t, mask=inside)
