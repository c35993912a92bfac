"""Fused top-k: the best k of N targets for each query, without ever writing B×N similarities.

    B queries, N targets, D dimensions, G = GROUP rows a group

1. `kernel.similarity` with GROUP_BEST writes one packed key per group of G rows: its best kept similarity.
2. `select` finds each query's k best groups. Every one of the k best rows lies in one of them, since a row outside has
   k groups before it, each with a row at least as good.
3. `rescore` reads the k·G rows of those groups again and writes their keys.
4. `select` finds the k best rows.
Ties go to the lower row.
"""

import triton
import triton.language as tl

from dpm_edge.kernels.masked_distance.kernel import cosine, kept, pack, targets_tile


@triton.jit
def unpack_score(key):
    """The score of a packed key."""
    ordered = (key >> 32).to(tl.int32)
    return (ordered ^ ((ordered >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def unpack_index(key):
    """The int32 index of a packed key."""
    return 0x7FFFFFFF - (key & 0x7FFFFFFF).to(tl.int32)


@triton.jit
def select(KEYS, L, K, OUT, SCORES, ROWS, CHUNK: tl.constexpr, K_PAD: tl.constexpr, LAST: tl.constexpr,
           SORTED: tl.constexpr):  # fmt: skip
    """The K best of each CHUNK of a query's L keys. Grid: ceil(L / CHUNK), B.

    KEYS int64 (B, L). OUT int64 (B, ceil(L/CHUNK), K), descending, padded with keys of −inf; or, where LAST,
    SCORES fp32 (B, K) and ROWS int64 (B, K), −1 beside a score of −inf. SORTED False counts how many keys
    come before each one: what the interpreter, which has no tl.topk, can run.
    """
    chunk = tl.program_id(0)
    query = tl.program_id(1)
    cols = chunk * CHUNK + tl.arange(0, CHUNK)
    nothing = pack(tl.full((CHUNK,), float("-inf"), tl.float32), 0x7FFFFFFF - tl.arange(0, CHUNK))
    keys = tl.load(KEYS + query.to(tl.int64) * L + cols, mask=cols < L, other=0)
    keys = tl.where(cols < L, keys, nothing)
    if SORTED:
        best = tl.topk(keys, K_PAD)
        place = tl.arange(0, K_PAD)
    else:
        best = keys
        earlier = (keys[None, :] == keys[:, None]) & (cols[None, :] < cols[:, None])
        place = tl.sum(((keys[None, :] > keys[:, None]) | earlier).to(tl.int32), 1)
    if LAST:
        score = unpack_score(best)
        row = tl.where(score > float("-inf"), unpack_index(best), -1)
        tl.store(SCORES + query * K + place, score, mask=place < K)
        tl.store(ROWS + query * K + place, row.to(tl.int64), mask=place < K)
    else:
        tl.store(OUT + (query.to(tl.int64) * tl.num_programs(0) + chunk) * K + place, best, mask=place < K)


@triton.jit
def rescore(QM, MM, GAIN, T, ROW_SCALE, TMASK, FILTER, Q_PERSON, Q_CAMERA, T_PERSON, T_CAMERA, GROUPS, B, N, D, K, KEYS,
            GROUP: tl.constexpr, BLOCK_K: tl.constexpr, PAD_D: tl.constexpr, EVEN_D: tl.constexpr,
            FILTER_BITS: tl.constexpr):  # fmt: skip
    """Keys of every row in a query's chosen groups. Grid: K, B. GROUPS int64 (B, K) → KEYS int64 (B, K, GROUP)."""
    place = tl.program_id(0)
    query = tl.program_id(1)
    chosen = tl.load(GROUPS + query * K + place)
    found = unpack_score(chosen) > float("-inf")
    first = tl.where(found, unpack_index(chosen), 0) * GROUP
    rows = first + tl.arange(0, GROUP)
    operand = QM.dtype.element_ty
    width = tl.cdiv(D, PAD_D) * PAD_D
    cols = tl.arange(0, BLOCK_K)
    base = first.to(tl.int64) * D
    masks = TMASK
    if TMASK is not None:
        masks = TMASK + base
    offset = tl.minimum(tl.arange(0, GROUP), N - 1 - first)[:, None] * D + cols[None, :]
    dot = tl.zeros((GROUP, BLOCK_K), tl.float32)
    norm = tl.zeros((GROUP, BLOCK_K), tl.float32)
    for start in range(0, D, BLOCK_K):
        t = targets_tile(T + base, masks, offset + start, (start + cols)[None, :] < D, operand, EVEN_D)
        qm = tl.load(QM + query * width + start + cols)[None, :]
        mm = tl.load(MM + query * width + start + cols)[None, :]
        wide = t.to(tl.float32)
        dot += wide * qm.to(tl.float32)
        norm += (wide * wide).to(operand).to(tl.float32) * mm.to(tl.float32)
    scale = ROW_SCALE
    if ROW_SCALE is not None:
        scale = tl.load(ROW_SCALE + rows, mask=rows < N, other=0.0)
    s = cosine(tl.sum(dot, 1), tl.sum(norm, 1), tl.load(GAIN + query), scale)
    one = tl.zeros((1,), tl.int32) + query
    keep = kept(tl.where(found, rows, N), one, N, B, FILTER, Q_PERSON, Q_CAMERA, T_PERSON, T_CAMERA, FILTER_BITS)
    key = pack(tl.where(keep, s[:, None], float("-inf")), rows[:, None])
    tl.store(KEYS + (query.to(tl.int64) * K + place) * GROUP + tl.arange(0, GROUP)[:, None], key)
