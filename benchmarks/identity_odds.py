"""How far the camera application's probabilities are true, on real people: what its odds were set by.

    python benchmarks/identity_odds.py --folder MARKET-LAYOUT-FOLDER --engine ENGINE_DIR [-o FILE]

writes benchmarks/results/identity-odds.json. The folder holds pictures named as Market-1501's; every third person of it
is taken. A track is the pictures of one person in one sequence of one camera, three or more, pooled as the application
pools them. Sites of 6 to 30 people are drawn, each person with one track in the gallery, and are asked for as many
known people, by a track of another camera, and as many new ones. Probabilities are those of `Identities`, by looks.
People with odd places set the numbers: those of a grid with the least log loss in their sites, not centred and centred
per camera. People with even places test them.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge import Embeddings, Engine
from dpm_edge.centring import CameraStatistics
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.manifest import Manifest
from dpm_edge.metrics import similarity
from dpm_edge.runtime.folder import embed_files
from dpm_edge.watch import evidence
from dpm_edge.watch.evidence import Crops, Strangers, log_odds

RESULTS = Path(__file__).parent / "results" / "identity-odds.json"
PEOPLE_EVERY, LEAST_CROPS, LEAST_VISIBILITY = 3, 3, 0.3
SITES, LEAST_PEOPLE, MOST_PEOPLE, PAIRS = 150, 6, 30, 60
PROBABILITIES, MARGIN = (0.6, 0.75, 0.85), 0.2
GRID = ((1.8, 2.1, 2.4, 2.75, 3.1, 3.4, 3.7, 4.0), (0.6, 0.75, 0.9, 1.05, 1.2, 1.35), (6, 15, 30, 100))
"""One person's mean and spread, and the strangers' degrees of freedom, that are tried."""
BEFORE = (2.1, 0.9, 30)
"""What was set by the first dpm-n, for both spaces."""


class Tracks:
    """Pooled tracks of people."""

    def __init__(self, rows: Embeddings, names: list[str]) -> None:
        grouped: dict[tuple[str, str], Crops] = {}
        for i, name in enumerate(names):
            person, sequence = name.split("_")[:2]  # 0002_c1s1_000451_03.jpg: person, camera and sequence, frame
            if rows.weight[i] >= LEAST_VISIBILITY:
                crops = grouped.setdefault((person, sequence), Crops())
                crops.add(rows.features[i], rows.masks[i], float(rows.weight[i]), 1.0, 0.0)
        kept = {key: crops for key, crops in grouped.items() if crops.count >= LEAST_CROPS}
        self.queries = [crops.query(rows.fingerprint) for crops in kept.values()]
        self.person = np.array([person for person, _ in kept])
        self.camera = [sequence[:2] for _, sequence in kept]
        self.features = np.concatenate([one.features for one in self.queries])
        self.masks = np.concatenate([one.masks for one in self.queries])
        self.fingerprint = rows.fingerprint

    def __len__(self) -> int:
        return len(self.person)

    def statistics(self, chosen: NDArray[np.int64]) -> CameraStatistics:
        """Of a gallery that holds these tracks."""
        made = CameraStatistics(fingerprint=self.fingerprint, dimension=self.features.shape[1])
        made.add(self.features[chosen], [self.camera[i] for i in chosen])
        return made

    def strangers(self, chosen: NDArray[np.int64], rng: np.random.Generator, most: int) -> Strangers:
        """Pairs of these tracks at one camera, as if they had been seen together."""
        made = Strangers("masked")
        pairs = [
            (i, j) for i in chosen for j in chosen
            if self.camera[i] == self.camera[j] and self.person[i] != self.person[j]
        ]  # fmt: skip
        for k in rng.permutation(len(pairs))[:most]:
            i, j = pairs[k]
            made.add(self.queries[i], self.camera[i], self.queries[j], self.camera[j])
        return made


def deviations(tracks: Tracks, some: NDArray[np.int64], centred: bool, rng: np.random.Generator) -> dict[str, Any]:
    """Where pairs of tracks lie, in standard deviations of strangers at one camera."""
    statistics = tracks.statistics(some) if centred else None
    mean, spread = tracks.strangers(some, rng, evidence.MOST_PAIRS).mean_and_spread(statistics)
    cameras = [tracks.camera[i] for i in some]
    features = tracks.features[some] if statistics is None else statistics.centre(tracks.features[some], cameras)
    z = (similarity(features, features, query_masks=tracks.masks[some]) - mean) / spread
    same = tracks.person[some][:, None] == tracks.person[some][None]
    across = np.array(cameras)[:, None] != np.array(cameras)[None]
    one, two = z[same & across], z[~same & across]
    return {
        "strangers at one camera: mean, spread": [round(mean, 3), round(spread, 3)],
        "one person at two cameras: mean, spread": [round(float(one.mean()), 2), round(float(one.std()), 2)],
        "two people at two cameras: mean, spread": [round(float(two.mean()), 2), round(float(two.std()), 2)],
        "two people: 90, 99, 99.9 %": [round(float(q), 2) for q in np.quantile(two, (0.9, 0.99, 0.999))],
    }


def sites(tracks: Tracks, some: NDArray[np.int64], centred: bool, rng: np.random.Generator) -> list[Any]:
    """Of each track that is asked for: the candidates' scores, which of them is right, strangers' mean and spread."""
    people = np.array(sorted(set(tracks.person[some])))
    asked = []
    for _ in range(SITES):
        n = int(rng.integers(LEAST_PEOPLE, MOST_PEOPLE + 1))
        drawn = rng.choice(people, min(2 * n, len(people)), replace=False)
        gallery, queries = [], []
        for person in drawn[:n]:
            own = some[tracks.person[some] == person]
            kept = int(rng.choice(own))
            gallery.append(kept)
            elsewhere = [i for i in own if tracks.camera[i] != tracks.camera[kept]]
            queries += [int(rng.choice(elsewhere))] if elsewhere else []
        for person in drawn[n : n + len(queries)]:
            queries.append(int(rng.choice(some[tracks.person[some] == person])))
        rows = np.array(gallery)
        statistics = tracks.statistics(rows) if centred else None
        mean, spread = tracks.strangers(np.array(gallery + queries), rng, PAIRS).mean_and_spread(statistics)
        features = tracks.features if statistics is None else statistics.centre(tracks.features, tracks.camera)
        scores = similarity(features[queries], features[rows], query_masks=tracks.masks[queries])
        for query, row in zip(queries, scores):
            asked.append((row, tracks.person[rows] == tracks.person[query], mean, spread))
    return asked


def log_loss(asked: list[Any], centred: bool) -> float:
    """Mean −log of the probability of what is true, as the odds are set now."""
    loss = []
    for scores, same, mean, spread in asked:
        weight = np.exp(np.minimum(log_odds(scores, mean, spread, centred=centred), 50)) / len(scores)
        true = weight[same][0] if same.any() else 1.0
        loss.append(-math.log(max(float(true / (1 + weight.sum())), 1e-9)))
    return float(np.mean(loss))


def set_odds(centred: bool, odds: tuple[float, float, float]) -> None:
    """Have the application use these."""
    if centred:
        evidence.CENTRED_ODDS = odds  # type: ignore[assignment]
    else:
        evidence.PLAIN_ODDS = odds  # type: ignore[assignment]


def fit(asked: list[Any], centred: bool) -> dict[str, Any]:
    """The odds of the grid with the least log loss, and the losses of the next ones."""
    found = []
    for odds in itertools.product(*GRID):
        set_odds(centred, odds)
        found.append((round(log_loss(asked, centred), 4), odds))
    found.sort()
    return {"least log loss": found[0][0], "mean, spread, freedom": found[0][1], "next": found[1:6]}


def judge(asked: list[Any], centred: bool) -> dict[str, Any]:
    """Log loss, how often a probability is right, and the decisions at some thresholds, as the odds are set now."""
    best, right, second, known = [], [], [], 0
    for scores, same, mean, spread in asked:
        weight = np.exp(np.minimum(log_odds(scores, mean, spread, centred=centred), 50)) / len(scores)
        p = weight / (1 + weight.sum())
        order = np.argsort(-p)
        best.append(p[order[0]])
        second.append(p[order[1]])
        right.append(bool(same[order[0]]))
        known += bool(same.any())
    first, next_, hit = np.array(best), np.array(second), np.array(right)
    reliability = []
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        here = (first >= low) & (first < low + 0.2)
        if here.any():
            reliability.append([round(float(first[here].mean()), 2), round(float(hit[here].mean()), 2)])
    decisions = {}
    for least in PROBABILITIES:
        told = (first >= least) & (first - next_ >= MARGIN)
        decisions[str(least)] = {
            "right of those called known": round(float(hit[told].mean()), 3),
            "known people that are recognised": round(float(hit[told].sum() / known), 3),
        }
    return {
        "log loss": round(log_loss(asked, centred), 3),
        "probability said, share right": reliability,
        "at probability": decisions,
    }


def main() -> None:
    """Embed, measure, test, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("folder", "engine"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    said = parser.parse_args()
    paths = sorted(said.folder.glob("*.jpg"))
    people = set(sorted({path.name[:4] for path in paths})[::PEOPLE_EVERY])
    paths = [path for path in paths if path.name[:4] in people]
    with Engine.load(said.engine, threads=1) as engine:
        rows = embed_files(engine, paths, quiet=True)
    tracks = Tracks(rows, [paths[i].name for i in rows.rows])
    names = sorted(set(tracks.person))
    setting = np.flatnonzero(np.isin(tracks.person, names[::2]))
    testing = np.flatnonzero(np.isin(tracks.person, names[1::2]))
    manifest = Manifest.read(said.engine)
    report: dict[str, Any] = {
        "command": "python benchmarks/identity_odds.py --folder FOLDER --engine ENGINE_DIR",
        "machine": machine_card(),
        "engine": {"model": manifest.spec.name, "backend": manifest.backend, "precision": manifest.precision},
        "pictures": len(rows),
        "tracks": len(tracks),
        "people that set the numbers": len(names[::2]),
        "people that test them": len(names[1::2]),
    }
    for space in ("not centred", "centred"):
        centred = space == "centred"
        shipped = evidence.CENTRED_ODDS if centred else evidence.PLAIN_ODDS
        report[space] = {
            "set by": deviations(tracks, setting, centred, np.random.default_rng(0)),
            "fitted": fit(sites(tracks, setting, centred, np.random.default_rng(1)), centred),
        }
        asked = sites(tracks, testing, centred, np.random.default_rng(2))
        for name, odds in (("as set", shipped), ("as set before", BEFORE)):
            set_odds(centred, odds)
            mean, spread, freedom = odds
            report[space][f"{name}: {mean} ± {spread}, {freedom} degrees of freedom"] = judge(asked, centred)
        set_odds(centred, shipped)
    write_whole(said.out, (json.dumps(report, indent=1) + "\n").encode())
    print(said.out.read_text())


if __name__ == "__main__":
    main()
