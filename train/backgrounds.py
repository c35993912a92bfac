"""Other surroundings in training: what shows nobody of a rendered picture is replaced, by its exact mask.

A third of the new surroundings are another picture of the batch, its person with it; the others are clutter: shapes of
all sizes that hide each other, filled with flat colours, gradients, stripes and grain, and thin bars over them. The
sizes follow the inverse cube law of the dead leaves model, whose pictures have the statistics of photographs (Lee,
Mumford and Huang, 2001, "Occlusion models for natural images"). Rendered backdrops are calm; streets are not. With
panoramas of real places, views into them stand beside the clutter (dpm_edge.train.panoramas).

B pictures · H×W. Planes are float32 (B, 5, H, W): three of pixels 0..255, then the shares 0..1 of each pixel that show
the person (`seen`) and that would if nothing stood in front (`whole`).
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.progress import track
from dpm_edge.spec import Preprocessing
from dpm_edge.train.config import Config
from dpm_edge.train.panoramas import views

BANK = 512
"""Pieces of clutter that a run draws once."""
FROM_BATCH = 0.35
"""Share of the new surroundings that are another picture of the batch."""
_SMALLEST, _LARGEST = 0.035, 0.5
"""Radii of the shapes, as shares of the height."""
_SHAPES = 110


def clutter(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One piece of clutter: (3, H, W) uint8 RGB."""
    image = np.empty((height, width, 3), np.float32)
    image[:] = _colour(rng)
    low, high = (_SMALLEST * height) ** -2, (_LARGEST * height) ** -2
    radii = (rng.random(_SHAPES) * (low - high) + high) ** -0.5  # density of r falls as r⁻³
    for radius in radii[rng.permutation(_SHAPES)]:
        _leaf(rng, image, float(radius))
    for _ in range(int(rng.integers(0, 7))):
        _bar(rng, image)
    if rng.random() < 0.5:
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 2.0)) * height / 256))
    return image.clip(0, 255).astype(np.uint8).transpose(2, 0, 1)


def _colour(rng: np.random.Generator) -> np.ndarray:
    """(3,) float32 0..255: mostly near grey, as walls, roads and metal are."""
    grey = 255 * rng.beta(1.1, 1.4)
    spread = 45 if rng.random() < 0.2 else 10
    return (grey + rng.normal(0, spread, 3)).clip(0, 255).astype(np.float32)


def _leaf(rng: np.random.Generator, image: np.ndarray, radius: float) -> None:
    """Draw one filled shape over the image, in place."""
    height, width = image.shape[:2]
    mask = np.zeros((height, width), np.uint8)
    centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
    ratio, turn = (
        float(rng.uniform(0.25, 1.0)),
        float(rng.choice([0.0, 90.0]) if rng.random() < 0.5 else rng.uniform(0, 180)),
    )
    if rng.random() < 0.5:
        corners = cv2.boxPoints((centre, (2 * radius, 2 * radius * ratio), turn))
        cv2.fillPoly(mask, [np.round(corners).astype(np.int32)], 1)
    else:
        axes = (max(1, round(radius)), max(1, round(radius * ratio)))
        cv2.ellipse(mask, centre, axes, turn, 0, 360, 1, -1 if rng.random() < 0.8 else max(1, round(radius / 8)))
    y, x = np.nonzero(mask)
    if not len(y):
        return
    fill = np.repeat(_colour(rng)[None], len(y), 0)
    kind = rng.random()
    if kind < 0.35:  # light falls across it
        slope = rng.normal(0, 0.6, 2) / max(radius, 1)
        fill = fill * (1 + slope[0] * (x - centre[0]) + slope[1] * (y - centre[1])).clip(0.3, 1.8)[:, None]
    elif kind < 0.55:  # stripes: tiles, steps, bars, blinds
        angle, period = rng.choice([0.0, np.pi / 2, rng.uniform(0, np.pi)]), rng.uniform(3, max(4.0, radius))
        wave = (x * np.cos(angle) + y * np.sin(angle)) % period < period * rng.uniform(0.15, 0.6)
        fill[wave] = _colour(rng)
    if rng.random() < 0.6:
        fill = fill + rng.normal(0, rng.uniform(2, 22), (len(y), 1))
    image[y, x] = fill


def _bar(rng: np.random.Generator, image: np.ndarray) -> None:
    """Draw a thin bar right across, in place: a post, a rail, a frame."""
    height, width = image.shape[:2]
    if rng.random() < 0.5:
        at = float(rng.uniform(0, width))
        ends = ((round(at), 0), (round(at + rng.normal(0, 4)), height))
    else:
        at = float(rng.uniform(0, height))
        ends = ((0, round(at)), (width, round(at + rng.normal(0, height / 8))))
    cv2.line(image, *ends, _colour(rng).tolist(), int(rng.integers(1, max(2, height // 40))), cv2.LINE_AA)


def bank(height: int, width: int, seed: int, count: int = BANK, *, quiet: bool = True) -> Tensor:
    """(count, 3, H, W) uint8 pieces of clutter; the same for the same seed."""
    rng = np.random.default_rng([seed, 21])
    pieces = [clutter(rng, height, width) for _ in track(range(count), what="surroundings", quiet=quiet)]
    return torch.from_numpy(np.stack(pieces))


def surroundings(config: Config, size: Preprocessing, quiet: bool) -> Tensor:
    """(M, 3, H, W) uint8 that a run puts people before: clutter, and twice as many views of places with panoramas.

    Raises:
        DataError: augment.panoramas is a folder without panoramas, or with one that cannot be read.
    """
    pieces = bank(size.height, size.width, config.seed, quiet=quiet)
    if config.augment.panoramas:
        places = Path(config.augment.panoramas)
        seen = views(places, size.height, size.width, config.seed, 2 * len(pieces), quiet=quiet)
        pieces = torch.cat([pieces, seen])
    return pieces


def surround(planes: Tensor, pieces: Tensor, probability: float, draw: torch.Generator) -> Tensor:
    """Give some pictures other surroundings. planes (B, 5, H, W); pieces (M, 3, H, W) uint8 on the same device.

    What stood in front of the person goes with the old surroundings: those pixels count as hidden still.
    """
    count = len(planes)

    def uniform() -> Tensor:
        return torch.rand(count, generator=draw, device=planes.device)

    def each(values: Tensor) -> Tensor:
        return values.view(-1, 1, 1, 1)

    chosen, from_batch, turned = uniform() < probability, uniform() < FROM_BATCH, uniform() < 0.5
    others = torch.randperm(count, generator=draw, device=planes.device)
    cut = pieces[torch.randint(len(pieces), (count,), generator=draw, device=planes.device)].float()
    new = torch.where(each(from_batch), planes[others, :3], cut)
    new = torch.where(each(turned), new.flip(3), new)
    # a quarter of the next pixel out: masks may be stored at half size, and a person without an edge looks cut out
    seen = F.max_pool2d(planes[:, 3:4], 3, 1, 1) * 0.25 + planes[:, 3:4] * 0.75
    mixed = planes[:, :3] * seen + new * (1 - seen)
    return torch.cat([torch.where(each(chosen), mixed, planes[:, :3]), planes[:, 3:]], 1)
