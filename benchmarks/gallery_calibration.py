"""How well a calibration's probabilities and thresholds hold on people that it has not seen.

    python benchmarks/gallery_calibration.py                               the sample people that ship
    python benchmarks/gallery_calibration.py --data FOLDER --name NAME -o FILE [--engine ENGINE]

The people are cut into halves, by turns of their numbers: one calibrates, the other is judged, and the other way round.
Pairs: Brier score and expected calibration error (ten bins of probability, weighted by pairs) with both kinds of pairs
weighted alike, beside those of one logistic curve without bands, and of always saying 0.5. Thresholds: the false-match
rate that strangers then have. Firsts: the first row of each query, with prior 0.5 and with the share of true pairs.
The plot FILE.png shows frequency against probability.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from labelled_people import arguments, embedded
from numpy.typing import NDArray

from dpm_edge import Embeddings
from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.gallery.calibration import calibrate
from dpm_edge.market import LabelledFolder
from dpm_edge.metrics import similarity

BINS, FMR, BANDS = 10, 1e-2, 3


def pairs(q: Embeddings, t: Embeddings, query: LabelledFolder, gallery: LabelledFolder, half: int) -> dict[str, Any]:
    """Similarities (Q, N) of the queries and rows of one half of the people, and which pairs count and are true."""
    qp, tp = query.people[q.rows], gallery.people[t.rows]
    people = sorted(set(qp.tolist()) | set(tp[tp > 0].tolist()))
    chosen = people[half::2]
    qi, ti = np.flatnonzero(np.isin(qp, chosen)), np.flatnonzero(np.isin(tp, chosen))
    s = similarity(q.features[qi], t.features[ti], query_masks=q.masks[qi])
    other = query.cameras[q.rows][qi][:, None] != gallery.cameras[t.rows][ti][None]
    seen = np.broadcast_to(q.visibility[qi][:, None], s.shape)
    return {"s": s, "counted": other, "same": qp[qi][:, None] == tp[ti][None], "visibility": seen}


def reliability(p: NDArray, same: NDArray, weight: NDArray) -> dict[str, Any]:
    """Brier score, expected calibration error, and the bins of the plot."""
    weight = weight / weight.sum()
    at = np.minimum((p * BINS).astype(int), BINS - 1)
    bins = []
    for number in range(BINS):
        here = at == number
        if weight[here].sum() > 0:
            w = weight[here] / weight[here].sum()
            bins.append([float(w @ p[here]), float(w @ same[here]), float(weight[here].sum())])
    ece = sum(share * abs(said - found) for said, found, share in bins)
    return {
        "brier": round(float(weight @ (p - same) ** 2), 4),
        "ece": round(float(ece), 4),
        "bins (said, found, share)": [[round(x, 4) for x in one] for one in bins],
    }


def judge(learn: dict[str, Any], test: dict[str, Any], fingerprint: str) -> dict[str, Any]:
    """One half calibrates, the other is judged."""

    def flat(half: dict[str, Any]) -> tuple[NDArray, NDArray, NDArray]:
        return half["s"][half["counted"]], half["same"][half["counted"]], half["visibility"][half["counted"]]

    made = {n: calibrate(*flat(learn), fingerprint=fingerprint, false_match_rate=FMR, bands=n) for n in (1, BANDS)}
    s, same, seen = flat(test)
    alike = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    decided = made[BANDS].decide(s, seen)
    first = np.where(test["counted"], test["s"], -np.inf).argmax(1)
    rows = np.arange(len(first))
    top = test["s"][rows, first], test["visibility"][rows, first], test["same"][rows, first]
    prior = float(learn["same"][learn["counted"]].mean())
    even = np.full(len(first), 1.0)
    return {
        "pairs": len(s),
        "true pairs": int(same.sum()),
        "by bands": reliability(made[BANDS].probability(s, seen), same, alike),
        "one curve": reliability(made[1].probability(s, seen), same, alike),
        "always 0.5": reliability(np.full(len(s), 0.5), same, alike),
        "false-match rate": {"wanted": FMR, "had": round(float((decided[~same] == "same").mean()), 5)},
        "true-match rate": round(float((decided[same] == "same").mean()), 4),
        "first rows, prior 0.5": reliability(made[BANDS].probability(top[0], top[1]), top[2], even),
        "first rows, prior of pairs": reliability(made[BANDS].probability(top[0], top[1], prior=prior), top[2], even),
        "prior of pairs": round(prior, 5),
    }


def plot(halves: list[dict[str, Any]], path: Path) -> None:
    """Frequency against probability, of both halves."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    kinds = (("by bands", "one curve"), ("first rows, prior 0.5", "first rows, prior of pairs"))
    for ax, names in zip(figure.subplots(1, 2), kinds):
        ax.plot([0, 1], [0, 1], color="black", lw=0.7)
        for name, colour in zip(names, ("#2b6cb0", "#b0413e")):
            for number, half in enumerate(halves):
                bins = np.array(half[name]["bins (said, found, share)"])
                label = name if number == 0 else None
                ax.plot(bins[:, 0], bins[:, 1], "o-" if number == 0 else "s--", color=colour, label=label, ms=4)
        ax.set_xlabel("probability that was said")
        ax.set_ylabel("share that was one person")
        ax.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, print, write and draw."""
    options = arguments(__doc__, "gallery-calibration.json")
    q, t, query, gallery = embedded(options.data, options.engine)
    halves = [pairs(q, t, query, gallery, half) for half in (0, 1)]
    judged = [judge(halves[i], halves[1 - i], q.fingerprint) for i in (0, 1)]
    result = {"machine": machine_card(), "data": options.name, "bands": BANDS, "halves": judged}
    write_whole(options.out, (json.dumps(result, indent=2) + "\n").encode())
    plot(judged, options.out.with_suffix(".png"))
    for one in judged:
        for name, value in one.items():
            short = {k: v for k, v in value.items() if "bins" not in k} if isinstance(value, dict) else value
            print(f"{name:<28} {short}")


if __name__ == "__main__":
    main()
