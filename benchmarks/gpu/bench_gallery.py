"""The gallery's search with its rows on a GPU: the order of the float64 formula, then its time. Run by `suite.py`.

Question: what does an answer cost from a query in host memory to ids in host memory, beside the kernel alone and beside
what one would write in torch?
Shapes: B queries · N rows · D = 768 dimensions · 10 places.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import timing
import torch

Row = dict[str, Any]
K = 10


def data(n: int, d: int, b: int, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normalised rows (N, D) in `dtype`, normalised queries near some of them, masks (B, D)."""
    from dpm_edge.gallery.search import exact

    rng = np.random.default_rng(n + b)
    t = exact.unit(rng.standard_normal((n, d), np.float32))
    q = t[rng.integers(0, n, b)] + 0.03 * rng.standard_normal((b, d), np.float32)
    values = exact.quantise(t)[0] if dtype == "int8" else t.astype(dtype)
    return values, exact.unit(q), rng.random((b, d), np.float32)


def truth(q: np.ndarray, m: np.ndarray, values: np.ndarray, keep: np.ndarray | None, device: str) -> np.ndarray:
    """(B, K) rows by a full sort of the formula in float64."""
    q64, m64, t = (torch.from_numpy(x).to(device).double() for x in (q, m, values))
    t = t / t.norm(dim=1, keepdim=True).clamp(min=1e-12)
    s = (q64 / q64.norm(dim=1, keepdim=True) * m64) @ t.T / ((m64 * m64) @ (t * t).T).clamp(min=1e-12).sqrt()
    if keep is not None:
        s[:, torch.from_numpy(~keep).to(device)] = -torch.inf
    return s.sort(dim=1, descending=True, stable=True).indices[:, :K].cpu().numpy()


def check(device: str, quick: bool) -> list[Row]:
    """Every dtype, with and without a row filter: the same rows in the same order."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from dpm_edge.gallery.search import exact, on_gpu
    from dpm_edge.kernels.masked_distance import resident

    rows: list[Row] = []
    n, d, b = (130, 40, 2) if quick else (300_007, 768, 17)
    for dtype in ("float16", "float32", "int8"):
        values, q, m = data(n, d, b, dtype)
        there = resident.Resident(device)
        there.follow(values[: n // 2], None)
        there.follow(values, None)
        some = np.random.default_rng(1).random(n) < 0.5
        for name, keep in (("all rows", None), ("half of the rows", some)):
            hidden = None if keep is None else ~keep
            got, _ = on_gpu.top_k(q, exact.Vectors(values), there, K, query_masks=m, hidden=hidden)
            same = float((got == truth(q, m, values, keep, device)).mean())
            rows.append({"name": f"gallery {name}", "dtype": dtype, "shape": [b, n, d], "same": same, "ok": same == 1})
    return rows


def wall_ms(work: Callable[[], object], rounds: int) -> float:
    """Median milliseconds from call to answer in host memory; the first call does not count."""
    spans = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work()
        spans.append(1e3 * (time.perf_counter() - start))
    return round(median(spans[1:]), 4)


def timings(device: str, quick: bool) -> list[Row]:
    """Answers by the gallery's search, by its kernel alone, and by two products and torch.topk, answers on the host."""
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    from dpm_edge.gallery.search import exact, on_gpu
    from dpm_edge.kernels.masked_distance import op, resident

    rows: list[Row] = []
    n, d = (130, 40) if quick else (1_000_000, 768)
    values, q, m = data(n, d, 2 if quick else 256, "float16")
    vectors, there = exact.Vectors(values), resident.Resident(device)
    start = time.perf_counter()
    there.follow(values, None)
    uploaded = 1e3 * (time.perf_counter() - start)
    targets = torch.from_numpy(values).to(device)
    half = np.random.default_rng(1).random(n) < 0.5
    for b in (1, 2) if quick else (1, 16, 256):
        qb, mb = torch.from_numpy(q[:b]).to(device), torch.from_numpy(m[:b]).to(device)

        def rival(b: int = b) -> object:
            qt, mt = torch.from_numpy(q[:b]).to(device), torch.from_numpy(m[:b]).to(device)
            s = ((qt * mt).half() @ targets.T).float() / ((mt * mt).half() @ (targets * targets).T).float().sqrt()
            return [x.cpu() for x in s.topk(K)]

        ways: dict[str, Callable[[], object]] = {
            "search": lambda b=b: on_gpu.top_k(q[:b], vectors, there, K, query_masks=m[:b]),
            "search, half of the rows": lambda b=b: on_gpu.top_k(
                q[:b], vectors, there, K, query_masks=m[:b], hidden=half
            ),
            "two products + topk": rival,
        }
        cost = {"shape": [b, n, d], "dtype": "float16", "bytes": 2 * n * d, "flops": 4 * b * n * d}
        kernel_ms = timing.median_ms(lambda qb=qb, mb=mb: op.masked_topk(qb, mb, targets, K))
        rows.append({"name": "gallery: kernel alone", **cost, "ms": kernel_ms})
        rows += [
            {"name": f"gallery: {way}", **cost, "ms": wall_ms(work, 3 if quick else 20)} for way, work in ways.items()
        ]
    upload = {"name": "gallery: rows to the device", "shape": f"{n} rows", "dtype": "float16", "ms": round(uploaded, 2)}
    return [*rows, upload]
