"""Timing on one device: medians over CUDA events with a cold L2, and the two ceilings that results are set against."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch

_L2_FLUSH_BYTES = 256 * 2**20


def median_ms(
    fn: Callable[[], object], *, cold_l2: bool = True, graph: bool = False, budget_ms: float = 150.0, max_runs: int = 50
) -> float:
    """Median milliseconds of one call of `fn`.

    cold_l2: a 256 MiB write before each call empties the L2; it lies outside the timed span. graph: the call is
    captured once as a CUDA graph and replayed, which leaves out launch overheads. budget_ms: stop after about so much
    timed work.
    On a machine without a GPU: wall clock, a few runs.
    """
    if not torch.cuda.is_available():
        return _median_cpu_ms(fn)
    run = _captured(fn) if graph else fn
    for _ in range(2):
        run()
    flush = torch.empty(_L2_FLUSH_BYTES, dtype=torch.int8, device="cuda") if cold_l2 else None
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    runs = max(5, min(max_runs, int(budget_ms / max(start.elapsed_time(end), 1e-3))))
    spans = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(runs)]
    for before, after in spans:
        if flush is not None:
            flush.zero_()
        before.record()
        run()
        after.record()
    torch.cuda.synchronize()
    return statistics.median(before.elapsed_time(after) for before, after in spans)


def _captured(fn: Callable[[], object]) -> Callable[[], None]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            fn()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fn()
    return graph.replay


def _median_cpu_ms(fn: Callable[[], object]) -> float:
    fn()
    spans = []
    for _ in range(3):
        start = time.perf_counter()
        fn()
        spans.append((time.perf_counter() - start) * 1e3)
    return statistics.median(spans)


def copy_bandwidth(device: str) -> float:
    """Bytes per second, read plus written, of copying 2 GiB (CPU: 64 MiB)."""
    count = 2**31 if device == "cuda" else 2**26
    source = torch.empty(count, dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    return 2 * count / (median_ms(lambda: target.copy_(source), cold_l2=False) * 1e-3)


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """Operations per second of an 8192³ matrix product (CPU: 256³)."""
    side = 8192 if device == "cuda" else 256
    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    out = torch.empty_like(a)
    return 2 * side**3 / (median_ms(lambda: torch.mm(a, b, out=out), cold_l2=False) * 1e-3)
