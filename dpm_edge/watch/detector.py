"""Find people in pictures with the detector that ships: NanoDet-g, in OpenVINO or ONNX Runtime.

    detector = Detector.load()
    boxes, scores = detector(frame)

The network answers for each position of three grids (strides 8, 16 and 32 pixels) with the probability of a person and,
for each side of its box, a distribution over distances of 0 to 10 strides, whose mean is the distance (Generalized
Focal Loss, arXiv 2006.04388). Boxes that overlap a better one by half are dropped.

frame (H, W, 3) · N people · P positions of the three grids
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from dpm_edge import shipped
from dpm_edge.errors import EngineError, ImageError
from dpm_edge.watch.detector_graph import Graph, open_graph
from dpm_edge.watch.overlap import iou

MODEL = shipped.ASSETS / "nanodet-g.onnx"
STRIDES = (8, 16, 32)
SIDES, BINS = 4, 11
MEAN, STD = np.array([[103.53, 116.28, 123.675], [57.375, 57.12, 58.395]], np.float32)
"""Of BGR values in 0..255, as the network was trained."""
AREA = 416 * 416
"""Pixels of an input: NanoDet-g was trained on 416 × 416."""
KEPT_SIZES = 4
OVERLAP = 0.5
MOST = 300
"""Boxes of one frame at most, the best ones."""

Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]
Network = Callable[[NDArray[np.float32]], Outputs]
"""Picture (1, 3, h, w) → scores (P,) and logits of the bins (P, 4 · 11)."""


class Detector:
    """A person detector. Any number of threads may call it."""

    def __init__(
        self,
        open_network: Callable[[tuple[int, int]], Network],
        backend: str,
        size: tuple[int, int] | None,
        least: float,
    ) -> None:
        """Use `Detector.load`."""
        self._open, self.backend, self.size, self.least = open_network, backend, size, least
        self._networks: dict[tuple[int, int], Network] = {}
        self._lock = Lock()

    def __repr__(self) -> str:
        size = f"{self.size[0]}×{self.size[1]}" if self.size else "size by the frame"
        return f"Detector({self.backend}, {size}, scores from {self.least:g})"

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        *,
        threads: int | None = None,
        backend: str | None = None,
        size: tuple[int, int] | None = None,
        least: float = 0.1,
        precision: str = "fp32",
    ) -> Detector:
        """Open the detector that ships, or another file of the same network.

        Args:
            path: an ONNX file with the input `image` and the outputs `scores` and `bins`; None: the one that ships.
            threads: cores for one picture; None leaves it to the library.
            backend: "openvino" or "onnxruntime"; None: OpenVINO where it is installed.
            size: width and height that frames are stretched to, multiples of 32; None: about 416 × 416 pixels in the
                shape of the frame, 480 × 352 for 4:3 and 544 × 320 for 16:9. A larger size finds smaller people and
                takes more time, in proportion to its area.
            least: the lowest score of a box, in 0..1. A tracker makes use of low ones; to count people, take 0.4.
            precision: as `open_graph` takes it.

        Raises:
            EngineError: the file is missing or is not this network, or an argument is out of range.
            MissingLibrary: neither OpenVINO nor ONNX Runtime is installed.
        """
        path = MODEL if path is None else Path(path)
        if not path.is_file():
            raise EngineError(f"expected a detector's ONNX file, got {path}, which is not there. Leave the path out")
        if size is not None and (len(size) != 2 or any(side < 32 or side % 32 for side in size)):
            raise EngineError(f"expected a width and height that are multiples of 32, got {size}. Try (416, 416)")
        if not 0 < least < 1:
            raise EngineError(f"expected a least score above 0 and below 1, got {least}. Try 0.1")
        if threads is not None and threads < 1:
            raise EngineError(f"expected 1 thread or more, got {threads}. Leave threads out for the library's choice")
        graph = open_graph(path, threads=threads, backend=backend, precision=precision)
        detector = cls(partial(_network, graph), graph.backend, size, least)
        detector.network(size or fitting_size(640, 480))
        return detector

    def network(self, size: tuple[int, int]) -> Network:
        """The network for inputs of that width and height, compiled at its first use; the last few are kept."""
        with self._lock:
            network = self._networks.pop(size, None) or self._checked(self._open(size), size)
            self._networks[size] = network
            while len(self._networks) > KEPT_SIZES:
                self._networks.pop(next(iter(self._networks)))
            return network

    def __call__(self, image: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Find the people of one picture.

        Args:
            image: (H, W, 3) uint8 BGR.

        Returns:
            Boxes (N, 4) float32, x0 y0 x1 y1 in the picture's pixels, inside it, and scores (N,) float32, falling.

        Raises:
            ImageError: it is no such picture.
        """
        checked_frame(image)
        frame = image.shape[1], image.shape[0]
        size = self.size or fitting_size(*frame)
        scores, bins = self.network(size)(network_input(image, size))
        return decode(scores, bins, size, frame, self.least)

    @staticmethod
    def _checked(network: Network, size: tuple[int, int]) -> Network:
        """Refuse a network whose outputs are others, by a grey picture."""
        positions = len(grids(size)[1])
        try:
            scores, bins = network(np.zeros((1, 3, size[1], size[0]), np.float32))
        except Exception as error:  # the libraries' errors share no base class
            raise EngineError(
                f"expected the network of NanoDet-g, got one that does not run: {str(error).strip()[:200]}"
            ) from error
        if (scores.shape, bins.shape) != ((positions,), (positions, SIDES * BINS)):
            raise EngineError(
                f"expected outputs scores {(positions,)} and bins {(positions, SIDES * BINS)}, got {scores.shape} and "
                f"{bins.shape}. Make the file with: python -m dpm_edge.watch.make_detector"
            )
        return network


