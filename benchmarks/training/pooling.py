"""What pooling alone is worth: a stem's features pooled whole, over the map, and in stripes.

    python benchmarks/training/pooling.py CHECKPOINT --data market --covered covered.safetensors --out OUT [--stem FILE]

CHECKPOINT gives the map of what is seen and its stem; with --stem the features come from EfficientNet-Lite0's ImageNet
weights instead, and CHECKPOINT gives the map alone. Features (112 a stripe) are centred by the gallery's mean and
compared by their cosine. Queries, gallery and covers are those of benchmarks/training/ladder.py.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from ladder import BATCH, SHARES, SIZE
from torch import Tensor, nn

from dpm_edge.env import machine_card
from dpm_edge.files import write_whole
from dpm_edge.layouts import read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.model.stem import STAGES, ConvStem, load_lite0
from dpm_edge.train.data import Pictures, decode, to_input
from dpm_edge.train.evaluate import curves, occlusion_sets

FLOOR = 0.25
"""Patches that a stripe's mean counts beside those that are seen."""


class Features(nn.Module):
    """Images (B, 3, H, W) → the stem's last channels (B, 112, h, w) and the seen shares (B, h, w)."""

    def __init__(self, net: DPM, stem: ConvStem | None) -> None:
        super().__init__()
        self.net, self.stem = net, stem

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        own, head = self.net.backbone.conv1, self.net.backbone.visibility
        assert isinstance(own, ConvStem) and head is not None, "a network with a stem and a map"
        tuned = own._stages(images, 0, len(STAGES))
        seen = torch.sigmoid(head(own.tokens(tuned)))[:, 0]
        return (tuned if self.stem is None else self.stem._stages(images, 0, len(STAGES))), seen


@torch.inference_mode()
def grids(features: Features, pictures: Pictures) -> tuple[Tensor, Tensor]:
    """Of all pictures, (n, 112, h, w) and (n, h, w)."""
    pre, found = features.net.spec.preprocessing, []
    for part in pictures.pixels.split(BATCH):
        images = part.permute(0, 2, 3, 1).numpy()
        small = np.stack([cv2.resize(one, (pre.width, pre.height)) for one in images])
        found.append(features(to_input(torch.from_numpy(small).permute(0, 3, 1, 2), pre)))
    return torch.cat([f for f, _ in found]), torch.cat([s for _, s in found])


def pooled(grid: Tensor, seen: Tensor, stripes: int, by_map: bool) -> Tensor:
    """(n, c, h, w) and (n, h, w) → (n, stripes · c): the mean of each stripe, over what is seen or over all of it."""
    weights = seen if by_map else torch.ones_like(seen)
    parts = grid.unflatten(2, (stripes, -1)) * weights.unsqueeze(1).unflatten(2, (stripes, -1))
    total = weights.unflatten(1, (stripes, -1)).sum((2, 3))
    return (parts.sum((3, 4)) / (total + FLOOR).unsqueeze(1)).transpose(1, 2).flatten(1)


def main() -> int:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description="What pooling alone is worth.")
    parser.add_argument("checkpoint")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--covered", type=Path, required=True, help="the file that benchmarks/training/ladder.py made")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--stem", type=Path, help="EfficientNet-Lite0's weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    stem = None
    if options.stem:
        stem = ConvStem(1).eval()
        load_lite0(stem, options.stem)
    features = Features(checkpoint.load(options.checkpoint), stem).eval()
    people = read_dataset(options.data, "market", train=True)
    query, gallery = (decode(part, SIZE, workers=1, quiet=True) for part in (people.query, people.gallery))
    sets = occlusion_sets(query, query, SHARES, options.covered, workers=1)
    asked = {("whole", 0.0): query, **sets}
    g, q = grids(features, gallery), {key: grids(features, one) for key, one in asked.items()}
    rows = []
    for by_map, stripes in ((False, 1), (True, 1), (False, 8), (True, 2), (True, 4), (True, 8)):
        target = pooled(*g, stripes, by_map)
        centre = target.mean(0)

        def side(x: Tensor, centre: Tensor = centre) -> tuple[Tensor, Tensor]:
            unit = F.normalize(x - centre, dim=1)
            return unit, torch.ones_like(unit)

        made = {key: side(pooled(*one, stripes, by_map)) for key, one in q.items()}
        found = [r for r in curves(query, gallery, made, side(target)) if r["metric"] == "plain"]
        covered = float(np.mean([r["mAP"] for r in found if r["share"]]))
        rows.append({"by_map": by_map, "stripes": stripes, "whole": found[0]["mAP"], "rank1": found[0]["rank1"],
                     "covered": round(covered, 2)})  # fmt: skip
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    told = {"stem": "ImageNet" if options.stem else "checkpoint", "rows": rows, "machine": machine_card()}
    write_whole(options.out, (json.dumps(told, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
