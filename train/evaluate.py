"""How good a network is: the Market-1501 protocol, plain and masked, on whole queries and on covered ones.

Q queries · G gallery pictures · D feature dimensions
"""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from dpm_edge import metrics
from dpm_edge.env import cores
from dpm_edge.errors import DataError
from dpm_edge.evaluation import market_scores
from dpm_edge.files import write_whole
from dpm_edge.model.foreign_network import AnyNetwork
from dpm_edge.model.network import DPM
from dpm_edge.spec import NECKS
from dpm_edge.train import occluders
from dpm_edge.train.data import Pictures, to_input

BOTH = ("plain", "masked")
MOST_BODIES = 500
"""People's pictures to cut bodies from."""
COLLAPSED = 0.1
"""A spread below which distances before the neck are too small for the triplet loss's soft margin to tell apart."""
WORKERS_START = 5.0
"""Seconds that the processes which cover queries take to start."""
OCCLUDER_SEED = 0
"""The same occluders for every run, whatever its own seed."""


def embed(net: AnyNetwork, pixels: Tensor, batch: int = 256) -> tuple[Tensor, Tensor]:
    """Embed (n, 3, H, W) uint8 pixels: features and masks, each (n, D) float32 on the network's device.

    The network is used in evaluation mode, in float32, and left in the mode it was in.
    """
    features, masks = embed_sides(net, pixels, (net.spec.neck,), batch)
    return features[net.spec.neck], masks


@torch.inference_mode()
def embed_sides(
    net: AnyNetwork, pixels: Tensor, necks: tuple[str, ...] = NECKS, batch: int = 256
) -> tuple[dict[str, Tensor], Tensor]:
    """Embed as `embed` does, on each of these sides of the BN neck at once: {side: (n, D)} and masks (n, D)."""
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    parts = [net.features(to_input(part.to(device), net.spec.preprocessing), necks) for part in pixels.split(batch)]
    net.train(was_training)
    return {side: torch.cat([f[side] for f, _ in parts]) for side in necks}, torch.cat([m for _, m in parts])


@torch.inference_mode()
def maps_of(net: AnyNetwork, pixels: Tensor, batch: int = 256) -> Tensor | None:
    """(n, 3, H, W) uint8 → (n, 2, h, w) shares of each patch, of the person seen and hidden; None without a map."""
    if net.spec.visibility != "map":
        return None
    device = next(net.parameters()).device
    was_training = net.training
    net.eval()
    found = [net(to_input(part.to(device), net.spec.preprocessing))[2] for part in pixels.split(batch)]
    net.train(was_training)
    return torch.cat(found)


@torch.inference_mode()
def spread(net: DPM, pixels: Tensor, most: int = 256) -> float:
    """How far features lie apart before the neck: mean ‖f − μ‖ / ‖μ‖ over at most `most` of the pictures.

    pixels (n, 3, H, W) uint8; μ is the mean of f (n, d). Near 0 all pictures have nearly one feature: see COLLAPSED.
    """
    was_training = net.training
    chosen = pixels[:: -(-len(pixels) // most)].to(next(net.parameters()).device)
    f = net.eval().backbone(to_input(chosen, net.spec.preprocessing)).cls.float()
    net.train(was_training)
    centre = f.mean(0)
    return float((f - centre).norm(dim=1).mean() / centre.norm())


def scores(
    query: Pictures,
    gallery: Pictures,
    q: tuple[Tensor, Tensor],
    g: tuple[Tensor, Tensor],
    kinds: tuple[str, ...] = BOTH,
) -> dict[str, dict[str, float | int]]:
    """Rank-1/5/10 and mAP in percent by metric. q, g: (features, masks) of the two sides."""
    found = {}
    for metric in kinds:
        similarity = metrics.similarity(q[0], g[0], metric=metric, query_masks=q[1], target_masks=g[1])
        found[metric] = market_scores(
            similarity.float().cpu().numpy(),
            query.people.numpy(),
            query.cameras.numpy(),
            gallery.people.numpy(),
            gallery.cameras.numpy(),
        ).as_dict()
    return found


def evaluate(net: DPM, query: Pictures, gallery: Pictures, batch: int = 256) -> dict[str, dict[str, float | int]]:
    """Scores of whole queries, {"plain": {...}, "masked": {...}}."""
    return scores(query, gallery, embed(net, query.pixels, batch), embed(net, gallery.pixels, batch))


def covered(query: Pictures, kind: str, share: float, bodies: np.ndarray, seed: int) -> Pictures:
    """The queries with `share` of each picture covered by occluders of `kind`; each query's occluder has its own seed,
    the same for every share. bodies (M, H, W, 3) uint8: other people's pictures."""
    make = occluders.kinds(bodies)[kind]
    images = query.pixels.cpu().permute(0, 2, 3, 1).numpy()
    done = [
        occluders.cover(image, share, make, np.random.default_rng((seed, row, *kind.encode())))
        for row, image in enumerate(images)
    ]
    return replace(query, pixels=torch.from_numpy(np.stack(done)).permute(0, 3, 1, 2).contiguous())


def occlusion_sets(
    query: Pictures, bodies: Pictures, shares: tuple[float, ...], cache: Path | None = None, workers: int = 0
) -> dict[tuple[str, float], Pictures]:
    """The covered queries of every kind and share above 0; bodies: pictures of people who are in no gallery.

    Covering takes milliseconds a picture: it is spread over `workers` processes (0: one per core), and `cache`, a file
    that is written when it does not exist, saves it the next time. Raises DataError where the cache is of others.
    """
    cut = _cut(bodies)
    wanted = [(kind, share) for kind in occluders.KINDS for share in shares if share > 0]
    if cache is not None and cache.is_file():
        with safe_open(str(cache), "pt") as file:
            if json.loads((file.metadata() or {}).get("queries", "[]")) != query.names:
                raise DataError(
                    f"expected covered pictures of these queries, got others in {cache}. Delete it to make them again"
                )
            pixels = {key: file.get_tensor(_cache_name(*key)) for key in wanted}
    else:
        plain = replace(query, pixels=query.pixels.cpu())
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers or cores(), len(wanted)), context) as pool:
            made = pool.map(covered, *zip(*((plain, kind, share, cut, OCCLUDER_SEED) for kind, share in wanted)))
            pixels = {key: pictures.pixels for key, pictures in zip(wanted, made)}
        if cache is not None:
            tensors = {_cache_name(*key): value for key, value in pixels.items()}
            write_whole(cache, to_safetensors(tensors, {"queries": json.dumps(query.names)}))
    return {key: replace(query, pixels=value) for key, value in pixels.items()}


