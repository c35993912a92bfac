"""Launch the Triton kernels on torch tensors. Imported only when a kernel is about to run.

B queries, N targets, D dimensions, k results. Every tensor is contiguous and on one device (op.py checks).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from dpm_edge.kernels.masked_distance import contract, kernel, kernel_gradient, kernel_topk
from dpm_edge.kernels.masked_distance.contract import Tile

EPILOGUES = {"similarity": 0, "distance": 1, "margin_logits": 2, "group_best": 3}


def interpreted() -> bool:
    """Whether the kernels run in Triton's interpreter."""
    return not isinstance(kernel.similarity, triton.runtime.JITFunction)


def type_name(t: Tensor) -> str:
    """ "float16" for torch.float16."""
    return str(t.dtype).removeprefix("torch.")


def compute_capability(t: Tensor) -> int:
    """90 for Hopper; 0 in the interpreter, which has the tiles of every architecture not named."""
    if not t.is_cuda:
        return 0
    major, minor = torch.cuda.get_device_capability(t.device)
    return 10 * major + minor


def options(t: Tensor, block_k: int) -> dict[str, Any]:
    """Compile-time choices that follow from the targets."""
    return {
        "PAD_D": contract.PAD_D,
        "EVEN_D": t.shape[1] % block_k == 0,
    }


def precision(t: Tensor) -> dict[str, Any]:
    """How the two products are computed."""
    wide = t.dtype == torch.float32
    return {"PRECISION": "tf32x3" if wide else "tf32", "FP32_DOT": interpreted() and t.dtype == torch.bfloat16}


