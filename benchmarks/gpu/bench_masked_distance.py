"""masked_distance: right against float64, then timed against what one would write without it.

    B queries, N targets, D dimensions, k results

Rivals: `loop` goes over the queries and masks a copy of every target for each, as research code does; `materialised`
writes masked targets in chunks of queries; `two products` is two cuBLAS products and an epilogue; `compiled` is
torch.compile of them.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from concurrent import futures

import timing
import torch
from rounding import Row, gradient_scales, labels_for, margin_row, reach, row_of, type_name
from torch import Tensor

from dpm_edge.kernels.masked_distance import contract, reference

HALVES = (torch.float16, torch.bfloat16)


def _interpret_on(device: str) -> None:
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"


def make(b: int, n: int, d: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Fresh q, m (B, D) and L2-normalised targets (N, D) that lie around the queries; row scales for int8."""
    q = torch.randn(b, d, device=device)
    m = torch.rand(b, d, device=device)
    t = torch.randn(n, d, device=device) + q[torch.randint(b, (n,), device=device)]
    t /= t.norm(dim=1, keepdim=True)
    if dtype != torch.int8:
        return q, m, t.to(dtype), None
    scale = t.abs().amax(1) / 127
    return q, m, (t / scale[:, None]).round().to(torch.int8), scale


def random_targets(n: int, d: int, dtype: torch.dtype, device: str) -> Tensor:
    """(N, D) targets of about unit norm, made in slices to save memory."""
    t = torch.empty(n, d, dtype=dtype, device=device)
    for part in t.split(100_000):
        part.copy_(torch.randn(part.shape, device=device) / d**0.5)
    return t


def poison(device: str) -> None:
    """Leave NaN in the allocator's free blocks, so that a value never written shows."""
    for size in (1 << 12, 1 << 16, 1 << 20, 1 << 22):
        torch.full((size,), torch.nan, device=device)


SHAPES = ((3, 65, 768), (7, 129, 129), (17, 1023, 129), (256, 20_001, 512))
"""B, N, D, one for each specialisation: few or many queries, D a multiple of 16 or not. They compile first."""
MORE_SHAPES = ((1, 1023, 768), (16, 100_003, 768), (129, 4097, 768))
PROCESSES = 16
"""That compile at the same time on a GPU machine."""


def _jobs(quick: bool) -> list[tuple[str, tuple[int, int, int]]]:
    """(dtype, (B, N, D)) of every case. One target is a kernel of its own: on a GPU one dtype stands for all."""
    names = contract.TARGET_DTYPES
    if quick:
        return [(name, shape) for name in names for shape in ((1, 1, 7), (7, 70, 129), (3, 65, 256))]
    jobs = [(name, shape) for shape in SHAPES for name in names]
    return [*jobs, ("float16", (1, 1, 7)), *((name, shape) for shape in MORE_SHAPES for name in names)]


def check(device: str, quick: bool) -> list[Row]:
    """Every variant and dtype against float64 on fresh random data; on a GPU in processes, which share compiling."""
    _interpret_on(device)
    if device == "cpu":
        return [row for job in _jobs(quick) for row in _check_case(device, quick, *job)]
    with futures.ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [(job, pool.submit(_check_case, device, quick, *job)) for job in _jobs(quick)]
        rows: list[Row] = []
        for (name, shape), result in running:
            error = result.exception()
            failed = {"name": "case", "dtype": name, "shape": list(shape), "ok": False, "exception": repr(error)[:2000]}
            rows += result.result() if error is None else [failed]
    return rows


