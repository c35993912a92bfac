"""What `gallery fill` spends on a nightly run beside embedding, as an archive grows: it must grow with it, not faster.

    python benchmarks/gallery_fill.py [--pictures 100000 1000000] [-o benchmarks/results/gallery-fill.json]

The paths are made up, and the gallery in memory holds a row for each already: writing the list of a first run, reading
it again, seeing that no picture is new, and looking every picture up in the gallery (its id is the hash of its path).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge import Embeddings, Gallery
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.gallery.jobs import archive as archives
from dpm_edge.images import chunks
from dpm_edge.progress import track

D, BATCH = 4, 1000


def filled(paths: list[str]) -> Gallery:
    """A gallery with a row for each picture."""
    gallery = Gallery("f", D)
    for part in chunks(len(paths), BATCH):
        some = paths[part]
        rows = Embeddings(
            features=np.ones((len(some), D)),
            masks=np.ones((len(some), D)),
            visibility=np.ones(len(some)),
            rows=np.arange(len(some)),
            fingerprint="f",
            sources=some,
        )
        gallery.add(rows, people=[""] * len(some), ids=[archives.picture_id(one) for one in some])
    return gallery


def measure(n: int) -> dict[str, float]:
    """Seconds of each step."""
    paths = [f"/archive/2026/07/camera-{i % 40:02d}/person-{i:09d}.jpg" for i in range(n)]
    spent: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        spent[name] = round(time.perf_counter() - start, 3)
        return result

    with tempfile.TemporaryDirectory() as folder:
        empty = archives.Archive(Path(folder), "f")
        timed("write the list", lambda: archives._write_list(empty, paths, BATCH))
        archive = timed("read the list", lambda: archives.read_archive(Path(folder), "f"))
    assert not timed("see that nothing is new", lambda: archives._new(paths, archive))
    gallery = filled(paths)

    def look_up() -> None:
        for part in chunks(n, BATCH):
            assert not archives._lacking(gallery, paths[part])

    timed("look every picture up", look_up)
    return {**spent, "all": round(sum(spent.values()), 3), "us a picture": round(1e6 * sum(spent.values()) / n, 2)}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "gallery-fill.json")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": machine_card(), "what": {"unit": "s"}, "pictures": {}}
    for n in track(options.pictures, what="sizes"):
        result["pictures"][str(n)] = measure(n)
        write_whole(options.out, (json.dumps(result, indent=2) + "\n").encode())
    print(json.dumps(result["pictures"], indent=2))


if __name__ == "__main__":
    main()