def checked_frame(image: NDArray[np.uint8]) -> None:
    """Refuse what is no picture (H, W, 3) uint8 BGR.

    Raises:
        ImageError: it is none.
    """
    shape = getattr(image, "shape", None)
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ImageError(
            f"expected a picture (H, W, 3) uint8 BGR, got {type(image).__name__} {shape} "
            f"{getattr(image, 'dtype', '')}. Read it with cv2.imread or take frames of cv2.VideoCapture"
        )
    if not image.size:
        raise ImageError(f"expected a picture with pixels, got {shape}. Check the camera or the crop")


def fitting_size(width: int, height: int) -> tuple[int, int]:
    """Width and height of the input for frames of that size: their shape, 3:1 at most, and about 416 × 416 pixels."""
    shape = min(max(width / height, 1 / 3), 3)
    low = max(32, 32 * round(math.sqrt(AREA / shape) / 32))
    return max(32, 32 * round(AREA / low / 32)), low


def network_input(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.float32]:
    """Stretch a picture (H, W, 3) uint8 BGR to the network's input, (1, 3, h, w) float32."""
    from dpm_edge.opencv import cv2

    shrinks = image.shape[1] > size[0] and image.shape[0] > size[1]
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    scaled = np.empty((1, 3, *small.shape[:2]), np.float32)
    for channel, plane in enumerate(cv2.split(small)):  # over a last axis of three numpy is many times slower
        np.subtract(plane, MEAN[channel], out=scaled[0, channel])
        scaled[0, channel] /= STD[channel]
    return scaled


def decode(
    scores: NDArray[np.float32], bins: NDArray[np.float32], size: tuple[int, int], frame: tuple[int, int], least: float
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes (N, 4) and scores (N,) in a frame, out of scores (P,) and logits of the bins (P, 44).

    Args:
        scores, bins: what the network gave for an input of width and height `size`.
        frame: the picture's width and height.
        least: lowest score that is kept.
    """
    centres, strides = grids(size)
    at = np.flatnonzero(scores >= least)
    at = at[np.argsort(-scores[at], kind="stable")][: 4 * MOST]
    logits = bins[at].reshape(-1, SIDES, BINS)
    share = np.exp(logits - logits.max(-1, keepdims=True))
    distance = (share @ np.arange(BINS, dtype=np.float32)) / share.sum(-1) * strides[at, None]
    scale = np.array([frame[0] / size[0], frame[1] / size[1]], np.float32)
    limit = np.array(frame, np.float32)
    low = np.clip((centres[at] - distance[:, :2]) * scale, 0, limit)
    high = np.clip((centres[at] + distance[:, 2:]) * scale, 0, limit)
    boxes = np.concatenate([low, high], axis=1).astype(np.float32)
    kept = best_boxes(boxes, scores[at])
    return boxes[kept], scores[at][kept].astype(np.float32)


@lru_cache(maxsize=16)
def grids(size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Centres (P, 2) in pixels and strides (P,) of the positions of an input of that width and height."""
    centres, strides = [], []
    for stride in STRIDES:
        x, y = np.meshgrid(np.arange(size[0] // stride), np.arange(size[1] // stride))
        centres.append((np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) * stride)
        strides.append(np.full(x.size, stride))
    return np.concatenate(centres).astype(np.float32), np.concatenate(strides).astype(np.float32)


def best_boxes(boxes: NDArray[np.float32], scores: NDArray[np.float32], overlap: float = OVERLAP) -> NDArray[np.int64]:
    """Indices of the boxes that no better box overlaps by more than `overlap` (non-maximum suppression), best first.

    Empty boxes are left out, and so are those after the first MOST.
    """
    order = np.argsort(-scores, kind="stable")
    order = order[(boxes[order, 2] > boxes[order, 0]) & (boxes[order, 3] > boxes[order, 1])]
    shared = iou(boxes[order], boxes[order])
    alive, kept = np.ones(len(order), bool), []
    for i in range(len(order)):
        if alive[i]:
            kept.append(i)
            alive[i:] &= shared[i, i:] <= overlap
    return order[np.array(kept[:MOST], np.int64)]


def _network(graph: Graph, size: tuple[int, int]) -> Network:
    """The network for inputs of that width and height."""
    run = graph.fix({"image": (1, 3, size[1], size[0])})

    def scores_and_bins(image: NDArray[np.float32]) -> Outputs:
        found = run({"image": image})
        return found["scores"][0], found["bins"][0]

    return scores_and_bins