def _check_case(device: str, quick: bool, dtype_name: str, shape: tuple[int, int, int]) -> list[Row]:
    from dpm_edge.kernels.masked_distance import launch

    dtype, (b, n, d) = getattr(torch, dtype_name), shape
    tolerance = contract.TOLERANCE[dtype_name]
    for _ in range(100):
        q, m, t, scale = make(b, n, d, dtype, device)
        wanted = reference.similarity(q.double(), m.double(), t, scale)
        labels = labels_for(wanted)
        if labels is not None:
            break
    own = torch.rand(n, d, device=device)
    near = reach(q, m, t, scale)
    poison(device)
    rows = [row_of("similarity", dtype, shape, launch.scores(q, m, t, scale), wanted, tolerance, near)]
    came = launch.scores(q, m, t, scale, epilogue="distance")
    clipped = wanted.clamp(-1 + contract.ARCCOS_CLIP, 1 - contract.ARCCOS_CLIP)
    # as cosines: towards an angle of 0 or π a rounding of the cosine moves the angle without bound
    rows.append(row_of("distance", dtype, shape, came.double().cos(), clipped, tolerance, near))
    both = reference.similarity(q.double(), m.double(), t, scale, own)
    came = launch.scores(q, m, t, scale, own)
    rows.append(row_of("mutual", dtype, shape, came, both, tolerance, reach(q, m, t, scale, own)))
    if dtype != torch.int8 and labels is not None:
        came = launch.scores(q, m, t, None, None, labels, epilogue="margin_logits")
        rows.append(margin_row(came, wanted, near, labels, dtype, shape))
        if n < 10_000 and (d < 256 or not quick):
            rows += _check_gradients(q, m, t, labels, tolerance)
    return rows + _check_topk(q, m, t, scale, wanted, near, tolerance, quick)


def _check_gradients(q: Tensor, m: Tensor, t: Tensor, labels: Tensor, tolerance: float) -> list[Row]:
    """Gradients of the margin logits against autograd of the reference in float64."""
    from dpm_edge.kernels.masked_distance import op

    inputs = [x.detach().clone().requires_grad_() for x in (q, m, t)]
    wide = [x.detach().double().requires_grad_() for x in inputs]
    out = op.margin_logits(*inputs, labels)
    grad = torch.randn_like(out)
    poison(q.device.type)
    came = torch.autograd.grad(out, inputs, grad)
    exact = reference.margin_logits(*wide, labels, contract.SCALE, contract.MARGIN)
    wanted = torch.autograd.grad(exact, wide, grad.double())
    shape = (*out.shape, q.shape[1])
    scales = gradient_scales(*(x.detach() for x in wide), labels, grad.double())
    return [
        row_of(f"gradient of {which}", t.dtype, shape, a, b, 3 * tolerance, of)
        for which, a, b, of in zip("qmw", came, wanted, scales)
    ]


