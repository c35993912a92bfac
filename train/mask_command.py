"""`dpm-edge train mask CHECKPOINT --data DIR --out DIR`: teach masks, everything else held still: minutes on a CPU.

Of a model of ours the mask generator is taught (dpm_edge.train.mask). An imported network gets masks and a map of what
is seen (dpm_edge.train.foreign_mask). The scores of before and after, whole and covered, go to OUT/results.json, the
model to OUT/model. The masks of an imported network are left out where they lose.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpm_edge.env import machine_card
from dpm_edge.errors import CheckpointError, DataError, DpmError, SpecError
from dpm_edge.files import write_whole
from dpm_edge.labels import AUTO
from dpm_edge.layouts import LAYOUTS, Dataset, read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import AnyNetwork, ForeignNetwork
from dpm_edge.model.foreign_sight import POOLS
from dpm_edge.train import foreign_mask, mask
from dpm_edge.train.data import Pictures, decode
from dpm_edge.train.evaluate import curves, embed, occlusion_sets, scores, summary
from dpm_edge.train.frozen_body import run_frozen_body
from dpm_edge.train.mask import Lesson
from dpm_edge.train.status import counted

MOST_LOST = 0.5
"""Points of mAP on whole queries that an imported network's masks may cost, where covered ones gain more."""
LEAST_SIGHT = 0.3
"""Least rank correlation of visibility with the true share in sight, over whole and covered queries."""
WORDS = {"whole": "whole", "occluded": "covered"}
"""Part of `summary` that is decided by → what people call it."""
PARTS = tuple(WORDS)


def judge(
    net: AnyNetwork, query: Pictures, gallery: Pictures, sets: dict[tuple[str, float], Pictures]
) -> dict[str, Any]:
    """Scores, curves and their summary; `another's mask` scores whole and covered queries under other queries' masks:
    what it lacks beside `masked` is what a mask says of its own picture."""
    g = embed(net, gallery.pixels)
    asked = {("whole", 0.0): query, **sets}
    q = {
        key: embed(net, pictures.pixels)
        for key, pictures in counted(asked.items(), what="judging: sets of queries", total=len(asked))
    }
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(query)))
    swapped = [
        scores(query, gallery, (feature, mask[order]), g, kinds=("masked",))["masked"]["mAP"]
        for feature, mask in q.values()
    ]
    rows = curves(query, gallery, q, g)
    return {
        "occlusion": rows,
        "summary": summary(rows),
        "another's mask, mAP": {
            "whole": round(float(swapped[0]), 3),
            "occluded": round(float(np.mean(swapped[1:])), 3) if sets else None,
        },
        "spread of a gate over queries": round(float(q["whole", 0.0][1].std(0).mean()), 4),
    }


def losing(after: dict[str, Any]) -> str | None:
    """Why masks are to be left out, by `judge`'s scores of a network with them; None where they are worth having."""
    gains = {part: one["masked_mAP"] - one["plain_mAP"] for part, one in after["summary"].items() if part in PARTS}
    return None if worth(gains) else f"expected masks that find more than the plain metric, got mAP {_said(gains)}"


def worth(gains: dict[str, float]) -> bool:
    """Whether points of mAP gained on PARTS are worth it: covered queries gain, and whole ones lose less than that, and
    no more than MOST_LOST; without covered queries, whole ones lose nothing."""
    if "occluded" not in gains:
        return gains["whole"] >= 0
    return gains["occluded"] > 0 and gains["whole"] > -min(gains["occluded"], MOST_LOST)


def _said(gains: dict[str, float]) -> str:
    """Such as "whole -0.10, covered +1.20 points"."""
    return ", ".join(f"{WORDS[part]} {gain:+.2f}" for part, gain in gains.items()) + " points"


def choose(
    taught: ForeignNetwork, found: dict[str, dict[str, Any]], sight: dict[str, float] | None
) -> tuple[ForeignNetwork | None, str]:
    """What of a taught network to write, and why not all of it; "" where all.

    found: `judge`'s scores "before" and "after". sight: `foreign_mask.judge_map`'s, None where nothing was covered.
    The network as it is; without gates where masks lose (`losing`); None where its map says next to nothing
    (LEAST_SIGHT), or where, pooled otherwise, what would be written finds less than there was before: under the masked
    metric, without gates under the plain one.
    """
    if sight is not None and not sight["rank correlation"] >= LEAST_SIGHT:
        return None, (
            f"expected a map whose visibility follows the share in sight (a rank correlation of {LEAST_SIGHT} or more),"
            f" got {sight['rank correlation']:.2f}. Give more pictures, or pictures that show one person each"
        )
    before, after = (found[when]["summary"] for when in ("before", "after"))
    reason = losing(found["after"])
    metric = "plain" if reason else "masked"
    gains = {part: after[part][f"{metric}_mAP"] - before[part]["plain_mAP"] for part in PARTS if part in after}
    if foreign_mask.sight_of(taught).pools and not worth(gains):
        return None, f"expected --pool to find more, got {metric} mAP {_said(gains)}. Leave it out"
    return (foreign_mask.without_gates(taught), reason) if reason else (taught, "")