def covering_seconds(query: Pictures, bodies: Pictures, shares: tuple[float, ...]) -> float:
    """Estimate how long `occlusion_sets` takes without a cache, from covering a few queries."""
    few = Pictures(query.pixels[:4].cpu(), query.people[:4], query.cameras[:4], query.names[:4])
    cut, begin = _cut(bodies), time.perf_counter()
    for kind in occluders.KINDS:
        covered(few, kind, 0.3, cut, OCCLUDER_SEED)
    each = (time.perf_counter() - begin) / len(few)
    return WORKERS_START + each * len(query) * sum(share > 0 for share in shares) / cores()


def _cut(bodies: Pictures) -> np.ndarray:
    """Pictures that occluding bodies are cut from, (M, H, W, 3) uint8, M at most about MOST_BODIES."""
    return bodies.pixels[:: max(1, len(bodies) // MOST_BODIES)].cpu().permute(0, 2, 3, 1).contiguous().numpy()


def _cache_name(kind: str, share: float) -> str:
    return f"{kind}-{share:.3f}"


def occlusion_curves(
    net: DPM, query: Pictures, gallery: Pictures, sets: dict[tuple[str, float], Pictures], batch: int = 256
) -> dict[str, list[dict[str, Any]]]:
    """Score whole and covered queries on both sides of the neck; every picture is embedded once.

    Returns, by side, one row per kind, share and metric: {"kind", "share", "metric", "rank1", "mAP"}; share 0 is of
    kind "whole".
    """
    target, target_masks = embed_sides(net, gallery.pixels, batch=batch)
    embedded = {
        key: embed_sides(net, pictures.pixels, batch=batch) for key, pictures in {("whole", 0.0): query, **sets}.items()
    }
    return {
        side: curves(
            query, gallery, {key: (f[side], m) for key, (f, m) in embedded.items()}, (target[side], target_masks)
        )
        for side in NECKS
    }


def curves(
    query: Pictures, gallery: Pictures, q: dict[tuple[str, float], tuple[Tensor, Tensor]], g: tuple[Tensor, Tensor]
) -> list[dict[str, Any]]:
    """Score embeddings as `occlusion_curves` does: q by kind and share, in the order of `query`; g the gallery's."""
    rows = []
    for (kind, share), embedded in q.items():
        scored = scores(query, gallery, embedded, g)
        rows += [
            {"kind": kind, "share": share, "metric": m, "rank1": s["rank1"], "mAP": s["mAP"]} for m, s in scored.items()
        ]
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of curves: mean Rank-1 and mAP by metric over whole queries, over all covered ones, and per kind."""

    def mean(chosen: list[dict[str, Any]]) -> dict[str, float]:
        found = {}
        for metric in BOTH:
            of_metric = [r for r in chosen if r["metric"] == metric]
            for name in ("rank1", "mAP"):
                found[f"{metric}_{name}"] = round(float(np.mean([r[name] for r in of_metric])), 3)
        return found

    kinds = sorted({r["kind"] for r in rows} - {"whole"})
    parts = {"whole": [r for r in rows if r["kind"] == "whole"]}
    if kinds:
        parts["occluded"] = [r for r in rows if r["kind"] != "whole"]
    parts.update({k: [r for r in rows if r["kind"] == k] for k in kinds})
    return {name: mean(chosen) for name, chosen in parts.items()}


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, of two (n,); ties get their mean rank. 0 where one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0

    def ranks(values: np.ndarray) -> np.ndarray:
        _, place, count = np.unique(values, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count + 1) / 2)[place]

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])
