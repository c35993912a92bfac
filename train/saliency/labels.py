"""Where the person is, from a rendered set's own masks: what saliency would have to learn, exact.

N pictures · h×w patch grid
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dpm_edge.env import cores
from dpm_edge.errors import DataError
from dpm_edge.train.data import Pictures
from dpm_edge.train.synthetic.layout import HIDDEN, SEEN, mask_of


def label_saliency(data: Path, pictures: Pictures, grid: tuple[int, int]) -> Tensor:
    """The share of each patch that shows the person, (N, h, w) float32, for a rendered set's training pictures.

    Raises DataError where `data` keeps no masks, or a picture's is missing or damaged.
    """
    if not (data / "masks").is_dir():
        raise DataError(
            f"expected a rendered set's masks for saliency.source=labels, got {data} without masks/. Render it "
            "again into the same folder, which adds them, or set saliency.source=segmentation"
        )

    def share(mask: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.resize((mask == SEEN).astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA))

    return torch.from_numpy(np.stack(_of_each(data, pictures, share)))


def pixel_shares(data: Path, pictures: Pictures, size: tuple[int, int]) -> Tensor:
    """(N, 2, H, W) uint8, 255 for all of a pixel: the person seen, and the person if nothing stood in front.

    A set of the first edition does not say what is hidden: there both are the same.
    Raises DataError where `data` keeps no masks, or a picture's is missing or damaged.
    """

    def both(mask: np.ndarray) -> np.ndarray:
        parts = [((mask == SEEN) * 255).astype(np.uint8), ((mask >= HIDDEN) * 255).astype(np.uint8)]
        return np.stack([cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA) for part in parts])

    if not (data / "masks").is_dir():
        raise DataError(f"expected masks in {data}, got none: render the set with dpm_edge.train.synthetic")
    return torch.from_numpy(np.stack(_of_each(data, pictures, both)))


def _of_each(data: Path, pictures: Pictures, make: Callable[[np.ndarray], np.ndarray]) -> list[np.ndarray]:
    """`make` of each training picture's mask, (H, W) uint8."""

    def one(name: str) -> np.ndarray | None:
        path = mask_of(data, f"bounding_box_train/{name}")
        found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
        return None if found is None else make(np.asarray(found))

    with ThreadPoolExecutor(cores()) as pool:
        made = list(pool.map(one, pictures.names))
    missing = [name for name, found in zip(pictures.names, made) if found is None]
    if missing:
        raise DataError(
            f"expected a mask of every picture in {data}/masks, {len(missing)} lack one, such as {missing[0]}. "
            "Render the set again"
        )
    return [found for found in made if found is not None]