def parser() -> argparse.ArgumentParser:
    """Make the command's parser."""
    made = argparse.ArgumentParser(
        prog="dpm-edge train mask", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("checkpoint", type=Path)
    made.add_argument("--data", type=Path, required=True)
    made.add_argument("--layout", choices=[AUTO, *sorted(LAYOUTS)], default=AUTO)
    made.add_argument("--out", type=Path, required=True, help="directory for the checkpoint and results.json")
    made.add_argument("--shares", default="0.2,0.4,0.6", help="covered shares to compare at; empty: none")
    made.add_argument(
        "--pool", choices=POOLS, default=POOLS[0], help="of an imported network's feature map; see docs/integrations.md"
    )
    for name, value in vars(Lesson()).items():
        made.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Teach, compare, write. Returns the exit code."""
    options = parser().parse_args(arguments)
    try:
        return run(options)
    except (DpmError, ValueError) as error:
        print(f"dpm-edge train mask: {error}", file=sys.stderr)
        return 1


def run(options: argparse.Namespace) -> int:
    """As `main`.

    Raises:
        DpmError, ValueError: nothing was written, and why.
    """
    lesson = Lesson(**{name: getattr(options, name) for name in vars(Lesson())})
    shares = tuple(float(share) for share in options.shares.split(",") if share)
    net = checkpoint.load_any(options.checkpoint)
    if net.spec.cameras:
        raise CheckpointError(f"expected a checkpoint without camera embedding, got {options.checkpoint} with one")
    people, pre = read_dataset(options.data, options.layout, train=True), net.spec.preprocessing
    if people.train is None:
        raise DataError(
            f"expected a data set with a training part, got {options.data} of layout {people.layout!r} with none"
        )
    train, query, gallery = (decode(part, pre) for part in (people.train, people.query, people.gallery))
    if isinstance(net, ForeignNetwork):
        return _foreign(net, people, (train, query, gallery), lesson, shares, options)
    if options.pool != POOLS[0]:
        raise SpecError(
            f"expected --pool with an imported network, got {options.checkpoint}, one of ours. Leave it out"
        )
    taught = mask.teach(net, train, lesson)
    options.out.mkdir(parents=True, exist_ok=True)
    _save(taught, net, lesson, options.out)
    sets = _covered(query, train, shares, options.out)
    found = {"before": judge(net, query, gallery, sets), "after": judge(taught, query, gallery, sets)}
    _report(options.out, net, lesson, train, found, {})
    return 0


def _foreign(
    net: ForeignNetwork,
    people: Dataset,
    parts: tuple[Pictures, Pictures, Pictures],
    lesson: Lesson,
    shares: tuple[float, ...],
    options: argparse.Namespace,
) -> int:
    """As `run`, for an imported network: nothing is written of it before it was judged."""
    train, query, gallery = parts
    assert people.train is not None, "checked"
    plain = foreign_mask.plain(net)
    maps = foreign_mask.teacher_maps(people.train, train.names)
    taught = foreign_mask.teach(plain, train, maps, lesson, pool=options.pool)
    options.out.mkdir(parents=True, exist_ok=True)
    sets = _covered(query, train, shares, options.out)
    for each in (plain, taught):
        run_frozen_body(each)
    found = {"before": judge(plain, query, gallery, sets), "after": judge(taught, query, gallery, sets)}
    sight = None
    if sets:
        sight = foreign_mask.judge_map(taught, query, sets, foreign_mask.teacher_maps(people.query, query.names))
    kept, reason = choose(taught, found, sight)
    written = "nothing" if kept is None else "map" if reason else "masks and map"
    if kept is not None:
        _save(kept, net, lesson, options.out)
    more = {"pool": options.pool, "visibility": sight, "written": written, "refused": reason}
    _report(options.out, net, lesson, train, found, more)
    if sight is not None:
        print(f"visibility: rank correlation {sight['rank correlation']:.2f} with the share in sight")
    if not reason:
        return 0
    left = "Nothing was written" if kept is None else f"{options.out / 'model'} has the map, and masks of ones"
    print(f"dpm-edge train mask: {reason}. {left}", file=sys.stderr)
    return 1


def _covered(
    query: Pictures, train: Pictures, shares: tuple[float, ...], out: Path
) -> dict[tuple[str, float], Pictures]:
    """The covered queries, by kind and share; kept in `out`."""
    return occlusion_sets(query, train, shares, out / "covered.safetensors") if shares else {}


def _recipe(net: AnyNetwork, lesson: Lesson) -> str:
    return f"{net.spec.weights.recipe}, then train mask (seed {lesson.seed})"


def _save(taught: AnyNetwork, net: AnyNetwork, lesson: Lesson, out: Path) -> None:
    """Write the checkpoint; its card says what it comes from."""
    taught.spec = replace(taught.spec, weights=replace(net.spec.weights, recipe=_recipe(net, lesson)))
    checkpoint.save(taught, out / "model")


def _report(
    out: Path, net: AnyNetwork, lesson: Lesson, train: Pictures, found: dict[str, Any], more: dict[str, Any]
) -> None:
    """Write results.json, and print the means."""
    held = {
        "recipe": _recipe(net, lesson),
        "lesson": vars(lesson),
        "taught on": {"people": int(train.labels().max()) + 1, "pictures": len(train)},
        **found,
        **more,
        "machine": machine_card(),
    }
    write_whole(out / "results.json", (json.dumps(held, indent=1) + "\n").encode())
    for when, scored in found.items():
        for part in PARTS:
            if part in scored["summary"]:
                mean = scored["summary"][part]
                print(f"{when}, {part}: mAP plain {mean['plain_mAP']:.2f} masked {mean['masked_mAP']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
