"""How near the exact masked search on a CPU comes to the machine's limits, with rivals in the same run.

    python benchmarks/gallery_exact.py [--rows 100000] [-o benchmarks/results/gallery-exact.json]

The physics, for N rows of D dimensions and Q queries:
- bytes: N·D·4 in float32 must be read once, 307 MB at 100,000 × 768; two memory-bound cores read about 40 GB/s: 8 ms.
- operations: two products, 4·Q·N·D flop, 4.9 GFLOP for 16 queries. An AVX2 core does 2 fused multiply-adds of 8 floats
  a cycle, 32 flop: two cores at 3.4 GHz do 218 GFLOP/s, so that 16 queries take 22 ms at least, 256 take 360 ms.
- one query does 10 flop an element read: memory binds. Four take 6.5 ms of arithmetic by our loop, which squares each
  value once for four queries: memory still binds. Sixteen are bound by arithmetic.
So one query's limit is the read bandwidth, measured here by summing the same bytes with the same threads; many queries'
is the rate of numpy's own products of the same sizes.

The loops serve few queries, the products many. Where they cross is measured for float32 and float16, as "crossover";
`exact.FEW` is a constant chosen from it, and "lost by the constant" says what the best choice at each count would save.

Rounds of all contestants take turns, and the median of each counts: now and then memory reads half as fast again for a
round or two, and a least time compares one contestant's luck with another's. Each runs once untimed before it is timed:
what ran before leaves spinning threads and other pages behind.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from dpm_edge.env import cores, machine_card, version
from dpm_edge.files import write_whole
from dpm_edge.gallery.search import exact
from dpm_edge.gallery.stores.memory import Column

D, K = 768, 10


@njit(nogil=True, fastmath=True, cache=True)
def total(t: Any, start: int, stop: int) -> float:
    """Read rows start..stop once."""
    a = np.float32(0)
    for n in range(start, stop):
        for d in range(t.shape[1]):
            a += t[n, d]
    return a


def read_once(t: np.ndarray, pool: ThreadPoolExecutor) -> None:
    """Every byte, a part a thread."""
    step = -(-len(t) // cores())
    list(pool.map(lambda start: total(t, start, min(start + step, len(t))), range(0, len(t), step)))


def two_products(q: np.ndarray, m: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The metric by numpy's two products, and a partial sort."""
    s = ((q * m) @ t.T) / np.sqrt((m * m) @ (t * t).T)
    return np.argpartition(-s, K, axis=1)[:, :K]


def naive(q: np.ndarray, m: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The formula, one query at a time: a masked copy of the gallery each."""
    found = []
    for i in range(len(q)):
        seen = t * m[i]
        s = seen @ q[i] / np.linalg.norm(seen, axis=1)
        found.append(np.argpartition(-s, K)[:K])
    return np.array(found)


def stored(values: np.ndarray) -> np.ndarray:
    """Values where a gallery in memory keeps them."""
    column = Column(values.shape[1:], values.dtype)
    column.append(values)
    return column.rows


def lost(crossover: dict[str, dict[str, float]]) -> float:
    """The largest share of time that the constant costs at any count, over the better of both ways."""
    worst = 0.0
    for name, row in crossover.items():
        count = int(name.split()[0])
        taken = row["loops" if count <= exact.FEW else "products"]
        worst = max(worst, taken / min(row.values()) - 1)
    return round(worst, 3)


def middle(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each contestant's median round; they take turns, and run once untimed before each round."""
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, work in contestants.items():
            work()
            start = time.perf_counter()
            work()
            spent[name].append(1e3 * (time.perf_counter() - start))
    return {name: round(statistics.median(values), 3) for name, values in spent.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "gallery-exact.json")
    options = parser.parse_args()
    n, rng = options.rows, np.random.default_rng(0)
    t = rng.standard_normal((n, D), np.float32)
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    q, m = exact.unit(rng.standard_normal((256, D))), rng.random((256, D), np.float32)
    times = np.arange(n)
    half = (times >= n // 4) & (times < n // 4 + n // 2)
    hidden = ~half
    scattered = rng.random(n) < 0.5
    kinds = {"float32": t, "float16": t.astype(np.float16), "int8": exact.quantise(t)[0]}
    stores = {name: exact.Vectors(stored(values)) for name, values in kinds.items()}
    pool = ThreadPoolExecutor(cores())
    bytes_read = t.nbytes

    def ours(count: int, store: str = "float32", hide: np.ndarray | None = None) -> Callable[[], Any]:
        return lambda: exact.top_k(q[:count], stores[store], K, query_masks=m[:count], hidden=hide)

    def forced(few: int, count: int, store: str) -> Callable[[], Any]:
        def work() -> None:
            kept, exact.FEW = exact.FEW, few
            try:
                ours(count, store)()
            finally:
                exact.FEW = kept

        return work

    found = exact.top_k(q[:4], stores["float32"], K, query_masks=m[:4])[0]
    same = (np.sort(found, axis=1) == np.sort(naive(q[:4], m[:4], t), axis=1)).mean()
    one = middle(
        {
            "read the gallery once": lambda: read_once(stores["float32"].values, pool),
            "ours": ours(1),
            "ours, time window of half": ours(1, hide=hidden),
            "ours, random half": ours(1, hide=scattered),
            "ours, float16": ours(1, "float16"),
            "ours, int8": ours(1, "int8"),
            "numpy, two products": lambda: two_products(q[:1], m[:1], t),
            "numpy, naive": lambda: naive(q[:1], m[:1], t),
        },
        options.rounds,
    )
    some = middle(
        {
            "ours": ours(16),
            "ours, float16": ours(16, "float16"),
            "numpy, two products": lambda: two_products(q[:16], m[:16], t),
        },
        max(options.rounds // 2, 3),
    )
    many = middle(
        {
            "two products alone": lambda: [
                (q @ t[a : a + 16384].T, m @ t[a : a + 16384].T) for a in range(0, n, 16384)
            ],
            "ours": ours(256),
            "numpy, two products": lambda: two_products(q, m, t),
        },
        max(options.rounds // 5, 3),
    )
    crossover = {}
    for store, count in product(("float32", "float16"), (4, 16, 32, 64, 96, 128)):
        paths = {"loops": forced(10**6, count, store), "products": forced(0, count, store)}
        crossover[f"{count} {store}"] = middle(paths, max(options.rounds // 5, 3))
    result = {
        "machine": {**machine_card(), "numba": version("numba")},
        "what": {"rows": n, "dimension": D, "k": K, "threads": cores(), "unit": "ms, median round"},
        "one query": {**one, "GB/s read": round(bytes_read / one["read the gallery once"] / 1e6, 1)},
        "16 queries": some,
        "256 queries": many,
        "crossover": {"kept": exact.FEW, "lost by the constant": lost(crossover), **crossover},
        "figures": {
            "one query, share of the read bandwidth": round(one["read the gallery once"] / one["ours"], 3),
            "one query, window of half over no filter": round(one["ours, time window of half"] / one["ours"], 3),
            "one query, random half over no filter": round(one["ours, random half"] / one["ours"], 3),
            "one query, times numpy's two products": round(one["numpy, two products"] / one["ours"], 2),
            "16 queries, times numpy's two products": round(some["numpy, two products"] / some["ours"], 2),
            "256 queries, share of the products' rate": round(many["two products alone"] / many["ours"], 3),
        },
        "same rows as the naive formula": float(same),
    }
    write_whole(options.out, (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result["figures"], indent=2))


if __name__ == "__main__":
    main()
