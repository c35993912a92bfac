"""Where the person is in each training picture: saliency from one of three sources, cached beside the run.

N pictures · h×w patch grid.  M, the person's region, is saliency at or above a threshold.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from dpm_edge.errors import DataError, SpecError, nearest
from dpm_edge.files import write_whole
from dpm_edge.progress import say
from dpm_edge.train.config import Config, SaliencyConfig
from dpm_edge.train.data import Pictures
from dpm_edge.train.saliency.labels import label_saliency
from dpm_edge.train.saliency.learned import RESUME, saliency_of, save_saliency_model, train_saliency
from dpm_edge.train.saliency.segmentation import segmented_saliency
from dpm_edge.train.start import model_spec


def _fingerprint(pictures: Pictures, grid: tuple[int, int]) -> str:
    return hashlib.sha256(json.dumps([list(grid), pictures.names]).encode()).hexdigest()


def save_saliency(path: Path, saliency: Tensor, pictures: Pictures, source: str) -> None:
    """Write the cache: saliency (N, h, w) as float16, which pictures it is of, and where it comes from."""
    grid = (saliency.shape[1], saliency.shape[2])
    meta = {"pictures": _fingerprint(pictures, grid), "source": source}
    write_whole(path, to_safetensors({"saliency": saliency.half().contiguous()}, meta))


def load_saliency(path: Path, pictures: Pictures, grid: tuple[int, int]) -> tuple[Tensor, str]:
    """Read the cached saliency (N, h, w) float32 and its source, a name of SOURCES.

    Raises DataError where the file is missing, damaged, of other pictures or another grid, or without a source.
    """
    if not path.is_file():
        raise DataError(f"expected a saliency file that a training run wrote (saliency*.safetensors), got no {path}")
    try:
        with safe_open(str(path), "pt") as file:
            meta = file.metadata() or {}
            saliency = file.get_tensor("saliency").float()
    except SafetensorError as error:
        raise DataError(f"{path} is damaged ({error}); delete it to compute it again") from error
    if meta.get("pictures") != _fingerprint(pictures, grid):
        raise DataError(
            f"expected saliency of these {len(pictures)} pictures on a {grid[0]}×{grid[1]} grid, got {path} with "
            f"{tuple(saliency.shape)} of others. Delete it to compute it again"
        )
    if meta.get("source") not in SOURCES:
        raise DataError(
            f"expected a saliency file that says its source ({', '.join(SOURCES)}), got {path} with "
            f"{meta.get('source')!r}. Delete it to compute it again"
        )
    return saliency, meta["source"]


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

    data: the data set's folder, for its masks. Where saliency.masks names a file, that file's own source decides how it
    is read. Raises SpecError for an unknown source, DataError as `label_saliency` and `load_saliency` do.
    """
    source = config.saliency.source
    if source not in SOURCES:
        raise SpecError(f"expected a saliency.source, got {source!r}.{nearest(source, SOURCES)}")
    cache = Path(config.saliency.masks) if config.saliency.masks else out / SOURCES[source]
    grid = network_grid(config)
    if not config.saliency.masks and (source == "labels" or not cache.is_file()):
        out.mkdir(parents=True, exist_ok=True)
        save_saliency(cache, _computed(config, pictures, data, out, device, quiet), pictures, source)
        (out / RESUME).unlink(missing_ok=True)
    saliency, kept = load_saliency(cache, pictures, grid)  # also after writing it: resuming must see the same rounding
    if kept != source and not quiet:
        say(f"{cache} holds saliency of source {kept!r}, not {source!r}: it is held to the threshold of {kept!r}")
    return person_region(saliency, config.saliency, kept).to(device)


def _computed(config: Config, pictures: Pictures, data: Path, out: Path, device: torch.device, quiet: bool) -> Tensor:
    """(N, h, w) float32 on the CPU, from the config's source."""
    if config.saliency.source == "labels":
        return label_saliency(data, pictures, network_grid(config))
    if config.saliency.source == "segmentation":
        return segmented_saliency(pictures, network_grid(config), quiet)
    net, head = train_saliency(config, pictures, device, out, quiet)
    save_saliency_model(out / "saliency-model", net, head)
    return saliency_of(net, head, pictures.pixels)


def person_region(saliency: Tensor, config: SaliencyConfig, source: str) -> Tensor:
    """M (N, h, w) bool: saliency at or above the threshold; source: where the saliency comes from.

    A threshold of 0, and one that was chosen for another source, stands for the source's own: a half for shares of a
    patch, from masks or from segmentation; where it is learned, the value that keeps the `usage` most salient patches
    of the whole set, since only their order is sure.
    """
    chosen = config.threshold if source == config.source else 0.0
    threshold = chosen or (0.0 if source == "learned" else 0.5)
    if not threshold:
        kept = max(1, round(config.usage * saliency.numel()))
        threshold = float(saliency.flatten().kthvalue(saliency.numel() - kept + 1).values)
    return saliency >= threshold


def network_grid(config: Config) -> tuple[int, int]:
    """(h, w) of the config's model."""
    return model_spec(config.model).grid
