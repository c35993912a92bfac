"""The embedded store at 100,000 rows beside the bare library, and the memory of a gallery.

    python benchmarks/gallery_stores.py [--rows 100000] [-o benchmarks/results/gallery-stores.json]

Rows are structured: people with noise around each, random masks. Unmasked and masked searches of one store take turns.
The bare library gets the same vectors and labels in the same steps, ready made: what it takes is the limit of adding,
since it holds Python's lock meanwhile. What a search costs as a gallery grows: gallery_cost.py.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge import Embeddings, Gallery
from dpm_edge.env import machine_card, version
from dpm_edge.files import write_whole
from dpm_edge.gallery.search.recall import check_recall
from dpm_edge.gallery.stores import qdrant_edge
from dpm_edge.gallery.stores.store import new_meta

D, K = 768, 10


def people(n: int, seed: int) -> Embeddings:
    """n rows of n/20 people."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(1).standard_normal((max(n // 20, 50), D), np.float32)
    features = centre[rng.integers(0, len(centre), n)] + rng.standard_normal((n, D), np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Embeddings(
        features=features,
        masks=rng.random((n, D), np.float32),
        visibility=np.ones(n),
        rows=np.arange(n),
        fingerprint="benchmark",
    )


def resident() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def least(work: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Milliseconds of each one's best round; they take turns, the first round does not count."""
    best = dict.fromkeys(work, float("inf"))
    for turn in range(rounds + 1):
        for name, one in work.items():
            start = time.perf_counter()
            one()
            if turn:
                best[name] = min(best[name], 1e3 * (time.perf_counter() - start))
    return {name: round(value, 3) for name, value in best.items()}


def add_all(gallery: Gallery, rows: Embeddings) -> float:
    """Seconds to add rows a thousand at a time, and flush."""
    start = time.perf_counter()
    for at in range(0, len(rows), 1000):
        part = rows.take(slice(at, at + 1000))
        gallery.add(part, people=["p"] * len(part), cameras=np.arange(len(part)) % 20, timestamps=np.arange(len(part)))
    gallery.flush()
    return time.perf_counter() - start


def bare(rows: Embeddings, folder: Path, *, masks: bool) -> float:
    """Rows a second that the library takes: points are made and written a thousand at a time, then flushed."""
    import qdrant_edge as library

    shard = qdrant_edge._new_shard(folder, new_meta("benchmark", D, masks))
    seconds = 0.0
    for at in range(0, len(rows), 1000):
        part = range(at, min(at + 1000, len(rows)))
        features, hidden = rows.features[part.start : part.stop], rows.masks[part.start : part.stop]
        start = time.perf_counter()
        points = [
            library.Point(
                id=i,
                vector={"feature": memoryview(feature), **({"mask": memoryview(mask)} if masks else {})},
                payload={"person": "p", "camera": str(i % 20), "visibility": 1.0, "time": float(i)},
            )
            for i, feature, mask in zip(part, features, hidden)
        ]
        shard.update(library.UpdateOperation.upsert_points(points))
        seconds += time.perf_counter() - start
    start = time.perf_counter()
    shard.flush()
    seconds += time.perf_counter() - start
    shard.close()
    return len(rows) / seconds


def embedded(rows: Embeddings, queries: Embeddings) -> dict[str, Any]:
    """The store in a folder: rate of adding, masked against unmasked, recall."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with Gallery.create(Path(folder) / "features", "benchmark", D, masks=False) as gallery:
            result["rows/s added, features only"] = round(len(rows) / add_all(gallery, rows))
            one = queries.take([0])
            factor = check_recall(gallery, queries=queries, k=K)["measured"][-1]
            result["check-recall"] = factor
            k = int(factor["candidates"])
            searches = {
                "unmasked top 10": lambda: gallery.search(one, K, metric="plain", candidates=K),
                "masked top 10": lambda: gallery.search(one, K, candidates=k),
                "masked top 10, camera and time window": lambda: gallery.search(
                    one, K, candidates=k, camera="3", since=0, until=500
                ),
            }
            result["ms"] = least(searches, 8)
            result["masked over unmasked"] = round(result["ms"]["masked top 10"] / result["ms"]["unmasked top 10"], 2)
        fewer = rows.take(slice(0, len(rows) // 5))
        with Gallery.create(Path(folder) / "masks", "benchmark", D) as gallery:
            result["rows/s added, with masks"] = round(len(fewer) / add_all(gallery, fewer))
        result["rows/s added, bare library, features only"] = round(bare(rows, Path(folder) / "bare", masks=False))
        result["rows/s added, bare library, with masks"] = round(bare(fewer, Path(folder) / "bare-masks", masks=True))
    return result


def memory(rows: Embeddings) -> dict[str, Any]:
    """Resident bytes of a gallery in memory over the bytes of its vectors."""
    add_all(Gallery("benchmark", D, "float16"), rows.take(slice(0, 2000)))  # what the first use loads is not counted
    before = resident()
    gallery = Gallery("benchmark", D, "float16")
    add_all(gallery, rows)
    vectors = len(rows) * D * 2 * 2
    return {"MB of vectors": round(vectors / 1e6), "resident over vectors": round((resident() - before) / vectors, 3)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "gallery-stores.json")
    options = parser.parse_args()
    rows, queries = people(options.rows, 0), people(20, 3)
    result: dict[str, Any] = {
        "machine": {**machine_card(), "qdrant-edge-py": version("qdrant-edge-py"), "numba": version("numba")},
        "what": {"rows": options.rows, "dimension": D, "k": K},
        "memory": memory(rows),
        "embedded": embedded(rows, queries),
    }
    write_whole(options.out, (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps({key: value for key, value in result.items() if key != "machine"}, indent=2))


if __name__ == "__main__":
    main()
