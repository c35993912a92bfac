"""What centring per camera brings on labelled pictures, how κ was chosen, and what a centred search costs.

    python benchmarks/gallery_centring.py --data FOLDER --name NAME [--engine ENGINE] [-o FILE]
    python benchmarks/gallery_centring.py                      the costs alone; what else the file holds stays

FOLDER has Market-1501's layout. κ, the number of rows with which a camera's own mean counts as much as the mean of all
rows, is chosen on PEOPLE training people (one picture of each camera asks for the rest): mAP with so many rows a camera
to take the mean from. The scores are those of query/ against bounding_box_test/, by `Gallery.search`, in memory and in
a folder with its candidates. Costs are of random rows, with and without centring in
turns: median CPU time of all cores, which other work on the machine lengthens less than it does the clock.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from labelled_people import arguments
from numpy.typing import NDArray

from dpm_edge import Embeddings, Gallery
from dpm_edge.centring import SHRINK, CameraStatistics
from dpm_edge.cli.embedder import open_embedder
from dpm_edge.env import machine_card
from dpm_edge.evaluation import market_scores
from dpm_edge.files import write_whole
from dpm_edge.market import LabelledFolder, query_and_gallery, read_folder
from dpm_edge.metrics import similarity
from dpm_edge.runtime.folder import embed_files

MODEL = Path(__file__).resolve().parents[1] / "dpm_edge/assets/dpm-t"
PEOPLE, KAPPAS, ROWS, DRAWS = 100, (0, 5, 20, 80, 320), (1, 2, 4, 8, 32, 128), 3
METRICS = ("plain", "masked", "mutual")
COST_ROWS, COST_D, FOLDER_ROWS = 100_000, 256, 20_000


def some_people(train: LabelledFolder) -> LabelledFolder:
    """The pictures of PEOPLE people, evenly spread over the folder's."""
    everyone = np.unique(train.people[train.people > 0])
    return train.take(np.isin(train.people, everyone[:: max(1, len(everyone) // PEOPLE)][:PEOPLE]))


def choose_kappa(t: Embeddings, labels: LabelledFolder) -> dict[str, Any]:
    """MAP of plain similarities by κ and rows a camera; 0 rows: not centred."""
    people, cameras = labels.people[t.rows], labels.cameras[t.rows]
    _, asks = np.unique(np.stack([people, cameras]), axis=1, return_index=True)
    rest = np.setdiff1d(np.arange(len(t)), asks)
    q, g = t.features[asks], t.features[rest]

    def score(q: NDArray, g: NDArray) -> float:
        s = similarity(q, g, metric="plain")
        return market_scores(s, people[asks], cameras[asks], people[rest], cameras[rest]).as_dict()["mAP"]

    table: dict[str, Any] = {"not centred": round(score(q, g), 2)}
    for kappa in KAPPAS:
        for count in ROWS:
            drawn = []
            for seed in range(DRAWS):
                rng = np.random.default_rng(seed)
                known = CameraStatistics(fingerprint="", dimension=t.dimension, shrink=float(kappa))
                for camera in np.unique(cameras):
                    here = rng.permutation(rest[cameras[rest] == camera])[:count]
                    known.add(t.features[here], [str(camera)] * len(here))
                names = [str(c) for c in cameras]
                centred = known.centre(t.features, names)
                drawn.append(score(centred[asks], centred[rest]))
            table.setdefault(f"κ {kappa}", {})[f"{count} rows a camera"] = round(float(np.mean(drawn)), 2)
    return {"people": len(np.unique(people)), "pictures": len(t), "queries": len(asks), "plain mAP": table}


def ranked(gallery: Gallery, q: Embeddings, cameras: list[str], metric: str, centre: bool) -> NDArray[np.float64]:
    """(Q, N) similarities of the places that a search gives; what it does not find is below all of them."""
    n = len(gallery)
    found = gallery.search(q, n, metric=metric, query_cameras=cameras, centre=centre)
    s = np.full((len(q), n), -2.0)
    for i in range(len(q)):
        here = found.rows[i] >= 0
        s[i, found.rows[i, here]] = found.similarity[i, here]
    return s


def accuracy(q: Embeddings, t: Embeddings, query: LabelledFolder, gallery: LabelledFolder) -> dict[str, Any]:
    """Scores by metric, and how many of the first ten a folder with its usual candidates finds."""
    labels = query.people[q.rows], query.cameras[q.rows], gallery.people[t.rows], gallery.cameras[t.rows]
    asked, kept = [str(c) for c in labels[1]], [str(c) for c in labels[3]]
    memory = Gallery(t.fingerprint, t.dimension)
    people = [str(p) if p > 0 else "" for p in labels[2]]
    memory.add(t, people=people, cameras=kept)
    result: dict[str, Any] = {"queries": len(q), "rows": len(t), "κ": SHRINK}
    for metric in METRICS:
        for centre in (False, True):
            said = market_scores(ranked(memory, q, asked, metric, centre), *labels).as_dict()
            name = "centred" if centre else "not centred"
            result.setdefault(metric, {})[name] = {key: round(said[key], 2) for key in ("rank1", "mAP")}
    with tempfile.TemporaryDirectory() as work, Gallery.create(Path(work) / "g", t.fingerprint, t.dimension) as folder:
        folder.add(t, people=people, cameras=kept, ids=range(len(t)))
        share = {}
        for metric in METRICS:
            for centre in (False, True):
                options: dict[str, Any] = {"metric": metric, "query_cameras": asked, "centre": centre}
                true, got = memory.search(q, 10, **options).rows, folder.search(q, 10, **options).rows
                both = [len(set(a) & set(b)) / 10 for a, b in zip(true.tolist(), got.tolist())]
                share[f"{metric}, {'centred' if centre else 'not centred'}"] = round(float(np.mean(both)), 5)
    result["recall@10 of a folder"] = share
    return result


def random_rows(n: int, d: int) -> tuple[Embeddings, list[str]]:
    """n random rows of six cameras."""
    rng = np.random.default_rng(0)
    made = Embeddings(
        features=rng.standard_normal((n, d)).astype(np.float32),
        masks=rng.random((n, d), np.float32),
        visibility=np.ones(n, np.float32),
        rows=np.arange(n),
        fingerprint="f",
    )
    return made, [str(i % 6) for i in range(n)]


def turns(calls: dict[str, Callable[[], Any]], times: int) -> dict[str, float]:
    """Median CPU milliseconds of calls that take turns."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(times):
        for name, call in calls.items():
            start = time.process_time()
            call()
            spent[name].append(time.process_time() - start)
    return {name: round(1e3 * float(np.median(some)), 3) for name, some in spent.items()}


def searches(gallery: Gallery, queries: Embeddings, times: int) -> dict[str, Any]:
    """CPU milliseconds of a search with and without centring, and their ratio."""
    cameras = ["0"] * len(queries)
    calls = {
        "not centred": lambda: gallery.search(queries, 10, query_cameras=cameras, centre=False),
        "centred": lambda: gallery.search(queries, 10, query_cameras=cameras, centre=True),
    }
    for call in calls.values():
        call()
    said: dict[str, Any] = turns(calls, times)
    return {**said, "ratio": round(said["centred"] / said["not centred"], 3)}


def cost() -> dict[str, Any]:
    """What centring costs in memory and in a folder."""
    return cost_in_memory() | cost_in_a_folder()


def cost_in_memory() -> dict[str, Any]:
    """What centring costs a gallery in memory."""
    rows, cameras = random_rows(COST_ROWS, COST_D)
    result: dict[str, Any] = {"rows": COST_ROWS, "dimensions": COST_D, "unit": "ms of CPU time"}
    for dtype in ("float32", "float16"):
        gallery = Gallery("f", COST_D, dtype)
        gallery.add(rows, people=[""] * COST_ROWS, cameras=cameras)
        start = time.process_time()
        gallery.camera_statistics()
        result[f"memory, {dtype}, statistics of all rows"] = round(1e3 * (time.process_time() - start))
        gallery.search(rows.take(np.array([0])), 10, query_cameras=[""])  # compiles
        for count, times in ((1, 31), (16, 11), (128, 3)):
            said = searches(gallery, rows.take(np.arange(count)), times)
            result[f"memory, {dtype}, {count} queries"] = said
        gallery.delete([0])
        start = time.process_time()
        gallery.search(rows.take(np.array([0])), 10, query_cameras=[""], centre=True)
        result[f"memory, {dtype}, first search after a removal"] = round(1e3 * (time.process_time() - start))
    for count in (1, 100):
        plain, kept = Gallery("f", COST_D), Gallery("f", COST_D)
        kept.camera_statistics()
        some, names = rows.take(np.arange(count)), cameras[:count]
        calls = {
            "without statistics": lambda: plain.add(some, people=[""] * count, cameras=names),  # noqa: B023
            "with statistics": lambda: kept.add(some, people=[""] * count, cameras=names),  # noqa: B023
        }
        said = means(calls, 2000 // count)
        result[f"memory, add of {count} rows, mean"] = said
    return result


def cost_in_a_folder() -> dict[str, Any]:
    """What centring costs a gallery in a folder."""
    rows, cameras = random_rows(FOLDER_ROWS, COST_D)
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as work:
        folders = [Gallery.create(Path(work) / name, "f", COST_D) for name in ("plain", "kept")]
        folders[1].camera_statistics()

        def add(to: Gallery) -> None:
            part = slice(len(to), len(to) + 1000)
            to.add(rows.take(np.arange(part.start, part.stop)), people=[""] * 1000, cameras=cameras[part])

        calls: dict[str, Callable[[], Any]] = {
            name: partial(add, one) for name, one in zip(("without statistics", "with statistics"), folders)
        }
        result["folder, add of 1000 rows, mean"] = means(calls, FOLDER_ROWS // 1000)
        result["folder, rows"] = FOLDER_ROWS
        result["folder, date"] = machine_card()["date"]
        for count, times in ((1, 101), (16, 41)):
            result[f"folder, {count} queries"] = searches(folders[1], rows.take(np.arange(count)), times)
        start = time.process_time()
        folders[0].camera_statistics()
        result["folder, statistics of all rows"] = round(1e3 * (time.process_time() - start))
        for one in folders:
            one.close()
    return result


def means(calls: dict[str, Callable[[], Any]], times: int) -> dict[str, Any]:
    """Mean CPU milliseconds, since every 256th row pays for the others; the first is the base."""
    spent = dict.fromkeys(calls, 0.0)
    for _ in range(times):
        for name, call in calls.items():
            start = time.process_time()
            call()
            spent[name] += time.process_time() - start
    said: dict[str, Any] = {name: round(1e3 * one / times, 4) for name, one in spent.items()}
    first, second = said.values()
    return {**said, "ratio": round(second / first, 3)}


def main() -> None:
    """Embed, measure, write."""
    options = arguments(__doc__, "gallery-centring.json")
    result: dict[str, Any] = json.loads(options.out.read_text()) if options.out.is_file() else {}
    result |= {"command": "python benchmarks/gallery_centring.py", "machine": machine_card()}
    if options.data is not None:
        model = options.engine or MODEL
        query, gallery = query_and_gallery(options.data)
        chosen = some_people(read_folder(options.data / "bounding_box_train"))
        with open_embedder(model, device="CPU" if options.engine else None, threads=None) as embedder:
            q, t, train = (embed_files(embedder, one.paths, quiet=True) for one in (query, gallery, chosen))
        result |= {"data": options.name, "model": t.fingerprint[:12]}
        result["test people"] = accuracy(q, t, query, gallery)
        write(result, options.out)
        result["choice of κ, training people"] = choose_kappa(train, chosen)
        write(result, options.out)
    result["cost"] = cost()
    write(result, options.out)
    print(options.out.read_text())


def write(result: dict[str, Any], path: Path) -> None:
    """What is known so far, whole."""
    write_whole(path, (json.dumps(result, indent=1, ensure_ascii=False) + "\n").encode())


if __name__ == "__main__":
    main()
