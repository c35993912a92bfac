"""Plot mAP and Rank-1 against the covered share, plain beside masked metric, one column per kind of occluder.

    python benchmarks/training/curves.py RESULTS.json … --out curves.png

RESULTS.json: results.json of a run or of `train mask`, ablation.json, scores.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from dpm_edge.errors import DataError, DpmError, MissingLibrary

SCORES = ("mAP", "rank1")
STYLES = {"plain": "--", "masked": "-"}
Curve = dict[tuple[str, str], dict[float, list[float]]]
"""(kind, metric) → covered share → one value per seed."""


def read_curves(path: Path) -> dict[str, dict[str, Curve]]:
    """Of a results file: line name → score → curve. Raises DataError where it holds no curves."""
    if not path.is_file():
        raise DataError(f"expected a results.json or an ablation.json, got no {path}")
    held = json.loads(path.read_text())
    row = f"{held.get('recipe')}"
    sets = [{**scores, "row": f"{row} on {name}"} for name, scores in held.get("sets", {}).items()]
    sets += [{**held[when], "row": f"{when} `train mask`"} for when in ("before", "after") if when in held]
    runs = held.get("runs") or sets or [{**held, "row": row}]
    found: dict[str, dict[str, Curve]] = {}
    for run in runs:
        if not run.get("occlusion"):
            raise DataError(f"expected occlusion curves in {path}, got none. Train with evaluate.occlusion=true")
        whole = [r for r in run["occlusion"] if r["kind"] == "whole"]
        kinds = sorted({r["kind"] for r in run["occlusion"]} - {"whole"})
        rows = [r for r in run["occlusion"] if r["kind"] != "whole"] + [{**r, "kind": k} for r in whole for k in kinds]
        for row in rows:
            for score in SCORES:
                curve = found.setdefault(run["row"], {s: {} for s in SCORES})[score]
                curve.setdefault((row["kind"], row["metric"]), {}).setdefault(row["share"], []).append(row[score])
    return found


def plot(lines: dict[str, dict[str, Curve]], out: Path) -> None:
    """Write the picture: a row per score, a column per kind; mean over seeds, a band of one standard deviation."""
    try:
        import matplotlib
    except ImportError as error:
        raise MissingLibrary("matplotlib", "plotting", "pip install 'dpm-edge[train]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = sorted({kind for scores in lines.values() for kind, _ in scores["mAP"]})
    figure, axes = pyplot.subplots(2, len(kinds), figsize=(4 * len(kinds), 7), sharex=True, squeeze=False)
    for score, line_of_axes in zip(SCORES, axes):
        for kind, axis in zip(kinds, line_of_axes):
            for number, (name, scores) in enumerate(lines.items()):
                for metric, style in STYLES.items():
                    _draw(axis, scores[score].get((kind, metric), {}), f"{name}, {metric}", style, f"C{number}")
            axis.set(title=f"{kind}", ylabel="Rank-1, %" if score == "rank1" else "mAP, %", xlabel="covered share")
            axis.grid(alpha=0.3)
    lines_drawn, names = axes[0][0].get_legend_handles_labels()
    figure.tight_layout()
    figure.legend(lines_drawn, names, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=4, fontsize=8)
    figure.savefig(out, dpi=110, bbox_inches="tight")
    pyplot.close(figure)


def _draw(axis: Any, curve: dict[float, list[float]], label: str, style: str, colour: str) -> None:
    shares = sorted(curve)
    mean = np.array([np.mean(curve[s]) for s in shares])
    spread = np.array([np.std(curve[s]) for s in shares])
    axis.plot(shares, mean, style, color=colour, label=label)
    axis.fill_between(shares, mean - spread, mean + spread, color=colour, alpha=0.12)


def main(arguments: list[str] | None = None) -> int:
    """Read, plot. Returns the exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("results", nargs="+", type=Path)
    made.add_argument("--rows", default="", help="only these rows, ; between")
    made.add_argument("--out", type=Path, default=Path("curves.png"))
    options = made.parse_args(arguments)
    try:
        lines: dict[str, dict[str, Curve]] = {}
        for path in options.results:
            lines.update(read_curves(path))
        chosen = [r.strip() for r in options.rows.split(";") if r.strip()]
        plot({name: line for name, line in lines.items() if not chosen or name in chosen}, options.out)
    except DpmError as error:
        print(f"curves: {error}", file=sys.stderr)
        return 1
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
