"""Score a checkpoint on a data set: whole and covered queries, both metrics, beside a colour histogram.

python benchmarks/training/scores.py CHECKPOINT --data DIR … [--layout LAYOUT] [--shares 0.2,0.4] --out scores.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from histogram import histogram_scores

from dpm_edge.env import machine_card
from dpm_edge.errors import DpmError
from dpm_edge.files import write_whole
from dpm_edge.labels import AUTO
from dpm_edge.layouts import LAYOUTS, read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.spec import NECKS
from dpm_edge.train.data import decode
from dpm_edge.train.evaluate import embed_sides, occlusion_curves, occlusion_sets, scores, spread, summary


def score(net: DPM, layout: str, data: Path, shares: tuple[float, ...] = ()) -> dict[str, Any]:
    """Scores of net on the data set, in percent; covered queries for the shares, if any."""
    people, pre = read_dataset(data, layout, train=bool(shares)), net.spec.preprocessing
    query, gallery = decode(people.query, pre), decode(people.gallery, pre)
    q, g = embed_sides(net, query.pixels), embed_sides(net, gallery.pixels)
    found: dict[str, Any] = {
        f"{side} neck": scores(query, gallery, (q[0][side], q[1]), (g[0][side], g[1])) for side in NECKS
    }
    found["spread"] = round(spread(net, gallery.pixels), 4)
    found["histogram"] = histogram_scores(query, gallery)
    found["pictures"] = {"query": len(query), "gallery": len(gallery)}
    if shares and people.train is not None:
        bodies = decode(people.train, pre)
        found["occlusion"] = occlusion_curves(net, query, gallery, occlusion_sets(query, bodies, shares))[net.spec.neck]
        found["summary"] = summary(found["occlusion"])
    return found


def main(arguments: list[str] | None = None) -> int:
    """Score, write, print. Returns the exit code."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("checkpoint", type=Path)
    made.add_argument("--data", type=Path, nargs="+", required=True, help="one or several, all of --layout")
    made.add_argument("--layout", choices=[AUTO, *sorted(LAYOUTS)], default=AUTO)
    made.add_argument("--shares", default="", help="covered shares, with commas between")
    made.add_argument("--out", type=Path, help="write JSON here")
    options = made.parse_args(arguments)
    try:
        net = checkpoint.load(options.checkpoint)
        shares = tuple(float(s) for s in options.shares.split(",") if s)
        sets = {folder.name: score(net, options.layout, folder, shares) for folder in options.data}
    except (DpmError, ValueError) as error:
        print(f"scores: {error}", file=sys.stderr)
        return 1
    found = {"recipe": net.spec.weights.recipe, "sets": sets, "model": net.spec.to_dict(), "machine": machine_card()}
    if options.out:
        write_whole(options.out, (json.dumps(found, indent=1) + "\n").encode())
    for name, held in sets.items():
        for side in ("before neck", "after neck"):
            for metric, scored in held[side].items():
                print(f"{name}, {side}, {metric}: Rank-1 {scored['rank1']:.1f}  mAP {scored['mAP']:.1f}")
        print(f"{name}, colour histogram: Rank-1 {held['histogram']['rank1']:.1f}  mAP {held['histogram']['mAP']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
