"""Small kernels to compile in the tests of ahead-of-time compilation."""

import triton
import triton.language as tl


@triton.jit
def products(Q, T, B, N, D, OUT, BLOCK_B: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):
    """OUT (B, N) float32 = Q (B, D) · T (N, D)ᵀ, float16."""
    rows = tl.program_id(1) * BLOCK_B + tl.arange(0, BLOCK_B)
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros((BLOCK_B, BLOCK_N), tl.float32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D)
        q = tl.load(Q + rows[:, None] * D + d[None, :], mask=(rows[:, None] < B) & (d[None, :] < D), other=0.0)
        t = tl.load(T + columns[:, None] * D + d[None, :], mask=(columns[:, None] < N) & (d[None, :] < D), other=0.0)
        total = tl.dot(q, tl.trans(t), total)
    tl.store(OUT + rows[:, None] * N + columns[None, :], total, mask=(rows[:, None] < B) & (columns[None, :] < N))


@triton.jit
def scale(X, FACTOR, N, OUT, BLOCK: tl.constexpr):
    """OUT (N,) float32 = X (N,) · FACTOR."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + at, tl.load(X + at, mask=at < N, other=0.0) * FACTOR, mask=at < N)
