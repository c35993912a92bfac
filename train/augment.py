"""Augmentations of a whole batch at once, on the device where the batch is; every picture draws its own values.

B pictures · H×W. Pixels are float32 0..255, (B, 3, H, W). Sources: flip, pad and crop, random erasing as in DPM
(arXiv 2207.09046); random erasing: Zhong et al., AAAI 2020 (arXiv 1708.04896). The rest is ours, for small sets.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.errors import SpecError
from dpm_edge.model.network import DPM
from dpm_edge.model.stem import ConvStem
from dpm_edge.train.config import AugmentConfig
from dpm_edge.train.data import by_channel

ERASED_AREA = (0.02, 0.4)
ERASED_ASPECT = (0.3, 3.33)
GREY = (0.299, 0.587, 0.114)
REFERENCE_HEIGHT = 256
BLACK, WHITE = (0.0, 45.0), (140.0, 255.0)
"""Where a picture's 2nd and 98th percentile may be moved to."""
CONCENTRATION, LEAST_SPREAD = 0.1, 1e-3
"""MixStyle's Beta distribution, and a floor under a channel's standard deviation."""


def uniform(count: int, low: float, high: float, draw: torch.Generator) -> Tensor:
    """(count,) float32 on draw's device."""
    return torch.rand(count, generator=draw, device=draw.device) * (high - low) + low


def flip(pixels: Tensor, masks: Tensor, probability: float, draw: torch.Generator) -> tuple[Tensor, Tensor]:
    """Mirror some pictures (B, 3, H, W) together with their patch masks (B, h, w)."""
    turned = uniform(len(pixels), 0, 1, draw) < probability
    pixels = torch.where(turned[:, None, None, None], pixels.flip(3), pixels)
    return pixels, torch.where(turned[:, None, None], masks.flip(2), masks)


def augment(pixels: Tensor, config: AugmentConfig, draw: torch.Generator) -> Tensor:
    """Everything but the flip: zoom and shifted crop, blur, colour, noise, random erasing. Shape kept."""
    return photograph(shift_and_zoom(pixels, config, draw), config, draw)


def photograph(pixels: Tensor, config: AugmentConfig, draw: torch.Generator) -> Tensor:
    """What does not move anything: blur, colour, levels, sharpening, noise, random erasing. Shape kept."""
    if config.blur:
        pixels = _coarser(pixels, config, draw)
    if config.colour or config.grey:
        pixels = _recolour(pixels, config, draw)
    if config.levels:
        pixels = _set_levels(pixels, config.levels, draw)
    if config.sharpen:
        pixels = _sharpen(pixels, config.sharpen, draw)
    if config.noise:
        strength = uniform(len(pixels), 0, config.noise, draw)[:, None, None, None]
        pixels = pixels + strength * torch.randn(pixels.shape, generator=draw, device=draw.device)
    pixels = pixels.clamp(0, 255)
    return _erase(pixels, config.erase, draw) if config.erase else pixels


