"""Covering in training: things pasted over a batch's pictures, with the masks of what they hide, exactly.

What is pasted is a shape (half-plane, turned box, ellipse, blob or bars) filled with a piece of another picture, upside
down, with one colour, with smooth noise, or with clutter; its edge is hard or soft. None is of the kinds that held-out
queries are covered with (dpm_edge.train.occluders: drawn textures, drawn objects, people's bodies). With `passers_by`
some are another person of the batch instead, cut out by the exact mask: a rendered silhouette, where the held-out kind
is a rounded column of a picture.

B pictures · H×W. Planes are float32 (B, 5, H, W): three of pixels 0..255, then the shares 0..1 of each pixel that show
the person (`seen`) and that would if nothing stood in front (`whole`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.train.config import CoveringConfig

SHAPES = 5
BLOB_CELLS = (5, 3)
FILL_CELLS = (12, 6)
SOFTEST = 0.25
"""Width of the softest edge, in the units of a shape's field, whose range is about 1."""
PASSER_SIZE = (0.7, 1.6)
"""Size of a passer-by in front, as a factor on the picture that shows them."""
PASSER_ACROSS, PASSER_DOWN = (0.15, 1.0), (-0.2, 0.6)
"""How far a passer-by stands from the middle, in half widths to either side and half heights downward."""


@dataclass(frozen=True)
class Covered:
    """A batch after covering."""

    planes: Tensor
    """(B, 5, H, W) float32: pixels, seen, whole."""
    covered: Tensor
    """(B,) bool: which pictures had something pasted."""
    share: Tensor
    """(B,) float32: share of the picture under it; 0 where nothing was pasted."""
    under: Tensor
    """(B, H, W) float32: share of each pixel that is under it."""


def cover(
    planes: Tensor,
    config: CoveringConfig,
    draw: torch.Generator,
    pieces: Tensor | None = None,
    people: Tensor | None = None,
) -> Covered:
    """Paste one thing over some of the pictures. planes (B, 5, H, W); `draw` on their device decides everything.

    `pieces` (M, 3, H, W) uint8, on the same device: clutter (dpm_edge.train.backgrounds) that fills a quarter of the
    things. `people` (B, 4, H, W) float32: who passes by each picture, pixels and the shares of them that show the
    passer-by; others of the batch where none are given.
    """
    count, _, height, width = planes.shape

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=draw, device=planes.device)

    chosen = uniform(count) < config.probability
    share = (config.least + uniform(count) * (config.most - config.least)) * chosen
    field = _fields(count, height, width, uniform)
    ranked = field[:, ::2, ::2].flatten(1).sort(dim=1).values
    at = (share * ranked.shape[1]).long().clamp(max=ranked.shape[1] - 1)
    level = ranked.gather(1, at.unsqueeze(1)).view(-1, 1, 1)
    soft = (uniform(count) < config.soft) * uniform(count) * SOFTEST
    spread = (ranked[:, -1] - ranked[:, 0]).clamp(min=1e-6)
    edge = (soft * spread).clamp(min=1e-4).view(-1, 1, 1)
    alpha = ((level - field) / edge + 0.5).clamp(0, 1) * chosen.view(-1, 1, 1)
    fill = _fills(planes[:, :3], uniform, pieces)
    alpha = alpha.unsqueeze(1)
    if config.passers_by:
        passes = (chosen & (uniform(count) < config.passers_by)).view(-1, 1, 1, 1)
        front, outline = _passers_by(_others(planes, uniform) if people is None else people, uniform)
        fill, alpha = torch.where(passes, front, fill), torch.where(passes, outline, alpha)
    pixels = planes[:, :3] * (1 - alpha) + fill * alpha
    seen = planes[:, 3:4] * (1 - alpha)
    return Covered(torch.cat([pixels, seen, planes[:, 4:]], 1), chosen, alpha.mean((1, 2, 3)), alpha[:, 0])