def _check_topk(
    q: Tensor, m: Tensor, t: Tensor, scale: Tensor | None, wanted: Tensor, near: Tensor, tolerance: float, quick: bool
) -> list[Row]:
    from dpm_edge.kernels.masked_distance import launch

    (b, n), d, device = wanted.shape, q.shape[1], q.device
    keep_row = (torch.rand(n, device=device) > 0.3).to(torch.uint8)
    bits = torch.randint(256, (b, -(-n // 8)), device=device).to(torch.uint8)
    junk = tuple(torch.randint(4, (x,), dtype=torch.int32, device=device) for x in (b, b, n, n))
    cases = [("", 10, (None,) * 5), (" rows+junk", 10, (keep_row, *junk)), (" bits", 3, (bits, *(None,) * 4))]
    if not quick:
        cases.append(("", 128, (None,) * 5))
    rows = []
    for label, k, filters in cases:
        scores, found = launch.topk(q, m, t, k, scale, None, filters)
        keep = reference.kept(b, n, filters[0], filters[1:] if filters[1] is not None else None)
        best, index = reference.topk(wanted, k, keep)
        of = torch.gather(near, 1, index.clamp(min=0))
        row = row_of(f"top-{k}{label}", t.dtype, (b, n, d), scores, best.double(), tolerance, of)
        # an index may differ only where the scores are as good as equal: what it points at must score the same
        there = torch.gather(wanted, 1, found.clamp(min=0))
        good = torch.where(found >= 0, (there - best).abs() < 2 * tolerance, index < 0)
        ordered = found.sort(dim=1).values
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any()
        row["ok"] = bool(row["ok"] and good.all() and not twice)
        row["same_rows"] = float((found == index).float().mean())
        rows.append(row)
    return rows


# Rivals: similarity (B, N) fp32 from q, m (B, D) and t (N, D) in half precision.


def loop(q: Tensor, m: Tensor, t: Tensor) -> Tensor:
    """One query after another, each with its own masked copy of every target."""
    out = torch.empty(q.shape[0], t.shape[0], dtype=torch.float32, device=t.device)
    q_unit = torch.nn.functional.normalize(q.float(), dim=1).to(t.dtype)
    for i in range(q.shape[0]):
        masked = torch.nn.functional.normalize(t * m[i].to(t.dtype), dim=1)
        out[i] = masked @ q_unit[i]
    return out


def materialised(q: Tensor, m: Tensor, t: Tensor) -> Tensor:
    """All queries of a chunk at once: a (chunk, N, D) tensor of masked targets; the chunk keeps it near 16 GB."""
    q_unit = torch.nn.functional.normalize(q.float(), dim=1).to(t.dtype)
    chunk = max(1, int(8e9 / t.numel()))
    parts = []
    for i in range(0, q.shape[0], chunk):
        masked = t[None] * m[i : i + chunk, None].to(t.dtype)
        dot = torch.einsum("bnd,bd->bn", masked, q_unit[i : i + chunk])
        parts.append(dot.float() / torch.linalg.vector_norm(masked, dim=2, dtype=torch.float32))
    return torch.cat(parts)


def two_products(q: Tensor, m: Tensor, t: Tensor) -> Tensor:
    """Two cuBLAS products; t² is written to memory, as it must be."""
    qm = (torch.nn.functional.normalize(q.float(), dim=1) * m).to(t.dtype)
    mm = (m * m).to(t.dtype)
    return (qm @ t.T).float() * (mm @ (t * t).T).float().rsqrt()


def _two_products_topk(q: Tensor, m: Tensor, t: Tensor, k: int) -> tuple[Tensor, Tensor]:
    return torch.topk(two_products(q, m, t), k)


def timings(device: str, quick: bool) -> list[Row]:
    """Ours and the rivals on the same data. bytes: the least that must move; flops: both products."""
    _interpret_on(device)
    from dpm_edge.kernels.masked_distance import launch

    n, d = (300, 64) if quick else (1_000_000, 768)
    compiled = torch.compile(two_products, dynamic=False) if not quick else None
    rows: list[Row] = []
    for dtype in (torch.float16,) if quick else HALVES:
        t = random_targets(n, d, dtype, device)
        for b in (1, 2) if quick else (1, 4, 16, 64, 256) if dtype == torch.float16 else (16, 256):
            q, m = torch.randn(b, d, device=device), torch.rand(b, d, device=device)

            def add(name: str, fn: Callable[[], object], out_bytes: int, graph: bool = False, b: int = b) -> None:
                row = {
                    "name": name,
                    "shape": [b, n, d],
                    "dtype": type_name(dtype),  # noqa: B023
                    "bytes": n * d * t.element_size() + 2 * b * d * 4 + out_bytes,  # noqa: B023
                    "flops": 4 * b * n * d,
                }
                try:
                    row["ms"] = timing.median_ms(fn, graph=graph)
                except Exception as error:
                    row["exception"] = f"{type(error).__name__}: {error}"
                    torch.cuda.empty_cache() if device == "cuda" else None
                rows.append(row)

            full, best = 4 * b * n, 12 * b * 10
            add("similarity", lambda: launch.scores(q, m, t), full)  # noqa: B023
            add("similarity graph", lambda: launch.scores(q, m, t), full, graph=not quick)  # noqa: B023
            add("top-10", lambda: launch.topk(q, m, t, 10), best)  # noqa: B023
            add("top-10 graph", lambda: launch.topk(q, m, t, 10), best, graph=not quick)  # noqa: B023
            add("two products", lambda: two_products(q, m, t), full)  # noqa: B023
            add("two products + topk", lambda: _two_products_topk(q, m, t, 10), best)  # noqa: B023
            if dtype == torch.float16 and b in (1, 2, 16, 256):
                if b != 256:
                    add("materialised", lambda: materialised(q, m, t), full)  # noqa: B023
                    add("loop", lambda: loop(q, m, t), full)  # noqa: B023
                if compiled is not None:
                    add("compiled", lambda: compiled(q, m, t), full)  # noqa: B023
            if dtype == torch.float16 and b in (16, 256):
                add("top-128 graph", lambda: launch.topk(q, m, t, 128), 12 * b * 128, graph=not quick)  # noqa: B023
    return rows


SMALL_TILES = (
    # block_n, block_b, block_k, warps, stages
    (64, 16, 128, 4, 4), (128, 16, 128, 4, 4), (128, 16, 64, 4, 4), (256, 16, 64, 8, 4),
)  # fmt: skip
LARGE_TILES = (
    (128, 64, 64, 8, 3), (128, 64, 64, 8, 4), (128, 64, 128, 8, 2), (128, 64, 32, 8, 5), (128, 64, 64, 4, 3),
    (128, 64, 64, 4, 4), (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (64, 128, 64, 4, 3), (64, 128, 64, 8, 3),
    (64, 64, 64, 4, 4), (64, 64, 128, 4, 3), (128, 128, 64, 16, 3), (128, 128, 64, 16, 4), (64, 256, 64, 8, 2),
    (64, 256, 64, 8, 3), (64, 128, 128, 8, 2), (64, 128, 64, 8, 4),
)  # fmt: skip


def _precompile(shape: tuple[int, ...], dtype: torch.dtype, b: int) -> None:
    """Compile one tile into Triton's cache on disk, in a process of its own."""
    from dpm_edge.kernels.masked_distance import launch

    t = torch.zeros(4096, 768, dtype=dtype, device="cuda")
    q = torch.ones(b, 768, device="cuda")
    launch.scores(q, q, t, tile=contract.Tile(*shape))
    if dtype == torch.float16:
        launch.topk(q, q, t, 10, tile=contract.Tile(*shape))


def _precompile_all(work: list[tuple[tuple[int, ...], torch.dtype, int]]) -> None:
    with futures.ProcessPoolExecutor(PROCESSES, mp_context=multiprocessing.get_context("spawn")) as pool:
        for job in [pool.submit(_precompile, *item) for item in work]:
            if job.exception() is not None:
                print(f"a tile does not compile: {str(job.exception())[:200]}", flush=True)


def _same_as_default(q: Tensor, m: Tensor, t: Tensor, tile: contract.Tile) -> None:
    """Raises ArithmeticError unless `tile` gives what the table's tile does, to within rounding."""
    from dpm_edge.kernels.masked_distance import launch

    some = t[:20_000]  # a multiple of 16, as the rows timed are: the kernel that was compiled beforehand
    off = float((launch.scores(q, m, some, tile=tile) - launch.scores(q, m, some)).abs().max())
    if not off < contract.TOLERANCE[type_name(t.dtype)]:
        raise ArithmeticError(f"{tile} is off by {off} from the table's tile")


def sweep(device: str) -> list[Row]:
    """Times of candidate tiles, similarity and top-10, L2 as the last call left it; failures become rows."""
    _interpret_on(device)
    from dpm_edge.kernels.masked_distance import launch

    gpu = device == "cuda"
    n, d = (1_000_000, 768) if gpu else (100, 32)
    cases = [(torch.float16, "small", SMALL_TILES, (1, 16)), (torch.float16, "large", LARGE_TILES, (64, 256))]
    cases += [(torch.bfloat16, "large", LARGE_TILES, (256,))]
    if gpu:
        _precompile_all([(shape, dtype, batches[-1]) for dtype, _, tiles, batches in cases for shape in tiles])
    rows = []
    for dtype, path, tiles, batches in cases if gpu else cases[:1]:
        t = random_targets(n, d, dtype, device)
        for shape in tiles if gpu else tiles[:1]:
            for b in batches:
                q, m = torch.randn(b, d, device=device), torch.rand(b, d, device=device)
                row: Row = {
                    "name": f"sweep {path}",
                    "tile": list(shape),
                    "shape": [b, n, d],
                    "dtype": type_name(dtype),
                    "bytes": t.numel() * t.element_size() + 4 * b * n,
                    "flops": 4 * b * n * d,
                }
                tile = contract.Tile(*shape)
                ways: dict[str, Callable[[], object]] = {"ms": lambda: launch.scores(q, m, t, tile=tile)}  # noqa: B023
                if b == batches[-1] and dtype == torch.float16:
                    ways["ms_topk"] = lambda: launch.topk(q, m, t, 10, tile=tile)  # noqa: B023
                try:
                    _same_as_default(q, m, t, tile)
                    for key, fn in ways.items():
                        row[key] = timing.median_ms(fn, cold_l2=False, budget_ms=20, max_runs=12)
                except Exception as error:
                    row["exception"] = f"{type(error).__name__}: {str(error)[:200]}"
                rows.append(row)
    return rows