def shift_and_zoom(pixels: Tensor, config: AugmentConfig, draw: torch.Generator) -> Tensor:
    """Pad with black and crop at a random place, whole pixels unless zoomed; one bilinear resampling. Any channels."""
    count, _, height, width = pixels.shape
    pad = round(config.pad * height / REFERENCE_HEIGHT)
    if not pad and not config.scale:
        return pixels
    shift = torch.randint(-pad, pad + 1, (2, count), generator=draw, device=draw.device).float()
    zoom = uniform(count, 1 - config.scale, 1 + config.scale, draw)
    zero = torch.zeros_like(zoom)
    across = torch.stack([zoom, zero, 2 * shift[0] / width], 1)
    down = torch.stack([zero, zoom, 2 * shift[1] / height], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _coarser(pixels: Tensor, config: AugmentConfig, draw: torch.Generator) -> Tensor:
    """Reduce the resolution of some pictures, each by one of `config.coarser`, and bring them back to their size."""
    count, size = len(pixels), pixels.shape[2:]
    chosen = uniform(count, 0, 1, draw) < config.blur
    which = uniform(count, 0, len(config.coarser), draw).long()
    for number, factor in enumerate(config.coarser):
        small = max(1, round(size[0] / factor)), max(1, round(size[1] / factor))
        made = F.adaptive_avg_pool2d(pixels, small)
        made = F.interpolate(made, size=size, mode="bilinear", align_corners=False)
        pixels = torch.where((chosen & (which == number))[:, None, None, None], made, pixels)
    return pixels


def _recolour(pixels: Tensor, config: AugmentConfig, draw: torch.Generator) -> Tensor:
    """Channel gains, brightness, contrast, saturation by 1 ± colour (gains by half of it); then some go grey."""
    count, strength = len(pixels), config.colour

    def factor(part: float) -> Tensor:
        return uniform(count, 1 - strength * part, 1 + strength * part, draw)[:, None, None, None]

    weights = by_channel(GREY, pixels.device)
    gains = torch.rand((count, 3, 1, 1), generator=draw, device=draw.device) * strength + 1 - strength / 2
    pixels = pixels * gains * factor(1.0)
    mean = (pixels * weights).sum(1, keepdim=True).mean((2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * factor(1.0)
    grey = (pixels * weights).sum(1, keepdim=True)
    saturation = torch.where(uniform(count, 0, 1, draw)[:, None, None, None] < config.grey, 0.0, factor(1.0))
    return grey + (pixels - grey) * saturation


def _set_levels(pixels: Tensor, probability: float, draw: torch.Generator) -> Tensor:
    """Move the 2nd and 98th percentile of some pictures' luminance to BLACK and WHITE, each drawn anew."""
    count = len(pixels)
    grey = (pixels[:, :, ::4, ::4] * by_channel(GREY, pixels.device)).sum(1).flatten(1).sort(dim=1).values
    low, high = (grey[:, round(part * (grey.shape[1] - 1))] for part in (0.02, 0.98))
    black, white = uniform(count, *BLACK, draw), uniform(count, *WHITE, draw)
    gain = (white - black) / (high - low).clamp(min=20)
    moved = (pixels - low[:, None, None, None]) * gain[:, None, None, None] + black[:, None, None, None]
    chosen = uniform(count, 0, 1, draw) < probability
    return torch.where(chosen[:, None, None, None], moved, pixels)


def _sharpen(pixels: Tensor, most: float, draw: torch.Generator) -> Tensor:
    """Unsharp masking by up to `most` over a 3×3 mean, in half of the pictures."""
    amount = uniform(len(pixels), -most, most, draw).clamp(min=0)[:, None, None, None]
    padded = F.pad(pixels, (1, 1, 1, 1), mode="replicate")
    return pixels + amount * (pixels - F.avg_pool2d(padded, 3, 1))


def _erase(pixels: Tensor, probability: float, draw: torch.Generator) -> Tensor:
    """Random erasing with pixel noise: one box of 2–40 % of the area, aspect 0.3–3.33, in some pictures."""
    count, _, height, width = pixels.shape
    area = uniform(count, *ERASED_AREA, draw) * height * width
    aspect = torch.exp(uniform(count, math.log(ERASED_ASPECT[0]), math.log(ERASED_ASPECT[1]), draw))
    tall = (area * aspect).sqrt().round().clamp(1, height - 1)
    wide = (area / aspect).sqrt().round().clamp(1, width - 1)
    top = (uniform(count, 0, 1, draw) * (height - tall + 1)).floor()
    left = (uniform(count, 0, 1, draw) * (width - wide + 1)).floor()
    y = torch.arange(height, device=pixels.device).view(1, -1, 1)
    x = torch.arange(width, device=pixels.device).view(1, 1, -1)
    (t, a), (b, c) = ((v.view(-1, 1, 1) for v in pair) for pair in ((top, tall), (left, wide)))
    inside = (y >= t) & (y < t + a) & (x >= b) & (x < b + c)
    inside &= (uniform(count, 0, 1, draw) < probability).view(-1, 1, 1)
    noise = (torch.randn(pixels.shape, generator=draw, device=draw.device) * 64 + 127).clamp(0, 255)
    return torch.where(inside.unsqueeze(1), noise, pixels)


def mix_styles(net: DPM, config: AugmentConfig) -> None:
    """Have a network's stem mix styles while it trains, as `config.mix_style` says.

    Raises:
        SpecError: it has no convolutional stem.
    """
    if not config.mix_style:
        return
    if not isinstance(net.backbone.conv1, ConvStem):
        raise SpecError(
            f"expected a model with a convolutional stem for augment.mix_style={config.mix_style:g}, got "
            f"{net.spec.name!r}. Set augment.mix_style=0"
        )
    net.backbone.conv1.mixing = partial(mixed_style, probability=config.mix_style)


def mixed_style(features: Tensor, probability: float) -> Tensor:
    """Give some pictures' channels (B, c, h, w) a mean and a spread between their own and another picture's.

    MixStyle (arXiv 2104.02008): the share of their own is drawn from Beta(0.1, 0.1). Draws from torch's own generator.
    """
    values, shape = features.float(), (len(features), 1, 1, 1)
    spread, mean = torch.std_mean(values.detach(), (2, 3), keepdim=True)
    spread = spread + LEAST_SPREAD
    concentration = torch.full(shape, CONCENTRATION, device=values.device)
    own = torch.distributions.Beta(concentration, concentration).sample()
    own = torch.where(torch.rand(shape, device=values.device) < probability, own, 1.0)
    other = torch.randperm(len(values), device=values.device)
    to_spread, to_mean = own * spread + (1 - own) * spread[other], own * mean + (1 - own) * mean[other]
    return ((values - mean) / spread * to_spread + to_mean).to(features.dtype)
