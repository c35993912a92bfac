"""What a search costs right after a row was added, as a live camera does: beside a search of an unchanged gallery.

    python benchmarks/gallery_add_search.py [--rows 100000 1000000] [-o benchmarks/results/gallery-add-search.json]

In memory, float16, 256 dimensions, one masked query. The two take turns; an addition of one row precedes each second
one and is timed by itself. The median of all rounds is given: a rebuilt index would cost every round alike.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge import Embeddings, Gallery
from dpm_edge.env import machine_card, version
from dpm_edge.files import write_whole
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import new_meta
from dpm_edge.progress import track

D, K = 256, 10
STEP = 20_000
ROUNDS = 40


def some(n: int, seed: int) -> Embeddings:
    """n random rows."""
    rng = np.random.default_rng(seed)
    return Embeddings(
        features=rng.standard_normal((n, D), np.float32),
        masks=rng.random((n, D), np.float32),
        visibility=np.ones(n),
        rows=np.arange(n),
        fingerprint="benchmark",
    )


def measure(n: int) -> dict[str, float]:
    """Median milliseconds at n rows."""
    gallery = Gallery("benchmark", D, store=MemoryStore(new_meta("benchmark", D, False), "float16"))
    for start in range(0, n, STEP):
        part = some(min(STEP, n - start), start)
        gallery.add(part, people=[f"p{i % 500}" for i in range(len(part))])
    one = some(1, -1 % 2**32)
    spent: dict[str, list[float]] = {"search": [], "add one row": [], "search after add": []}

    def timed(name: str, work: Any) -> None:
        start = time.perf_counter()
        work()
        spent[name].append(1e3 * (time.perf_counter() - start))

    for _ in range(3):
        gallery.search(one, K)
    for _ in range(ROUNDS):
        timed("search", lambda: gallery.search(one, K))
        timed("add one row", lambda: gallery.add(one, people=["new"]))
        timed("search after add", lambda: gallery.search(one, K))
    cost = {name: round(float(np.median(values)), 3) for name, values in spent.items()}
    return {**cost, "ratio": round(cost["search after add"] / cost["search"], 3)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "gallery-add-search.json")
    options = parser.parse_args()
    result: dict[str, Any] = {
        "machine": {**machine_card(), "numba": version("numba")},
        "what": {"dimension": D, "k": K, "rounds": ROUNDS, "unit": "ms, median"},
        "rows": {},
    }
    for n in track(options.rows, what="sizes"):
        result["rows"][str(n)] = measure(n)
        write_whole(options.out, (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result["rows"], indent=2))


if __name__ == "__main__":
    main()
