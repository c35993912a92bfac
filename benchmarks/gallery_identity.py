"""What prototypes, re-ranking and query expansion add, on the sample people that ship.

    python benchmarks/gallery_identity.py [-o benchmarks/results/gallery-identity.json]

Market-1501's protocol over all queries, under the masked metric: each option alone against the plain ranking of
pictures. A person's prototype is made of the pictures of cameras other than the query's.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from importlib.resources import as_file
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge.demo.engine import open_engine
from dpm_edge.demo.samples import FOLDER, read_samples
from dpm_edge.env import machine_card
from dpm_edge.evaluation import market_scores
from dpm_edge.files import write_whole
from dpm_edge.gallery.identity import expand, prototypes, rerank
from dpm_edge.metrics import similarity
from dpm_edge.runtime.folder import embed_files


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, default=Path(__file__).parent / "results" / "gallery-identity.json")
    out = parser.parse_args().out
    with as_file(FOLDER) as shipped, tempfile.TemporaryDirectory() as work:
        people = read_samples(Path(shipped))
        with open_engine(Path(work), None, quiet=True) as engine:
            q = embed_files(engine, people.query.paths, quiet=True)
            t = embed_files(engine, people.gallery.paths, quiet=True)
    qp, qc = people.query.people[q.rows], people.query.cameras[q.rows]
    tp, tc = people.gallery.people[t.rows], people.gallery.cameras[t.rows]
    s = similarity(q.features, t.features, query_masks=q.masks)
    other = np.where(qc[:, None] != tc[None], s, -np.inf)  # a query expands by what other cameras saw
    best = np.argsort(-other, axis=1, kind="stable")[:, :3]
    moved = expand(q.features, t.features[best], np.maximum(np.take_along_axis(other, best, axis=1), 0))
    among = similarity(t.features, t.features, query_masks=t.masks)
    rankings = {
        "pictures": s,
        "query expansion by 3": similarity(moved, t.features, query_masks=q.masks),
        "k-reciprocal re-ranking, k 4": rerank(s, among, k=4),
        "k-reciprocal re-ranking, k 10": rerank(s, among, k=10),
    }
    result: dict[str, Any] = {name: market_scores(one, qp, qc, tp, tc).as_dict() for name, one in rankings.items()}
    result["prototypes"] = _prototypes(q, t, qp, qc, tp, tc)
    write_whole(out, (json.dumps({"machine": machine_card(), "scores": result}, indent=2) + "\n").encode())
    for name, score in result.items():
        print(f"{name:<32} Rank-1 {score['rank1']:.2f}  mAP {score['mAP']:.2f}  ({score['queries']} queries)")


def _prototypes(q: Any, t: Any, qp: Any, qc: Any, tp: Any, tc: Any) -> dict[str, float]:
    """Rank-1 and mean reciprocal rank (with one right answer, the mean precision) of people, in percent."""
    ranks = []
    for camera in sorted(set(qc)):
        rows = np.flatnonzero((tc != camera) & (tp >= 0))
        made, names = prototypes(t.take(rows), tp[rows], tc[rows])
        here = np.flatnonzero(qc == camera)
        s = similarity(q.features[here], made.features, query_masks=q.masks[here])
        order = np.array(names)[np.argsort(-s, axis=1, kind="stable")]
        for found, person in zip(order, qp[here].astype(str)):
            place = np.flatnonzero(found == person)
            if len(place):
                ranks.append(int(place[0]) + 1)
    ranks_N = np.array(ranks)
    return {
        "rank1": 100 * float((ranks_N == 1).mean()),
        "mAP": 100 * float((1 / ranks_N).mean()),
        "queries": len(ranks),
    }


if __name__ == "__main__":
    main()
