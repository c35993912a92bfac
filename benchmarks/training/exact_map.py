"""How much a better visibility map could bring: covered queries under the network's own map and under the exact one.

    python benchmarks/training/exact_map.py CHECKPOINT --data VALIDATION --covered covered.safetensors --out OUT

VALIDATION has Market-1501's layout: query/ against bounding_box_test/. Queries are covered by 40 % with the three
held-out kinds. The exact map of a covered query is what the network sees of the same query uncovered, less what was
covered: it is given to the network in place of its own, before pooling and the blocks. Nothing else changes. Of each
map three metrics: plain; the network's masks; and stripes, a mask that opens each stripe's dimensions by the root of
how much of it is seen, beside what the gallery shows there in the mean (a diagonal mask as good as the map).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.layouts import read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.model.visibility import SEEN
from dpm_edge.progress import say
from dpm_edge.train.data import Pictures, decode, to_input
from dpm_edge.train.evaluate import curves, occlusion_sets

SHARE, BATCH, LEAST = 0.4, 64, 1e-4


class GivenMap(nn.Module):
    """Stands in for the visibility head: gives the logits (B, 2, h, w) that `logits` holds."""

    logits: Tensor

    def forward(self, grid: Tensor) -> Tensor:
        return self.logits


@torch.inference_mode()
def seen_by(net: DPM, pictures: Pictures, maps: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Features (n, d), masks (n, d) and maps (n, 2, h, w) in 0..1; under `maps` in place of the network's own."""
    own, given = net.backbone.visibility, GivenMap()
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for at, part in enumerate(pictures.pixels.split(BATCH)):
        if maps is not None:
            given.logits = torch.logit(maps[at * BATCH : (at + 1) * BATCH].clamp(LEAST, 1 - LEAST))
            net.backbone.visibility = given  # type: ignore[assignment]
        found.append(net(to_input(part, net.spec.preprocessing)))
    net.backbone.visibility = own
    features, masks, seen = (torch.cat(parts) for parts in zip(*found))
    return features, masks, seen


def exact(clean: Tensor, whole: Tensor, covered: Tensor) -> Tensor:
    """The map of covered queries: maps (n, 2, h, w) of the uncovered ones, both pictures (n, 3, H, W) uint8."""
    changed = (whole.int() != covered.int()).any(1, keepdim=True).float()
    hidden = F.adaptive_avg_pool2d(changed, clean.shape[2:])[:, 0]
    return torch.stack([clean[:, SEEN] * (1 - hidden), clean.sum(1).clamp(max=1) * hidden], 1)


def by_stripes(maps: Tensor, usual: Tensor, stripes: int, width: int) -> Tensor:
    """Masks (n, width): each stripe's dimensions open by the root of what is seen of it, beside `usual` (stripes,)."""
    return (per_stripe(maps, stripes) / usual).clamp(0, 1).sqrt().repeat_interleave(width // stripes, 1)


def per_stripe(maps: Tensor, stripes: int) -> Tensor:
    """(n, 2, h, w) → (n, stripes): patches of the person that are seen."""
    return maps[:, SEEN].unflatten(1, (stripes, -1)).sum((2, 3))


def main() -> int:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="Covered queries under the network's own map and the exact one.")
    parser.add_argument("checkpoint")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--covered", type=Path, required=True, help="keeps the covered queries")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    net = checkpoint.load(options.checkpoint).eval()
    people = read_dataset(options.data, "market", train=False)
    query, gallery = (decode(p, net.spec.preprocessing, workers=1, quiet=True) for p in (people.query, people.gallery))
    sets = occlusion_sets(query, query, (SHARE,), options.covered, workers=1)
    target, target_masks, target_maps = seen_by(net, gallery)
    usual = per_stripe(target_maps, net.spec.stripes).mean(0)
    plain, masks, clean = seen_by(net, query)
    asked = {"own": {("whole", 0.0): (plain, masks, clean)}, "exact": {("whole", 0.0): (plain, masks, clean)}}
    for key, one in sets.items():
        say(f"{key[0]}: {len(one.pixels)} queries")
        asked["own"][key] = seen_by(net, one)
        asked["exact"][key] = seen_by(net, one, exact(clean, query.pixels, one.pixels))
    rows = []
    for name, parts in asked.items():
        for what in ("masks", "stripes"):
            sides = {}
            for key, (feature, mask, seen) in parts.items():
                gates = by_stripes(seen, usual, net.spec.stripes, net.spec.width) if what == "stripes" else mask
                sides[key] = (feature, gates)
            for row in curves(query, gallery, sides, (target, target_masks)):
                metric = row["metric"] if row["metric"] == "plain" else what
                if metric != "plain" or what == "masks":
                    rows.append({"map": name, **row, "metric": metric})
    told = {"checkpoint": options.checkpoint, "queries": len(query), "rows": len(gallery), "share": SHARE,
            "scores": rows, "machine": machine_card()}  # fmt: skip
    write_whole(options.out, (json.dumps(told, indent=1) + "\n").encode())
    for row in rows:
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
