"""SPT's occlusions beside random erasing's and the test occluders': how large, where, and with what texture.

    python benchmarks/training/occlusion_statistics.py RECIPE --data DIR --out FILE.json [field=value …]

For each source: the share of the picture that is covered, the covered region's centre, and the local contrast inside
it; each as mean, standard deviation and histogram, and the Kullback–Leibler divergence of each histogram from the
visible background's own (texture) or from SPT's (size, position).

In SPT an occlusion is what the donor shows in front of the person: the pixels of the person's region of the picture
that the donor's scene replaces. In erasing it is the noise box, in the test set the occluder.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from dpm_edge.env import machine_card
from dpm_edge.errors import DpmError
from dpm_edge.files import write_whole
from dpm_edge.train.arguments import config_of, tool_parser
from dpm_edge.train.augment import augment
from dpm_edge.train.config import AugmentConfig, Config
from dpm_edge.train.data import decode
from dpm_edge.train.evaluate import covered
from dpm_edge.train.preview import Example, examples
from dpm_edge.train.run import device_of, training_set
from dpm_edge.train.saliency.person_masks import person_masks
from dpm_edge.train.start import model_spec

BINS = {"size": (0.0, 1.0, 20), "row": (0.0, 1.0, 16), "column": (0.0, 1.0, 8), "contrast": (0.0, 100.0, 20)}
"""Range and number of bins of each measure: shares of the picture, or grey levels of 255."""


def local_contrast(pixels: Tensor) -> Tensor:
    """(B, 3, H, W) 0..255 → (B, H, W): standard deviation of the grey level in 5×5 windows."""
    grey = (pixels * torch.tensor([0.299, 0.587, 0.114], device=pixels.device).view(1, 3, 1, 1)).sum(1, keepdim=True)
    padded = F.pad(grey, (2, 2, 2, 2), mode="replicate")
    mean, square = F.avg_pool2d(padded, 5, 1), F.avg_pool2d(padded * padded, 5, 1)
    return (square - mean * mean).clamp(min=0).sqrt().squeeze(1)


def measures(pixels: Tensor, regions: Tensor) -> dict[str, NDArray[np.float64]]:
    """Size, centre and contrast of each region that is not empty. pixels (B, 3, H, W); regions (B, H, W) bool."""
    some = regions.flatten(1).any(1)
    regions, contrast = regions[some].float(), local_contrast(pixels[some])
    count = regions.sum((1, 2))
    _, height, width = regions.shape
    rows = torch.arange(height, device=regions.device).view(1, -1, 1) / (height - 1)
    columns = torch.arange(width, device=regions.device).view(1, 1, -1) / (width - 1)
    found = {
        "size": count / (height * width),
        "row": (regions * rows).sum((1, 2)) / count,
        "column": (regions * columns).sum((1, 2)) / count,
        "contrast": (regions * contrast).sum((1, 2)) / count,
    }
    return {name: value.double().cpu().numpy() for name, value in found.items()}


def transferred(batch: list[Example]) -> tuple[Tensor, Tensor]:
    """SPT's results and the region of each person that the donor's scene took away, (B, H, W) bool."""
    pixels, regions = [], []
    for example in batch:
        done = example.done
        rolled = torch.stack([m.roll(int(r), dims=1) for m, r in zip(example.masks, done.roll)])
        lost = rolled & ~example.masks[done.donor] & done.mixed.view(-1, 1, 1)
        pixels.append(done.pixels)
        regions.append(F.interpolate(lost.float().unsqueeze(1), done.pixels.shape[2:]).squeeze(1).bool())
    return torch.cat(pixels), torch.cat(regions)


def erased(pixels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Random erasing's results and its boxes."""
    draw = torch.Generator(pixels.device).manual_seed(seed)
    done = augment(pixels, AugmentConfig(pad=0, erase=1.0), draw)
    return done, (done != pixels).any(1)


def divergence(of: NDArray[np.float64], beside: NDArray[np.float64], measure: str) -> float:
    """KL(of ‖ beside) of two histograms over BINS[measure], half a count added to each bin; nats."""
    low, high, bins = BINS[measure]
    p, q = (np.histogram(np.clip(v, low, high), bins, (low, high))[0] + 0.5 for v in (of, beside))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def describe(values: dict[str, NDArray[np.float64]], reference: dict[str, NDArray[np.float64]]) -> dict[str, Any]:
    """Mean, spread, histogram of each measure, and its divergence from the reference's."""
    found: dict[str, Any] = {"pictures": len(values["size"])}
    for name, value in values.items():
        low, high, bins = BINS[name]
        found[name] = {
            "mean": round(float(value.mean()), 4),
            "standard_deviation": round(float(value.std()), 4),
            "histogram": np.histogram(np.clip(value, low, high), bins, (low, high))[0].tolist(),
            "divergence": round(divergence(value, reference[name], name), 4),
        }
    return found


def statistics(config: Config, data: Path, out: Path, batches: int = 8) -> dict[str, Any]:
    """What the file holds: one entry per source of occlusions, and what they were compared with."""
    device = device_of(config)
    config.transfer.probability = 1.0
    people = training_set(config, data)
    pre = model_spec(config.model).preprocessing
    train, query = decode(people.train, pre).to(device), decode(people.query, pre)
    masks = person_masks(config, train, data, out.parent, device)
    batch = examples(config, train, masks, batches)
    pixels = torch.cat([e.pixels for e in batch])
    person = torch.cat([e.masks for e in batch])
    background = F.interpolate((~person).float().unsqueeze(1), pixels.shape[2:]).squeeze(1).bool()
    sources = {"SPT": measures(*transferred(batch)), "random erasing": measures(*erased(pixels, config.seed))}
    bodies = train.pixels[:200].cpu().permute(0, 2, 3, 1).contiguous().numpy()
    for kind in ("texture", "object", "body"):
        done = covered(query, kind, 0.3, bodies, 0).pixels
        sources[f"test: {kind}, 30 %"] = measures(done.float(), (done != query.pixels.cpu()).any(1))
    reference = {**sources["SPT"], "contrast": measures(pixels, background)["contrast"]}
    return {
        "sources": {name: describe(values, reference) for name, values in sources.items()},
        "divergence_from": {"size": "SPT", "row": "SPT", "column": "SPT", "contrast": "visible background"},
        "bins": BINS,
        "recipe": config.recipe,
        "machine": machine_card(),
    }


def main(arguments: list[str] | None = None) -> int:
    """Write the statistics and print the means. Returns the exit code."""
    options = tool_parser("statistics", __doc__).parse_intermixed_args(arguments)
    try:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        found = statistics(config_of(options), options.data, options.out)
    except DpmError as error:
        print(f"occlusion_statistics: {error}", file=sys.stderr)
        return 1
    write_whole(options.out, (json.dumps(found, indent=1) + "\n").encode())
    for name, values in found["sources"].items():
        text = "  ".join(f"{m} {values[m]['mean']:.3f} (KL {values[m]['divergence']:.2f})" for m in BINS)
        print(f"{name:24s} {values['pictures']:5d} pictures  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
