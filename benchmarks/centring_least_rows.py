"""From how many rows on a gallery's searches gain by centring per camera: how the least rows were chosen.

    python benchmarks/centring_least_rows.py --data FOLDER --name NAME [--engine ENGINE] [-o FILE]

FOLDER has Market-1501's layout. PEOPLE training people validate; nobody of the test people is looked at. For each size,
DRAWS galleries of so many of these people are drawn, with every row of theirs or with one row of each person and
camera; one more picture of each person and camera asks. The cameras' means come from the rows of that gallery alone, as
they do in `Gallery.search`, shrunk by κ. "one camera": only rows of one camera are in the gallery, and the queries of
the other cameras, which have no rows, get the mean of all rows. mAP in percent, means over the draws.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from gallery_centring import MODEL, some_people
from labelled_people import arguments
from numpy.typing import NDArray

from dpm_edge import Embeddings
from dpm_edge.centring import SHRINK, CameraStatistics
from dpm_edge.cli.embedder import open_embedder
from dpm_edge.env import machine_card
from dpm_edge.evaluation import market_scores
from dpm_edge.files import write_whole
from dpm_edge.market import read_folder
from dpm_edge.metrics import similarity
from dpm_edge.runtime.folder import embed_files

SIZES, DRAWS = (2, 3, 5, 8, 12, 20, 35, 60, 100), 20
METRICS = ("plain", "masked")
FILLINGS = ("every row", "one row of each person and camera", "one camera")


def drawn(
    people: NDArray, cameras: NDArray, size: int, filling: str, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows that ask, and rows of a gallery of `size` people."""
    draw = np.random.default_rng((seed, size))
    chosen = np.flatnonzero(np.isin(people, draw.choice(np.unique(people), size, replace=False)))
    rows = draw.permutation(chosen)
    groups: dict[tuple[int, int], list[int]] = {}
    for row in rows:
        groups.setdefault((int(people[row]), int(cameras[row])), []).append(int(row))
    asks = np.array([some[0] for some in groups.values()])
    least = 2 if filling == FILLINGS[1] else None
    kept = np.array([row for some in groups.values() for row in some[1:least]])
    if filling == FILLINGS[2]:
        names, counts = np.unique(cameras[kept], return_counts=True)
        kept = kept[cameras[kept] == names[counts.argmax()]]
    return asks, kept


def gain(t: Embeddings, people: NDArray, cameras: NDArray, asks: NDArray, kept: NDArray) -> dict[str, list[float]]:
    """For each metric mAP without and with centring by the means of the rows that are kept."""
    names = [str(c) for c in cameras]
    known = CameraStatistics(fingerprint="", dimension=t.dimension)
    known.add(t.features[kept], [names[i] for i in kept])
    both = np.concatenate([asks, kept])
    moved = known.centre(t.features[both], [names[i] for i in both])
    spaces = (t.features[asks], t.features[kept]), (moved[: len(asks)], moved[len(asks) :])
    found: dict[str, list[float]] = {}
    for metric in METRICS:
        for q, g in spaces:
            s = similarity(q, g, metric=metric, query_masks=t.masks[asks], target_masks=t.masks[kept])
            said = market_scores(s, people[asks], cameras[asks], people[kept], cameras[kept])
            found.setdefault(metric, []).append(said.as_dict()["mAP"])
    return found


def measure(t: Embeddings, people: NDArray, cameras: NDArray) -> dict[str, Any]:
    """By filling and number of people: rows, mAP without and with centring, and the share of draws that lost."""
    table: dict[str, Any] = {}
    for filling in FILLINGS:
        for size in SIZES:
            rows, scores = [], []
            for seed in range(DRAWS):
                asks, kept = drawn(people, cameras, size, filling, seed)
                rows.append(len(kept))
                scores.append(gain(t, people, cameras, asks, kept))
            line: dict[str, Any] = {"rows": round(float(np.mean(rows)), 1)}
            for metric in METRICS:
                was, now = np.array([one[metric] for one in scores]).T
                line[metric] = {
                    "not centred": round(float(was.mean()), 2),
                    "centred": round(float(now.mean()), 2),
                    "draws that lost over 1 point": round(float((now < was - 1).mean()), 2),
                }
            table.setdefault(filling, {})[f"{size} people"] = line
    return table


def main() -> None:
    """Embed, measure, write."""
    options = arguments(__doc__, "centring-least-rows.json")
    chosen = some_people(read_folder(options.data / "bounding_box_train"))
    with open_embedder(options.engine or MODEL, device="CPU" if options.engine else None, threads=1) as embedder:
        t = embed_files(embedder, chosen.paths, quiet=True)
    result = {
        "command": "python benchmarks/centring_least_rows.py",
        "machine": machine_card(),
        "data": options.name,
        "model": t.fingerprint[:12],
        "people": len(np.unique(chosen.people)),
        "pictures": len(t),
        "κ": SHRINK,
        "draws": DRAWS,
        "mAP": measure(t, chosen.people[t.rows], chosen.cameras[t.rows]),
    }
    write_whole(options.out, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
