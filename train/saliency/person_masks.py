"""Where the person is in each training picture: saliency from one of three sources, cached beside the run.

N pictures · h×w patch grid.  M, the person's region, is saliency at or above a threshold.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_safetensors
from torch import Tensor

from dpm_edge.errors import DataError, SpecError, nearest
from dpm_edge.files import write_whole
from dpm_edge.train.config import Config, SaliencyConfig
from dpm_edge.train.data import Pictures
from dpm_edge.train.saliency.labels import label_saliency
from dpm_edge.train.saliency.learned import RESUME, saliency_of, save_saliency_model, train_saliency
from dpm_edge.train.saliency.segmentation import segmented_saliency


def _fingerprint(pictures: Pictures, grid: tuple[int, int]) -> str:
    return hashlib.sha256(json.dumps([list(grid), pictures.names]).encode()).hexdigest()


def save_saliency(path: Path, saliency: Tensor, pictures: Pictures) -> None:
    """Write the cache: saliency (N, h, w) as float16, and which pictures it belongs to."""
    grid = (saliency.shape[1], saliency.shape[2])
    meta = {"pictures": _fingerprint(pictures, grid)}
    write_whole(path, to_safetensors({"saliency": saliency.half().contiguous()}, meta))


def load_saliency(path: Path, pictures: Pictures, grid: tuple[int, int]) -> Tensor:
    """The cached saliency (N, h, w) float32. Raises DataError where it is of other pictures or another grid."""
    from safetensors import safe_open

    if not path.is_file():
        raise DataError(
            f"{path} does not exist; saliency.masks wants a file that a training run wrote (saliency.safetensors)"
        )
    with safe_open(str(path), "pt") as file:
        kept = (file.metadata() or {}).get("pictures")
    saliency = load_file(path)["saliency"].float()
    if kept != _fingerprint(pictures, grid):
        raise DataError(
            f"{path} holds saliency of {tuple(saliency.shape)}, but not of these {len(pictures)} pictures on a "
            f"{grid[0]}×{grid[1]} grid; delete it to compute it again"
        )
    return saliency


SOURCES = {
    "learned": "saliency.safetensors",
    "labels": "saliency-labels.safetensors",
    "segmentation": "saliency-segmentation.safetensors",
}
"""Where saliency comes from, and the file that keeps it in a run's folder."""


def person_masks(
    config: Config, pictures: Pictures, data: Path, out: Path, device: torch.device, quiet: bool = False
) -> Tensor:
    """M of every training picture, (N, h, w) bool on `device`: from the cache, or computed now and cached in `out`.

    data: the data set's folder, for its masks. Raises SpecError for an unknown source, DataError as `label_saliency`
    and `load_saliency` do.
    """
    if config.saliency.source not in SOURCES:
        raise SpecError(f"saliency.source={config.saliency.source}.{nearest(config.saliency.source, SOURCES)}")
    cache = Path(config.saliency.masks) if config.saliency.masks else out / SOURCES[config.saliency.source]
    grid = network_grid(config)
    if not config.saliency.masks and (config.saliency.source == "labels" or not cache.is_file()):
        out.mkdir(parents=True, exist_ok=True)
        save_saliency(cache, _computed(config, pictures, data, out, device, quiet), pictures)
        (out / RESUME).unlink(missing_ok=True)
    saliency = load_saliency(cache, pictures, grid)  # also after writing it: a resumed run must see the same rounding
    return person_region(saliency, config.saliency).to(device)


def _computed(config: Config, pictures: Pictures, data: Path, out: Path, device: torch.device, quiet: bool) -> Tensor:
    """(N, h, w) float32 on the CPU, from the config's source."""
    if config.saliency.source == "labels":
        return label_saliency(data, pictures, network_grid(config))
    if config.saliency.source == "segmentation":
        return segmented_saliency(pictures, network_grid(config), quiet)
    net, head = train_saliency(config, pictures, device, out, quiet)
    save_saliency_model(out / "saliency-model", net, head)
    return saliency_of(net, head, pictures.pixels)


def person_region(saliency: Tensor, config: SaliencyConfig) -> Tensor:
    """M (N, h, w) bool: saliency at or above the threshold, or the `usage` most salient patches of the whole set.

    Shares of a patch, from masks or from segmentation, are held to a half instead: they are no guess of an order.
    """
    threshold = config.threshold if config.source == "learned" else config.threshold or 0.5
    if not threshold:
        kept = max(1, round(config.usage * saliency.numel()))
        threshold = float(saliency.flatten().kthvalue(saliency.numel() - kept + 1).values)
    return saliency >= threshold


def network_grid(config: Config) -> tuple[int, int]:
    """(h, w) of the config's model."""
    from dpm_edge.train.start import model_spec

    return model_spec(config.model).grid
