"""What one masked query costs as a gallery grows, from a thousand rows to a million, exact and indexed.

    python benchmarks/gallery_cost.py [--sizes …] [--folder …] [--indexed …] [-o benchmarks/results/gallery-cost.json]

In memory float16 and int8, every row scored; in a folder every row scored by the inner product and candidates again;
the same folder's rows under an HNSW graph (m 16, ef_construct 100), which a gallery never builds by itself, with the
share of the exact top 10 it finds. Building the graph takes minutes at 100,000 rows: its sizes are an option.

Rows are people with noise around each, float16 in the folder. Cost in memory is N·D·2 bytes over the read bandwidth.
Writes after every size, so that a run that is cut off keeps what it has, and draws a plot beside the results.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from gallery_stores import D, K, least, people

from dpm_edge import Embeddings, Gallery
from dpm_edge.env import machine_card, version
from dpm_edge.files import write_whole
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.store import new_meta
from dpm_edge.progress import track

STEP = 20_000
QUERIES = 20
CANDIDATES = 20
"""Re-ranked in the folder: what check-recall finds enough on these rows (gallery-stores.json)."""
WAYS = ("memory, float16", "memory, int8", "folder, exact", "folder, HNSW")


def fill(galleries: list[Gallery], n: int) -> None:
    """n rows into each, made and added a part at a time."""
    for at in range(0, n, STEP):
        part = people(min(STEP, n - at), 100 + at)
        for start in range(0, len(part), 1000):
            some = part.take(slice(start, start + 1000))
            for gallery in galleries:
                gallery.add(some, people=["p"] * len(some))
    for gallery in galleries:
        gallery.flush()


def in_memory(n: int, queries: Embeddings) -> dict[str, dict[str, float]]:
    """Milliseconds of one query, by dtype."""
    dtypes, meta = ("float16", "int8"), new_meta("benchmark", D, False)
    galleries = [Gallery("benchmark", D, store=MemoryStore(meta, dtype)) for dtype in dtypes]
    fill(galleries, n)
    turn = iter(range(10**6))
    work = {t: (lambda g=g: g.search(queries.take([next(turn) % QUERIES]), K)) for t, g in zip(dtypes, galleries)}
    return {f"memory, {dtype}": {"ms": ms} for dtype, ms in least(work, 7).items()}


def in_folder(n: int, indexed: bool, queries: Embeddings) -> dict[str, dict[str, float]]:
    """The folder's exact search; then, where it is wanted, the graph's time, recall and building."""
    with tempfile.TemporaryDirectory() as folder:
        with Gallery.create(Path(folder) / "g", "benchmark", D, masks=False) as gallery:
            fill([gallery], n)
            turn = iter(range(10**6))
            one = {"ms": lambda: gallery.search(queries.take([next(turn) % QUERIES]), K, candidates=CANDIDATES)}
            measured = {"folder, exact": least(one, 5)}
        if indexed:
            measured["folder, HNSW"] = under_a_graph(Path(folder) / "g" / "shard-1", queries)
    return measured


def under_a_graph(shard_folder: Path, queries: Embeddings) -> dict[str, float]:
    """Candidates by the library's HNSW over a gallery's own rows: ms, share of the exact ones, seconds to build."""
    import qdrant_edge as library

    shard = library.EdgeShard.load(str(shard_folder))
    wanted = queries.features * queries.masks

    def ids(i: int, exact: bool) -> set[int]:
        params = library.SearchParams(exact=exact)
        query = library.Query.Nearest(wanted[i].tolist(), using="feature")
        found = shard.query(library.QueryRequest(limit=CANDIDATES, query=query, params=params))
        return {point.id for point in found}

    exact = [ids(i, True) for i in range(QUERIES)]
    shard.close()
    feature = library.EdgeVectorParams(
        size=D,
        distance=library.Distance.Dot,
        datatype=library.VectorStorageDatatype.Float16,
        hnsw_config=library.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=1),
    )
    config = library.EdgeConfig(
        vectors={"feature": feature}, optimizers=library.EdgeOptimizersConfig(indexing_threshold=1)
    )
    shard = library.EdgeShard.load(str(shard_folder), config)
    start = time.perf_counter()
    shard.optimize()
    built = time.perf_counter() - start
    indexed = int(shard.info().indexed_vectors_count)
    turn = iter(range(10**6))
    cost = least({"ms": lambda: ids(next(turn) % QUERIES, False)}, 7)
    recall = np.mean([len(ids(i, False) & exact[i]) / len(exact[i]) for i in range(QUERIES)])
    shard.close()
    return {**cost, "recall": round(float(recall), 4), "s to build": round(built, 1), "rows in the graph": indexed}


def plot(cost: dict[str, Any], path: Path) -> None:
    """Milliseconds against rows, a line a way; the graph's points carry their recall."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.subplots()
    for way in WAYS:
        at = [(int(n), row[way]) for n, row in cost.items() if way in row]
        if not at:
            continue
        ax.loglog([n for n, _ in at], [one["ms"] for _, one in at], "o-", label=way)
        for n, one in at:
            if "recall" in one:
                ax.annotate(f"{one['recall']:.2f}", (n, one["ms"]), textcoords="offset points", xytext=(4, -12), size=8)
    ax.set_xlabel("rows of 768 dimensions")
    ax.set_ylabel("ms, one masked query, top 10")
    ax.set_title("beside HNSW: share of the exact candidates found", size=9)
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1000, 10_000, 100_000, 300_000, 1_000_000])
    parser.add_argument("--folder", type=int, nargs="*", default=[1000, 10_000, 100_000, 300_000], help="sizes on disk")
    parser.add_argument("--indexed", type=int, nargs="*", default=[1000, 10_000, 30_000], help="sizes with a graph")
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "gallery-cost.json")
    options = parser.parse_args()
    queries = people(QUERIES, 3)
    cost: dict[str, Any] = {}
    versions = {name: version(name) for name in ("qdrant-edge-py", "numba")}
    result = {
        "machine": {**machine_card(), **versions},
        "what": {"dimension": D, "k": K, "candidates": CANDIDATES, "unit": "ms, best round"},
        "one query": cost,
    }
    for n in track(sorted({*options.sizes, *options.folder, *options.indexed}), what="sizes"):
        row = cost.setdefault(str(n), {})
        if n in options.sizes:
            row |= in_memory(n, queries)
        if n in options.folder or n in options.indexed:
            row |= in_folder(n, n in options.indexed, queries)
        write_whole(options.out, (json.dumps(result, indent=2) + "\n").encode())
        plot(cost, options.out.with_suffix(".png"))
    print(json.dumps(cost, indent=2))


if __name__ == "__main__":
    main()
