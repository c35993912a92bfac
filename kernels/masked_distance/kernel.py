"""Masked similarity: prepare the queries once, then two products over one read of the targets.

    B queries, N targets, D dimensions; QM (B, D) = q̂⊙m, MM (B, D) = m⊙m, both with each row's largest entry at 1
    GAIN (B,) undoes that scaling.  s = GAIN · (QM Tᵀ) / sqrt(MM (T⊙T)ᵀ)

A tile is targets × queries, so that the targets are the left operand: on Hopper it comes from registers, where t² is
formed, and never goes back through shared memory.
"""

import triton
import triton.language as tl

SIMILARITY = tl.constexpr(0)
DISTANCE = tl.constexpr(1)
MARGIN_LOGITS = tl.constexpr(2)
GROUP_BEST = tl.constexpr(3)


@triton.jit(do_not_specialize=["B"])
def prepare(Q, M, B, D, QM, MM, GAIN, PAD_D: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program per row of QM, MM (rows past B and columns past D are zeroed). Q, M any float type."""
    row = tl.program_id(0)
    live = row < B
    width = tl.cdiv(D, PAD_D) * PAD_D
    cols = tl.arange(0, BLOCK_D)
    square = tl.zeros((BLOCK_D,), tl.float32)
    top_qm = tl.zeros((BLOCK_D,), tl.float32)
    top_m = tl.zeros((BLOCK_D,), tl.float32)
    for start in range(0, width, BLOCK_D):
        col = start + cols
        q = tl.load(Q + row.to(tl.int64) * D + col, mask=(col < D) & live, other=0.0).to(tl.float32)
        m = tl.load(M + row.to(tl.int64) * D + col, mask=(col < D) & live, other=0.0).to(tl.float32)
        square += q * q
        top_qm = tl.maximum(top_qm, tl.abs(q * m))
        top_m = tl.maximum(top_m, tl.abs(m))
    norm = tl.sqrt(tl.sum(square, 0))
    best_qm = tl.max(top_qm, 0)
    best_m = tl.max(top_m, 0)
    some = (best_qm > 0.0) & (best_m > 0.0)
    over_qm = 1.0 / tl.where(some, best_qm, 1.0)
    over_m = 1.0 / tl.where(some, best_m, 1.0)
    tl.store(GAIN + row, tl.where(some, best_qm * over_m / tl.where(some, norm, 1.0), 0.0))
    for start in range(0, width, BLOCK_D):
        col = start + cols
        q = tl.load(Q + row.to(tl.int64) * D + col, mask=(col < D) & live, other=0.0).to(tl.float32)
        m = tl.load(M + row.to(tl.int64) * D + col, mask=(col < D) & live, other=0.0).to(tl.float32)
        share = m * over_m
        at = row.to(tl.int64) * width + col
        tl.store(QM + at, (q * m * over_qm).to(QM.dtype.element_ty), mask=col < width)
        tl.store(MM + at, (share * share).to(MM.dtype.element_ty), mask=col < width)


@triton.jit
def targets_tile(T, TMASK, offset, inside, OPERAND: tl.constexpr, EVEN_D: tl.constexpr):
    """The targets at `offset` in the operand type, under their own masks when they have some."""
    if EVEN_D:
        t = tl.load(T + offset, eviction_policy="evict_first")
    else:
        t = tl.load(T + offset, mask=inside, other=0, eviction_policy="evict_first")
    if TMASK is not None:
        own = tl.load(TMASK + offset, mask=inside, other=0, eviction_policy="evict_first")
        return (t.to(tl.float32) * own.to(tl.float32)).to(OPERAND)
    return t.to(OPERAND)


@triton.jit
def products(QM, MM, T, TMASK, row0, query0, N, D, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
             BLOCK_K: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
             FP32_DOT: tl.constexpr):  # fmt: skip
    """Σ qm·t and Σ mm·t² as two (BLOCK_N, BLOCK_B) fp32 tiles. Rows past N repeat the last one."""
    operand = QM.dtype.element_ty
    width = tl.cdiv(D, PAD_D) * PAD_D
    within = tl.minimum(tl.arange(0, BLOCK_N), N - 1 - row0)
    cols = tl.arange(0, BLOCK_K)
    base = row0.to(tl.int64) * D
    masks = TMASK
    if TMASK is not None:
        masks = TMASK + base
    t_offset = within[:, None] * D + cols[None, :]
    q_offset = (query0 + tl.arange(0, BLOCK_B))[None, :] * width + cols[:, None]
    dot = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
    norm = tl.zeros((BLOCK_N, BLOCK_B), tl.float32)
    for start in range(0, D, BLOCK_K):
        t = targets_tile(T + base, masks, t_offset + start, (start + cols)[None, :] < D, operand, EVEN_D)
        qm = tl.load(QM + q_offset + start)
        mm = tl.load(MM + q_offset + start)
        if FP32_DOT:  # the interpreter's bf16 products are wrong
            t, qm, mm = t.to(tl.float32), qm.to(tl.float32), mm.to(tl.float32)
        tt = t * t
        dot = tl.dot(t, qm, dot, input_precision=PRECISION)
        norm = tl.dot(tt, mm, norm, input_precision=PRECISION)
    return dot, norm


@triton.jit
def arccos(x):
    """arccos, radians, |error| < 1e-7. Abramowitz and Stegun, Handbook of Mathematical Functions, 4.4.46."""
    a = tl.abs(x)
    p = -0.0012624911 * a + 0.0066700901
    p = p * a - 0.0170881256
    p = p * a + 0.0308918810
    p = p * a - 0.0501743046
    p = p * a + 0.0889789874
    p = p * a - 0.2145988016
    p = p * a + 1.5707963050
    angle = tl.sqrt(1.0 - a) * p
    return tl.where(x < 0.0, 3.14159265358979 - angle, angle)


@triton.jit
def with_margin(s, COS: tl.constexpr, SIN: tl.constexpr, MARGIN: tl.constexpr, CLIP: tl.constexpr):
    """cos(arccos(s) + margin), and s − margin·sin(margin) below cos(π − margin). ArcFace, arXiv 1801.07698."""
    clipped = tl.minimum(tl.maximum(s, -1.0 + CLIP), 1.0 - CLIP)
    return tl.where(s > -COS, s * COS - tl.sqrt(1.0 - clipped * clipped) * SIN, s - MARGIN * SIN)


@triton.jit
def kept(rows, queries, N, B, FILTER, Q_PERSON, Q_CAMERA, T_PERSON, T_CAMERA, FILTER_BITS: tl.constexpr):
    """(rows, queries) bool: the row exists, its filter bit is set, and it is not the query's junk.

    FILTER: uint8 (N,), non-zero keeps; or with FILTER_BITS uint8 (B, ceil(N/8)), least significant bit first.
    Junk: the query's person seen by the query's camera.
    """
    inside = (rows < N)[:, None] & (queries < B)[None, :]
    keep = inside
    if FILTER is not None:
        if FILTER_BITS:
            at = queries[None, :].to(tl.int64) * tl.cdiv(N, 8) + rows[:, None] // 8
            bits = tl.load(FILTER + at, mask=inside, other=0).to(tl.int32)
            keep = keep & (((bits >> (rows[:, None] % 8)) & 1) != 0)
        else:
            keep = keep & (tl.load(FILTER + rows, mask=rows < N, other=0) != 0)[:, None]
    if Q_PERSON is not None:
        person = tl.load(Q_PERSON + queries, mask=queries < B, other=0)[None, :]
        camera = tl.load(Q_CAMERA + queries, mask=queries < B, other=0)[None, :]
        same = (tl.load(T_PERSON + rows, mask=rows < N, other=0)[:, None] == person) & (
            tl.load(T_CAMERA + rows, mask=rows < N, other=0)[:, None] == camera
        )
        keep = keep & (same == 0)
    return keep


@triton.jit
def pack(score, index):
    """One int64 that sorts by score, then by lower index. index: int32, 0 ≤ index."""
    bits = score.to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (ordered.to(tl.int64) << 32) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def cosine(dot, norm, gain, scale):
    """Σ qm·t over the root of Σ mm·t², in [−1, 1]; 0 where nothing of the target is left under the mask."""
    some = norm > 0.0
    s = tl.where(some, dot * tl.rsqrt(tl.where(some, norm, 1.0)), 0.0) * gain
    if scale is not None:  # a positive row scale cancels; the sign and zero of it do not
        s = s * tl.where(scale > 0.0, 1.0, tl.where(scale < 0.0, -1.0, 0.0))
    return tl.minimum(tl.maximum(s, -1.0), 1.0)


@triton.jit(do_not_specialize=["B"])
def similarity(QM, MM, GAIN, T, ROW_SCALE, TMASK, LABELS, FILTER, Q_PERSON, Q_CAMERA, T_PERSON, T_CAMERA, B, N, D, OUT,
               EPILOGUE: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr,
               PAD_D: tl.constexpr, GROUP: tl.constexpr, EVEN_D: tl.constexpr, PRECISION: tl.constexpr,
               FP32_DOT: tl.constexpr, FILTER_BITS: tl.constexpr, SCALE: tl.constexpr, MARGIN: tl.constexpr,
               COS: tl.constexpr, SIN: tl.constexpr, CLIP: tl.constexpr):  # fmt: skip
    """One (BLOCK_N targets, BLOCK_B queries) tile per program; query tiles are neighbours, so that targets stay in L2.

    OUT: fp32 (B, N) similarity, distance in radians or logits; for GROUP_BEST int64 (B, ceil(N/GROUP)) packed keys of
    each group's best kept similarity. ROW_SCALE fp32 (N,) for int8 targets; TMASK (N, D) the targets' own masks; LABELS
    int32 (B,) for logits. Filters act on GROUP_BEST alone.
    """
    query_tiles = tl.cdiv(B, BLOCK_B)
    query0 = (tl.program_id(0) % query_tiles) * BLOCK_B
    row0 = (tl.program_id(0) // query_tiles) * BLOCK_N
    dot, norm = products(QM, MM, T, TMASK, row0, query0, N, D, BLOCK_N, BLOCK_B, BLOCK_K, PAD_D, EVEN_D, PRECISION,
                         FP32_DOT)  # fmt: skip
    rows = row0 + tl.arange(0, BLOCK_N)
    queries = query0 + tl.arange(0, BLOCK_B)
    scale = ROW_SCALE
    if ROW_SCALE is not None:
        scale = tl.load(ROW_SCALE + rows, mask=rows < N, other=0.0)[:, None]
    s = cosine(dot, norm, tl.load(GAIN + queries)[None, :], scale)
    if EPILOGUE == GROUP_BEST:
        keep = kept(rows, queries, N, B, FILTER, Q_PERSON, Q_CAMERA, T_PERSON, T_CAMERA, FILTER_BITS)
        s = tl.where(keep, s, float("-inf"))
        best = tl.max(tl.reshape(s, (BLOCK_N // GROUP, GROUP, BLOCK_B)), 1)
        groups = row0 // GROUP + tl.arange(0, BLOCK_N // GROUP)
        count = tl.cdiv(N, GROUP)
        at = queries[None, :].to(tl.int64) * count + groups[:, None]
        key = pack(best, tl.broadcast_to(groups[:, None], (BLOCK_N // GROUP, BLOCK_B)))
        tl.store(OUT + at, key, mask=(groups < count)[:, None] & (queries < B)[None, :])
    else:
        if EPILOGUE == DISTANCE:
            s = arccos(tl.minimum(tl.maximum(s, -1.0 + CLIP), 1.0 - CLIP))
        if EPILOGUE == MARGIN_LOGITS:
            label = tl.load(LABELS + queries, mask=queries < B, other=-1)[None, :]
            s = tl.where(rows[:, None] == label, with_margin(s, COS, SIN, MARGIN, CLIP), s) * SCALE
        at = queries[None, :].to(tl.int64) * N + rows[:, None]
        tl.store(OUT + at, s, mask=(rows < N)[:, None] & (queries < B)[None, :])
