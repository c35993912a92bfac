"""What a network looks at and what its mask changes, for some queries.

    dpm-edge explain CHECKPOINT DATA [-o DIR] [--layout LAYOUT] [--queries 8] [--saliency SALIENCY_MODEL] [--share 0.3]

DATA is a labelled data set, such as test/PERSON/CAMERA/ folders. For each query: the picture, its saliency (if a
saliency model is given), the map of what is seen (if the model has one), where each head of the last block looks, the
best matches by the plain and by the masked metric, the most closed dimensions of the mask, and the rank of the first
true match under both metrics. Pictures go to DIR, numbers to DIR/explain.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpm_edge import metrics
from dpm_edge.errors import DpmError
from dpm_edge.files import write_whole
from dpm_edge.labels import AUTO
from dpm_edge.layouts import LAYOUTS, read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.model.visibility import share_in_sight
from dpm_edge.train.data import Pictures, decode, to_input
from dpm_edge.train.evaluate import covered, embed, maps_of
from dpm_edge.train.preview import CELL, picture
from dpm_edge.train.saliency.learned import load_saliency_model, saliency_of

CLOSED = 8
"""Dimensions of the mask that are named, the most closed first."""
MATCHES = 5
"""Matches shown by each metric."""


def heat(pixels: Tensor, weights: Tensor) -> NDArray[np.uint8]:
    """A picture (3, H, W) under a heat map of weights (h, w), of any range: BGR cell."""
    low, high = weights.min(), weights.max()
    scaled = ((weights - low) / (high - low).clamp(min=1e-9)).cpu().numpy().astype(np.float32)
    colours = cv2.applyColorMap((cv2.resize(scaled, CELL[::-1]) * 255).clip(0, 255).astype(np.uint8), cv2.COLORMAP_JET)
    return np.asarray(cv2.addWeighted(picture(pixels), 0.5, colours, 0.5, 0), np.uint8)


@torch.inference_mode()
def attention(net: DPM, pixels: Tensor) -> Tensor:
    """(n, 3, H, W) uint8 → (n, heads, h, w): softmax over the patches of the cls query's logits in the last block."""
    net.eval()
    logits = net.forward_train(to_input(pixels, net.spec.preprocessing)).cls_attention
    return logits.softmax(2).unflatten(2, net.spec.grid)


def first_match(similarity: Tensor, query: Pictures, gallery: Pictures) -> list[int | None]:
    """Per query the rank, from 1, of the first true match of another camera; None where there is none."""
    ranks: list[int | None] = []
    for row, (person, camera) in enumerate(zip(query.people, query.cameras)):
        same = gallery.people == person
        keep = ~(same & (gallery.cameras == camera)) & (gallery.people >= 0)
        order = similarity[row][keep].argsort(descending=True, stable=True)
        places = same[keep][order].nonzero().flatten()
        ranks.append(int(places[0]) + 1 if len(places) else None)
    return ranks


def explain(net: DPM, query: Pictures, gallery: Pictures, saliency: Tensor | None) -> tuple[list[dict[str, Any]], list]:
    """Rows for explain.json, and one BGR strip per query. saliency: (Q, h, w) or None."""
    (q, mask), (g, _) = embed(net, query.pixels), embed(net, gallery.pixels)
    found = {m: metrics.similarity(q, g, metric=m, query_masks=mask) for m in ("plain", "masked")}
    ranks = {m: first_match(s, query, gallery) for m, s in found.items()}
    looks, maps = attention(net, query.pixels), maps_of(net, query.pixels)
    if maps is not None:
        visibility = share_in_sight(maps[:, 0], maps[:, 1])
    else:
        visibility = mask.mean(1) / net.spec.mask_mean
    rows, strips = [], []
    for i, name in enumerate(query.names):
        closed = mask[i].argsort()[:CLOSED].tolist()
        rows.append(
            {
                "query": name,
                "rank_plain": ranks["plain"][i],
                "rank_masked": ranks["masked"][i],
                "mask_mean": round(float(mask[i].mean()), 4),
                "most_closed": [{"dimension": d, "gate": round(float(mask[i, d]), 4)} for d in closed],
                "visibility": round(float(visibility[i]), 4),
            }
        )
        cells = [picture(query.pixels[i])]
        cells += [heat(query.pixels[i], saliency[i])] if saliency is not None else []
        cells += [heat(query.pixels[i], maps[i, 0])] if maps is not None else []
        cells += [heat(query.pixels[i], head) for head in looks[i]]
        for metric in ("plain", "masked"):
            cells.append(np.full((CELL[0], 6, 3), 255, np.uint8))
            for j in found[metric][i].argsort(descending=True)[:MATCHES].tolist():
                cell = picture(gallery.pixels[j])
                right = gallery.people[j] == query.people[i]
                cv2.rectangle(cell, (0, 0), (CELL[1] - 1, CELL[0] - 1), (0, 200, 0) if right else (0, 0, 220), 3)
                cells.append(cell)
        strips.append(np.concatenate(cells, axis=1))
    return rows, strips


def main(arguments: list[str] | None = None) -> int:
    """Write strips and numbers; print the change of rank. Returns the exit code."""
    made = argparse.ArgumentParser(
        prog="dpm-edge explain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("checkpoint", type=Path)
    made.add_argument("data", type=Path)
    made.add_argument("--layout", choices=[AUTO, *sorted(LAYOUTS)], default=AUTO, help="of DATA; found by looking")
    made.add_argument("-o", "--out", type=Path, default=Path("explained"))
    made.add_argument("--queries", type=int, default=8, help="this many queries, spread over all of them")
    made.add_argument("--saliency", type=Path, help="a saliency model that a training run kept (saliency-model)")
    made.add_argument("--share", type=float, default=0.0, help="cover this share of each query with a drawn object")
    options = made.parse_args(arguments)
    try:
        net = checkpoint.load(options.checkpoint)
        found = read_dataset(options.data, options.layout)
        query, gallery = (decode(part, net.spec.preprocessing) for part in (found.query, found.gallery))
        rows = torch.linspace(0, len(query) - 1, min(options.queries, len(query))).long()
        query = query.take(rows)
        if options.share:
            query = covered(query, "object", options.share, np.zeros((1, 8, 8, 3), np.uint8), 0)
        saliency = saliency_of(*load_saliency_model(options.saliency), query.pixels) if options.saliency else None
        shown, strips = explain(net, query, gallery, saliency)
    except DpmError as error:
        print(f"dpm-edge explain: {error}", file=sys.stderr)
        return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for row, strip in zip(shown, strips):
        cv2.imwrite(str(options.out / f"{Path(row['query']).stem}.jpg"), strip)
        print(f"{row['query']}: first true match at rank {row['rank_plain']} plain, {row['rank_masked']} masked")
    write_whole(options.out / "explain.json", (json.dumps(shown, indent=1) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