def prepare(q: Tensor, m: Tensor, t: Tensor, block_b: int) -> tuple[Tensor, Tensor, Tensor]:
    """QM, MM (padded B, padded D) in the operand type, GAIN (padded B,) fp32."""
    batch, width = q.shape
    rows = -(-batch // block_b) * block_b
    padded = -(-width // contract.PAD_D) * contract.PAD_D
    operand = getattr(torch, contract.operand(type_name(t)))
    qm, mm = torch.empty((2, rows, padded), dtype=operand, device=q.device)
    gain = torch.empty(rows, dtype=torch.float32, device=q.device)
    kernel.prepare[(rows,)](q, m, batch, width, qm, mm, gain, PAD_D=contract.PAD_D, BLOCK_D=1024, num_warps=4)
    return qm, mm, gain


def scores(
    q: Tensor,
    m: Tensor,
    t: Tensor,
    row_scale: Tensor | None = None,
    t_mask: Tensor | None = None,
    labels: Tensor | None = None,
    *,
    epilogue: str = "similarity",
    scale: float = contract.SCALE,
    margin: float = contract.MARGIN,
    tile: Tile | None = None,
) -> Tensor:
    """fp32 (B, N) similarity, distance or margin logits."""
    tile = tile or contract.tile_for(q.shape[0], type_name(t), compute_capability(t), mutual=t_mask is not None)
    out = torch.empty((q.shape[0], t.shape[0]), dtype=torch.float32, device=t.device)
    prepared = prepare(q, m, t, tile.block_b)
    run_tiles(prepared, q.shape[0], t, row_scale, t_mask, labels, (None,) * 5, out, epilogue, scale, margin, tile)
    return out


def run_tiles(
    prepared: tuple[Tensor, Tensor, Tensor],
    batch: int,
    t: Tensor,
    row_scale: Tensor | None,
    t_mask: Tensor | None,
    labels: Tensor | None,
    filters: tuple[Tensor | None, ...],
    out: Tensor,
    epilogue: str,
    scale: float,
    margin: float,
    tile: Tile,
) -> None:
    """The main kernel over all tiles, into `out`. filters: row filter, query person, camera, target person, camera."""
    count, width = t.shape
    grid = (-(-count // tile.block_n) * -(-batch // tile.block_b),)
    row_filter = filters[0]
    kernel.similarity[grid](
        *prepared, t, row_scale, t_mask, labels, *filters, batch, count, width, out,
        EPILOGUE=EPILOGUES[epilogue], BLOCK_N=tile.block_n, BLOCK_B=tile.block_b, BLOCK_K=tile.block_k,
        GROUP=contract.GROUP, FILTER_BITS=row_filter is not None and row_filter.ndim == 2,
        SCALE=scale, MARGIN=margin, COS=math.cos(margin), SIN=math.sin(margin), CLIP=contract.ARCCOS_CLIP,
        **options(t, tile.block_k), **precision(t), num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def topk(
    q: Tensor,
    m: Tensor,
    t: Tensor,
    k: int,
    row_scale: Tensor | None = None,
    t_mask: Tensor | None = None,
    filters: tuple[Tensor | None, ...] = (None,) * 5,
    *,
    tile: Tile | None = None,
) -> tuple[Tensor, Tensor]:
    """Scores fp32 (B, k) falling and rows int64 (B, k). Writes one int64 per GROUP rows and query, never B×N."""
    batch, (count, width) = q.shape[0], t.shape
    tile = tile or contract.tile_for(batch, type_name(t), compute_capability(t), mutual=t_mask is not None)
    prepared = prepare(q, m, t, tile.block_b)
    groups = torch.empty((batch, -(-count // contract.GROUP)), dtype=torch.int64, device=t.device)
    run_tiles(prepared, batch, t, row_scale, t_mask, None, filters, groups, "group_best", 1.0, 0.0, tile)
    chosen = best(groups, min(k, groups.shape[1]))
    keys = torch.empty((batch, chosen.shape[1] * contract.GROUP), dtype=torch.int64, device=t.device)
    row_filter = filters[0]
    kernel_topk.rescore[(chosen.shape[1], batch)](
        *prepared, t, row_scale, t_mask, *filters, chosen, batch, count, width, chosen.shape[1], keys,
        GROUP=contract.GROUP, BLOCK_K=128, FILTER_BITS=row_filter is not None and row_filter.ndim == 2,
        **options(t, 128), num_warps=4,
    )  # fmt: skip
    return best_rows(keys, k)


def best(keys: Tensor, k: int) -> Tensor:
    """The k best of each row of packed keys (B, L), falling: int64 (B, k)."""
    while True:
        out = torch.empty((keys.shape[0], -(-keys.shape[1] // _chunk()) * k), dtype=torch.int64, device=keys.device)
        _select(keys, k, out, None, None)
        if out.shape[1] == k:
            return out
        keys = out


def best_rows(keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row of packed keys (B, L), taken apart: scores fp32 (B, k), rows int64 (B, k)."""
    if keys.shape[1] > _chunk():
        keys = best(keys, k)
    values = torch.empty((keys.shape[0], k), dtype=torch.float32, device=keys.device)
    rows = torch.empty((keys.shape[0], k), dtype=torch.int64, device=keys.device)
    _select(keys, k, None, values, rows)
    return values, rows


def _chunk() -> int:
    return 256 if interpreted() else contract.CHUNK


def _select(keys: Tensor, k: int, out: Tensor | None, values: Tensor | None, rows: Tensor | None) -> None:
    batch, length = keys.shape
    k_pad = max(2, triton.next_power_of_2(k))  # of one, tl.topk makes a scalar
    kernel_topk.select[(-(-length // _chunk()), batch)](
        keys, length, k, out, values, rows,
        CHUNK=_chunk(), K_PAD=k_pad, LAST=out is None, SORTED=not interpreted(), num_warps=4,
    )  # fmt: skip


def gradient(
    grad: Tensor, a: Tensor, mm: Tensor, t: Tensor, labels: Tensor | None, scale: float, margin: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to A = q̂⊙m (B, D), MM = m⊙m (B, D) and t (N, D), each fp32.

    grad: fp32 (B, N), of the similarity, or of the margin logits where labels (int32, (B,)) are given. a, mm: fp32.
    """
    tile = contract.GRADIENT_TILE
    (batch, width), count = a.shape, t.shape[0]
    rows = -(-batch // tile.block_b) * tile.block_b
    columns = -(-width // contract.PAD_D) * contract.PAD_D
    prepared = [torch.nn.functional.pad(x, (0, columns - width, 0, rows - batch)) for x in (a, mm)]
    splits = max(1, min(count // 256, 32))
    split_rows = -(-count // (splits * tile.block_n)) * tile.block_n
    splits = -(-count // split_rows)
    d_a, d_mm = torch.empty((2, splits, batch, width), dtype=torch.float32, device=t.device)
    d_t = torch.empty((count, width), dtype=torch.float32, device=t.device)
    choices = {
        "BLOCK_N": tile.block_n, "BLOCK_B": tile.block_b, "BLOCK_K": tile.block_k, "BLOCK_D": contract.GRADIENT_BLOCK_D,
        "PRECISION": "tf32x3" if t.dtype == torch.float32 else "tf32", "SCALE": scale, "COS": math.cos(margin),
        "SIN": math.sin(margin), "CLIP": contract.ARCCOS_CLIP, **options(t, tile.block_k),
        "num_warps": tile.num_warps, "num_stages": tile.num_stages,
    }  # fmt: skip
    parts = -(-width // contract.GRADIENT_BLOCK_D)
    kernel_gradient.gradient_queries[(rows // tile.block_b, parts, splits)](
        *prepared, t, labels, grad, batch, count, width, split_rows, d_a, d_mm, **choices
    )
    kernel_gradient.gradient_targets[(-(-count // tile.block_n), parts)](
        *prepared, t, labels, grad, batch, count, width, d_t, **choices
    )
    return d_a.sum(0), d_mm.sum(0), d_t
