"""Where the person is, from a rendered set's own masks: what saliency would have to learn, exact.

N pictures · h×w patch grid
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from dpm_edge.env import cores
from dpm_edge.errors import DataError
from dpm_edge.train.data import Pictures
from dpm_edge.train.synthetic.layout import mask_of


def label_saliency(data: Path, pictures: Pictures, grid: tuple[int, int]) -> Tensor:
    """The share of each patch that shows the person, (N, h, w) float32, for a rendered set's training pictures.

    Raises DataError where `data` keeps no masks, or a picture's is missing or damaged.
    """
    if not (data / "masks").is_dir():
        raise DataError(
            f"expected a rendered set's masks for saliency.source=labels, got {data} without masks/. Render it "
            "again into the same folder, which adds them, or set saliency.source=segmentation"
        )

    def one(name: str) -> np.ndarray | None:
        path = mask_of(data, f"bounding_box_train/{name}")
        found = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) if path.is_file() else None
        if found is None:
            return None
        return np.asarray(cv2.resize((found > 0).astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA))

    with ThreadPoolExecutor(cores()) as pool:
        shares = list(pool.map(one, pictures.names))
    missing = [name for name, share in zip(pictures.names, shares) if share is None]
    if missing:
        raise DataError(
            f"expected a mask of every picture in {data}/masks, {len(missing)} lack one, such as {missing[0]}. "
            "Render the set again"
        )
    return torch.from_numpy(np.stack([share for share in shares if share is not None]))