def cover_pictures(
    pixels: Tensor, config: CoveringConfig, draw: torch.Generator, people: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """As `cover`, of pictures without masks: (B, 3, H, W) uint8 → the covered ones, and the share of each pixel that
    is under something, (B, H, W) float32. With `passers_by`, `people` must be given."""
    open_ = pixels.new_ones(len(pixels), 2, *pixels.shape[2:])
    done = cover(torch.cat([pixels, open_], 1).float(), config, draw, people=people)
    return done.planes[:, :3].round().byte(), done.under


def _others(planes: Tensor, uniform) -> Tensor:
    """Other people of the batch, (B, 4, H, W): pixels, and what shows them.

    A batch holds a person's pictures side by side; a shift by a quarter of it or more is somebody else, where a batch
    has more than four people.
    """
    count = len(planes)
    return planes[:, :4].roll(count // 4 + int(uniform(1) * (count // 2)), 0)


def _passers_by(others: Tensor, uniform) -> tuple[Tensor, Tensor]:
    """People (B, 4, H, W), moved and scaled: pixels (B, 3, H, W), and what they hide of each (B, 1, H, W)."""
    count = len(others)

    def between(low: float, high: float) -> Tensor:
        return low + uniform(count) * (high - low)

    size = between(*PASSER_SIZE)
    across = between(*PASSER_ACROSS) * torch.where(uniform(count) < 0.5, 1.0, -1.0)
    down = between(*PASSER_DOWN)
    zero = torch.zeros_like(size)
    rows = [torch.stack([1 / size, zero, -across / size], 1), torch.stack([zero, 1 / size, -down / size], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(others.shape), align_corners=False)
    moved = F.grid_sample(others, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return moved[:, :3], (moved[:, 3:] * 2 - 0.5).clamp(0, 1)


def _fields(count: int, height: int, width: int, uniform) -> Tensor:
    """(B, H, W): the smaller, the sooner a pixel is covered; a threshold on it gives any share exactly."""
    device = uniform(1).device
    y = torch.linspace(0, 1, height, device=device).view(1, -1, 1)
    x = torch.linspace(0, 1, width, device=device).view(1, 1, -1)

    def one() -> Tensor:
        return uniform(count).view(-1, 1, 1)

    # in from the bottom (two of five), from a side, from anywhere
    turn = torch.where(one() < 0.4, (one() - 0.5) * 0.8, one() * 2 * math.pi)
    plane = 1 - (y * turn.cos() + x * turn.sin())
    cx, cy, tilt, ratio = one(), 0.25 + 0.75 * one(), (one() - 0.5) * 1.2, torch.exp((one() - 0.5) * 2.4)
    dx, dy = (x - cx) / 2, y - cy
    along, across = dx * tilt.cos() + dy * tilt.sin(), dy * tilt.cos() - dx * tilt.sin()
    box = torch.maximum(along.abs() * ratio, across.abs() / ratio)
    ellipse = (along * ratio).square() + (across / ratio).square()
    blob = F.interpolate(uniform(count, 1, *BLOB_CELLS), size=(height, width), mode="bicubic", align_corners=False)[
        :, 0
    ]
    period = 0.15 + 0.35 * one()
    bars = ((along / period + one()) % 1.0 - 0.5).abs() + 0.3 * plane
    fields = torch.stack([plane.expand_as(blob), box, ellipse.sqrt(), blob, bars], 1)
    kind = (uniform(count) * SHAPES).long().clamp(max=SHAPES - 1)
    field = fields[torch.arange(count, device=device), kind]
    return field + 1e-4 * uniform(count, height, width)  # no plateau: a threshold would cover all of it or none


def _fills(pixels: Tensor, uniform, pieces: Tensor | None) -> Tensor:
    """(B, 3, H, W) 0..255: what the shapes are filled with."""
    count, _, height, width = pixels.shape
    other = pixels.roll(1 + int(uniform(1) * max(count - 2, 1)), 0).flip(2)
    colour = (uniform(count, 3, 1, 1) * 235 + 10).expand_as(pixels)
    light = 1 + (uniform(count, 1, 1, 1) - 0.5) * torch.linspace(-1, 1, width, device=pixels.device)
    cells = uniform(count, 3, *FILL_CELLS)
    tone = uniform(count, 3, 1, 1)
    noise = F.interpolate(0.6 * cells + 0.7 * tone - 0.15, size=(height, width), mode="bilinear", align_corners=False)
    fourth = other  # another picture twice as often, or clutter
    if pieces is not None:
        fourth = pieces[(uniform(count) * len(pieces)).long().clamp(max=len(pieces) - 1)].float()
    fills = torch.stack([other, (colour * light).clamp(0, 255), noise.clamp(0, 1) * 255, fourth], 1)
    kind = (uniform(count) * 4).long().clamp(max=3)
    return fills[torch.arange(count, device=pixels.device), kind]
