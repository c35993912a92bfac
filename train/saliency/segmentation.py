"""Where the person is, from a small segmentation network that ships with the package: no training, real pictures.

MediaPipe Selfie Segmentation (Apache-2.0, see NOTICE), run by OpenCV. It tells foreground people from background; a
passer-by in front of the person counts as person.

N pictures · h×w patch grid
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpm_edge.errors import MissingLibrary
from dpm_edge.shipped import ASSETS
from dpm_edge.train.data import Pictures
from dpm_edge.train.status import counted

NETWORK = ASSETS / "selfie_segmentation.tflite"
SIDE = 256
"""Height and width of the network's input, pixels."""


def segmenter() -> cv2.dnn.Net:
    """The network. Raises MissingLibrary where OpenCV is too old to read it."""
    if not hasattr(cv2.dnn, "readNetFromTFLite"):
        raise MissingLibrary("opencv-python>=4.9", "saliency.source=segmentation", "pip install -U opencv-python")
    return cv2.dnn.readNetFromTFLite(str(NETWORK))


def person_shares(picture: NDArray[np.uint8], net: cv2.dnn.Net, grid: tuple[int, int]) -> NDArray[np.float32]:
    """How much of each patch shows a person: picture (H, W, 3) uint8 RGB → (h, w) float32 in 0..1."""
    net.setInput(cv2.dnn.blobFromImage(picture, 1 / 255, (SIDE, SIDE)))
    likely = np.squeeze(net.forward())
    person = (likely > 0.5).astype(np.float32)
    return np.asarray(cv2.resize(person, grid[::-1], interpolation=cv2.INTER_AREA), np.float32)


def segmented_saliency(pictures: Pictures, grid: tuple[int, int], quiet: bool = False) -> Tensor:
    """The share of each patch that shows a person, (N, h, w) float32, on the CPU. Raises as `segmenter`."""
    net = segmenter()
    shares = [
        person_shares(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()), net, grid)
        for pixels in counted(pictures.pixels, what="people segmented", total=len(pictures), quiet=quiet)
    ]
    return torch.from_numpy(np.stack(shares))
