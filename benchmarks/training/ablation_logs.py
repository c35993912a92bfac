"""The table of an ablation that was cut off, from the logs of its runs.

    python benchmarks/training/ablation_logs.py DIR --out FILE.json [--planned 16] [--recipe market_tiny]
                                           [--device NAME --torch VERSION --date DAY]

Rows are compared at the last epoch that all of them reached. The logs hold scores of whole queries alone: covered
queries are scored at the end of a run. They do not say where they were made either: give --device, --torch and --date.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from ablation_plan import ROWS, job_folder

from dpm_edge.errors import DataError, DpmError
from dpm_edge.files import write_whole
from dpm_edge.train.evaluate import BOTH

SCORES = ("mAP", "rank1")
Evaluations = dict[int, dict[str, Any]]
"""Epoch → one evaluation of a run's log."""


def read_runs(folder: Path) -> dict[tuple[str, int], Evaluations]:
    """(row, seed) → its evaluations. Raises DataError where the folder holds no evaluated run of a known row."""
    found: dict[tuple[str, int], Evaluations] = {}
    for row in ROWS:
        prefix = job_folder(folder, row, 0).name.removesuffix("0")
        for log in sorted(folder.glob(f"{prefix}*/log.jsonl")):
            seed = log.parent.name.removeprefix(prefix)
            if seed.isdigit():
                found[row, int(seed)] = _evaluations(log)
    unread = [f"{row}, seed {seed}" for (row, seed), held in found.items() if not held]
    if not found or unread:
        what = f"no evaluation yet of {'; '.join(unread)}" if unread else "no ROW-seedN/log.jsonl of an ablation's rows"
        raise DataError(f"expected the folder that ablation.py --out was given, got {folder}: {what}")
    return found


def _evaluations(log: Path) -> Evaluations:
    found = {}
    lines = log.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            if number == len(lines):  # a run that is killed may leave its last line half written
                break
            raise DataError(f"{log}, line {number}, is not JSON: {error}") from error
        if entry["kind"] == "evaluation":
            found[int(entry["epoch"])] = entry
    return found


def collect(runs: dict[tuple[str, int], Evaluations], planned: int) -> dict[str, Any]:
    """The table at the last epoch that all runs reached: mean over seeds, and spread (standard deviation, n - 1).

    Raises DataError where the runs share no evaluated epoch, or reached one past `planned`.
    """
    shared = set.intersection(*(set(held) for held in runs.values()))
    if not shared or max(max(held) for held in runs.values()) > planned:
        epochs = "; ".join(f"{row}, seed {seed}: {sorted(held)}" for (row, seed), held in runs.items())
        raise DataError(f"expected one epoch of at most {planned} that all runs evaluated, got {epochs}")
    epoch = max(shared)
    by_row: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for (row, _), held in runs.items():
        by_row[row].append(held[epoch])
    table = []
    for row, evaluations in by_row.items():
        line: dict[str, Any] = {"row": row, "seeds": len(evaluations), "epoch": epoch}
        for metric in BOTH:
            for score in SCORES:
                values = [entry[metric][score] for entry in evaluations]
                line[f"{metric}_{score}"] = round(float(np.mean(values)), 2)
                if len(values) > 1:
                    line[f"{metric}_{score}_spread"] = round(float(np.std(values, ddof=1)), 2)
        table.append(line)
    cut = f"cut off: epoch {epoch} of {planned}, whole queries only"
    return {
        "state": cut if epoch < planned else f"epoch {epoch} of {planned}, whole queries only",
        "table": table,
        "runs": [
            {
                "row": row,
                "seed": seed,
                "history": [
                    {"epoch": e, **{m: {s: held[e][m][s] for s in SCORES} for m in BOTH}} for e in sorted(held)
                ],
            }
            for (row, seed), held in runs.items()
        ],
        "rows": {row: ROWS[row] for row in by_row},
    }


def main(arguments: list[str] | None = None) -> int:
    """Read, write, print the table. Returns the exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("folder", type=Path, metavar="DIR", help="where the ablation ran")
    made.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    made.add_argument("--planned", type=int, default=16, help="epochs that were planned for every row")
    made.add_argument("--recipe", default="market_tiny")
    for name in ("device", "torch", "date"):
        made.add_argument(f"--{name}", default="not recorded", help="of the runs: their logs do not say")
    options = made.parse_args(arguments)
    try:
        found = collect(read_runs(options.folder), options.planned)
        found["recipe"] = options.recipe
        found["machine"] = {name: getattr(options, name) for name in ("device", "torch", "date")}
        write_whole(options.out, (json.dumps(found, indent=1) + "\n").encode())
    except (DpmError, OSError) as error:
        print(f"ablation_left: {error}", file=sys.stderr)
        return 1
    print(found["state"])
    for line in found["table"]:
        scores = "  ".join(
            f"{m} mAP {line[f'{m}_mAP']:.1f} ± {line.get(f'{m}_mAP_spread', float('nan')):.1f}"
            if line["seeds"] > 1
            else f"{m} mAP {line[f'{m}_mAP']:.1f}"
            for m in BOTH
        )
        print(f"{line['row']:24} {line['seeds']} seeds  {scores}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
