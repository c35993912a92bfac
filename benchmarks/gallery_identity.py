"""What query expansion, re-ranking and people's prototypes add, by the options of `Gallery.search`.

    python benchmarks/gallery_identity.py                                  the sample people that ship
    python benchmarks/gallery_identity.py --data FOLDER --name NAME -o FILE [--engine ENGINE]

FOLDER has Market-1501's layout; ENGINE is an engine directory or a checkpoint, the model that ships without. All
queries, under the masked metric, rows of the query's own camera never found: each option alone against the plain
ranking of pictures. mAP counts the first 100 places; among people, who have one right answer, it is the mean of
1 / place.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from labelled_people import arguments, embedded
from numpy.typing import NDArray

from dpm_edge import Embeddings, Gallery, Matches
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.market import LabelledFolder

PLACES = 100
OPTIONS: dict[str, dict[str, Any]] = {
    "pictures": {},
    "expand=1": {"expand": 1},
    "expand=3": {"expand": 3},
    "expand=5": {"expand": 5},
    "neighbours=4": {"neighbours": 4},
    "neighbours=10": {"neighbours": 10},
    "neighbours=20": {"neighbours": 20},
    "by=person": {"by": "person"},
    "by=person, cap=1": {"by": "person", "cap": 1},
    "by=person, cap=2": {"by": "person", "cap": 2},
}


def precisions(found: Matches, people: NDArray[np.str_], right: list[int]) -> tuple[NDArray, NDArray]:
    """Rank-1 (0 or 1) and average precision of each query; `right` counts the true matches that are to be found."""
    first, average = np.zeros(len(found)), np.zeros(len(found))
    for i, person in enumerate(people):
        hits = np.flatnonzero(found.people[i] == person)
        first[i] = bool(len(hits)) and hits[0] == 0
        average[i] = ((np.arange(len(hits)) + 1) / (hits + 1)).sum() / right[i]
    return first, average


def measure(q: Embeddings, t: Embeddings, query: LabelledFolder, gallery: LabelledFolder) -> dict[str, Any]:
    """Scores of every option, in percent."""
    qp, qc = query.people[q.rows].astype(str), query.cameras[q.rows].astype(str)
    keep = gallery.people[t.rows] >= 0  # below 0 is junk
    t, names = t.take(keep), gallery.people[t.rows][keep]
    tp, tc = np.where(names > 0, names.astype(str), ""), gallery.cameras[t.rows].astype(str)
    there = np.array([((tp == person) & (tc != camera)).sum() for person, camera in zip(qp, qc)])
    q, qp, qc, there = q.take(there > 0), qp[there > 0], qc[there > 0], there[there > 0]
    held = Gallery(t.fingerprint, t.dimension)
    held.add(t, people=tp.tolist(), cameras=tc.tolist())
    scores: dict[str, Any] = {}
    plain: NDArray | None = None
    for name, option in OPTIONS.items():
        by_person = option.get("by") == "person"
        parts = []
        for start in range(0, len(q), 100):
            some = slice(start, start + 100)
            found = held.search(
                q.take(some), PLACES, exclude_same_camera=True, query_cameras=qc[some].tolist(), centre=False, **option
            )
            right = [1] * len(found) if by_person else there[some].tolist()
            parts.append(precisions(found, qp[some], right))
        first, average = (np.concatenate(one) for one in zip(*parts))
        plain = average if plain is None else plain
        scores[name] = {"rank1": round(100 * float(first.mean()), 2), "mAP": round(100 * float(average.mean()), 2)}
        if not by_person and option:  # a person's mAP has one right answer each: not the pictures' scale
            scores[name]["queries that gain, lose"] = [int((average > plain).sum()), int((average < plain).sum())]
    return {"queries": len(q), "rows": len(t), "people": len(set(tp)), "scores": scores}


def main() -> None:
    """Measure, print and write."""
    options = arguments(__doc__, "gallery-identity.json")
    q, t, query, gallery = embedded(options.data, options.engine)
    result = {"machine": machine_card(), "data": options.name, **measure(q, t, query, gallery)}
    write_whole(options.out, (json.dumps(result, indent=2) + "\n").encode())
    for name, score in result["scores"].items():
        print(f"{name:<20} Rank-1 {score['rank1']:.2f}  mAP {score['mAP']:.2f}")


if __name__ == "__main__":
    main()
