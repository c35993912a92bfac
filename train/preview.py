"""A sheet of what SPT trains on: image, saliency, donor, result, OIoU.

    dpm-edge train preview RECIPE --data DIR --out sheet.jpg [field=value …]

The saliency comes from saliency.masks, or from saliency.safetensors beside the sheet, or is trained now.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpm_edge.errors import DpmError
from dpm_edge.train.arguments import config_of, tool_parser
from dpm_edge.train.augment import flip
from dpm_edge.train.config import Config
from dpm_edge.train.data import IdentitySampler, Pictures, decode
from dpm_edge.train.run import device_of, training_set
from dpm_edge.train.saliency.person_masks import person_masks
from dpm_edge.train.start import model_spec
from dpm_edge.train.transfer import Transfer, transfer

CELL = (128, 64)
"""Height and width of a picture on the sheet."""
LINE = 16
"""Height of the line of text under a row."""


@dataclass(frozen=True)
class Example:
    """One batch before and after SPT."""

    pixels: Tensor
    """(B, 3, H, W) float 0..255."""
    masks: Tensor
    """(B, h, w) bool."""
    done: Transfer


def examples(config: Config, train: Pictures, masks: Tensor, batches: int = 1) -> list[Example]:
    """The first batches of training, with SPT as the config has it (probability 0 is taken as 1)."""
    sampler = IdentitySampler(train.labels().numpy(), config.data.identities, config.data.pictures, config.seed)
    found = []
    for number, rows in enumerate(torch.from_numpy(sampler.epoch(0))[:batches]):
        draw = torch.Generator(masks.device).manual_seed((config.seed << 32) + number)
        chosen = train.pixels[rows].to(masks.device).float()
        pixels, turned = flip(chosen, masks[rows.to(masks.device)], config.augment.flip, draw)
        found.append(Example(pixels, turned, transfer(pixels, turned, config.transfer, draw)))
    return found


def picture(pixels: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) RGB → a cell of the sheet, BGR."""
    image = pixels.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()[:, :, ::-1]
    small = cv2.resize(np.ascontiguousarray(image), CELL[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8)


def shaded(pixels: Tensor, mask: Tensor) -> NDArray[np.uint8]:
    """The picture with everything outside its mask (h, w) darkened and reddened."""
    cell = picture(pixels).astype(np.float32)
    region = cv2.resize(mask.float().cpu().numpy(), CELL[::-1], interpolation=cv2.INTER_NEAREST)[:, :, None]
    return (cell * region + (0.3 * cell + [0, 0, 70]) * (1 - region)).clip(0, 255).astype(np.uint8)


def sheet(example: Example, rows: int = 24, columns: int = 4) -> NDArray[np.uint8]:
    """Strips of image, its saliency, donor, the donor's saliency, result; OIoU and roll under each. BGR."""
    mixed = example.done.mixed.nonzero().flatten().tolist()[: rows * columns]
    strips = []
    for i in mixed:
        j = int(example.done.donor[i])
        cells = [
            picture(example.pixels[i]),
            shaded(example.pixels[i], example.masks[i]),
            picture(example.pixels[j]),
            shaded(example.pixels[j], example.masks[j]),
            picture(example.done.pixels[i]),
        ]
        strip = np.concatenate(cells, axis=1)
        line = np.full((LINE, strip.shape[1], 3), 255, np.uint8)
        text = f"OIoU {float(example.done.oiou[i]):.2f}  roll {int(example.done.roll[i])}"
        cv2.putText(line, text, (4, LINE - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        strips.append(np.pad(np.concatenate([strip, line]), ((0, 4), (0, 8), (0, 0)), constant_values=255))
    if not strips:
        return np.full((CELL[0], CELL[1], 3), 255, np.uint8)
    blank = np.full_like(strips[0], 255)
    strips += [blank] * (-len(strips) % columns)
    lines = [np.concatenate(strips[k : k + columns], axis=1) for k in range(0, len(strips), columns)]
    return np.concatenate(lines)


def main(arguments: list[str] | None = None) -> int:
    """Write the sheet and print how many pictures found a donor. Returns the exit code."""
    made = tool_parser("preview", __doc__, Path("preview.jpg"))
    made.add_argument("--rows", type=int, default=24, help="lines of four examples at most")
    options = made.parse_intermixed_args(arguments)
    try:
        config = config_of(options)
        config.transfer.probability = config.transfer.probability or 1.0
        device = device_of(config)
        pre = model_spec(config.model).preprocessing
        train = decode(training_set(config, options.data).train, pre).to(device)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        masks = person_masks(config, train, options.data, options.out.parent, device)
        example = examples(config, train, masks)[0]
    except DpmError as error:
        print(f"dpm-edge train preview: {error}", file=sys.stderr)
        return 1
    cv2.imwrite(str(options.out), sheet(example, options.rows), [cv2.IMWRITE_JPEG_QUALITY, 85])
    print(f"{int(example.done.mixed.sum())} of {len(example.pixels)} pictures stand in another's scene: {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
