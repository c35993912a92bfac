"""Pictures, frames and boxes as callers bring them: which lie on a GPU, which boxes can be used.

frame (H, W, 3) uint8, numpy or on a GPU · boxes (N, 4) float xyxy pixels
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from dpm_edge import images as pictures
from dpm_edge.errors import ImageError
from dpm_edge.runtime.embeddings import Embeddings

ON_GPU = (2, 13)
"""DLPack's device types of CUDA memory: plain and managed."""


class Boxed(NamedTuple):
    """A frame and those of its boxes that can be used."""

    frame: Any
    """(H, W, 3) uint8: numpy in BGR, or as it came where it lies on a GPU."""
    color: str
    """Channel order of `frame`."""
    boxes: NDArray[np.int64]
    """(n, 4) int64, inside the frame."""
    rows: list[int]
    """Which of the caller's boxes each one is."""
    skipped: list[tuple[int, str]]
    """(row, reason) of the others."""

    @property
    def on_gpu(self) -> bool:
        """Whether the frame lies on a GPU."""
        return not isinstance(self.frame, np.ndarray)


def is_on_gpu(array: Any) -> bool:
    """Whether an array of another library lies in CUDA memory."""
    if hasattr(array, "__cuda_array_interface__"):
        return True
    device = getattr(array, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in ON_GPU


def read_pictures(images: Any, color: str) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """The pictures (H, W, 3) uint8 BGR that a caller brings, and where each comes from.

    Args:
        images: pictures or paths of picture files, in any sequence; one array (N, H, W, 3); one picture; or one path.
        color: channel order of the arrays; files are read as they are.

    Returns:
        N pictures; and N paths, "" for an array, or no path at all where everything is an array.

    Raises:
        ImageError: something is no picture, or a file cannot be read; the message has its number.
    """
    if isinstance(images, (str, Path)) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise ImageError(f"expected pictures (N, H, W, 3) or a list of pictures, got an array {images.shape}")
    if isinstance(images, (bytes, dict)) or not isinstance(images, Iterable):
        raise ImageError(f"expected pictures (H, W, 3) uint8 or paths, got {_named(images)}")
    found, paths = [], []
    for row, image in enumerate(images):
        if isinstance(image, (str, Path)):
            try:
                found.append(pictures.read_image(Path(image)))
            except ImageError as error:
                raise ImageError(f"image {row}: {error}") from error
            paths.append(str(image))
        else:
            found.append(pictures.as_bgr(image, color=color, what=f"image {row}"))
            paths.append("")
    return found, paths if any(paths) else []


def boxed(frame: Any, boxes: Any, color: str) -> Boxed:
    """Check a frame, or read its file, and clip its boxes to it.

    Raises:
        ImageError: the frame is no single picture, or the boxes are no (N, 4) numbers in pixels.
    """
    if isinstance(frame, (str, Path)):
        frame, color = pictures.read_image(Path(frame)), "bgr"
    elif isinstance(frame, np.ndarray) and frame.ndim != 4:
        frame, color = pictures.as_bgr(frame, color=color, what="the frame"), "bgr"
    elif isinstance(frame, np.ndarray) or not is_on_gpu(frame):
        raise ImageError(
            f"expected one frame (H, W, 3) uint8 with boxes, got {_named(frame)}. Call embed once per frame"
        )
    elif len(frame.shape) != 3 or frame.shape[2] != 3 or 0 in tuple(frame.shape):
        raise ImageError(f"expected a frame (H, W, 3) on the GPU, got {tuple(frame.shape)}")
    whole, skipped = pictures.clip_boxes(_in_pixels(boxes, frame.shape), tuple(frame.shape))
    unusable = {row for row, _ in skipped}
    rows = [row for row in range(len(whole)) if row not in unusable]
    return Boxed(frame, color, whole[rows], rows, skipped)


def _in_pixels(boxes: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Boxes as numbers, (N, 4) or none; those that are fractions of the frame are refused.

    Raises:
        ImageError: text, rows of different lengths, another shape, or nothing but fractions.
    """
    try:
        numbers = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise ImageError(f"expected (N, 4) boxes in pixels, got {_named(boxes)} ({error}). Pass x0 y0 x1 y1") from error
    if numbers.size == 0:
        return np.zeros((0, 4))
    if numbers.ndim != 2 or numbers.shape[1] != 4:
        raise ImageError(f"expected (N, 4) boxes in pixels, got {numbers.shape}. Pass x0 y0 x1 y1 for each person")
    known = numbers[np.isfinite(numbers).all(axis=1)]
    if known.size and min(shape[:2]) > 1 and known.min() >= 0 and known.max() <= 1:
        raise ImageError(
            "expected boxes in pixels, got fractions of the frame (all of them lie in 0..1). Multiply x by "
            f"{shape[1]} and y by {shape[0]}"
        )
    return numbers


def _named(value: Any) -> str:
    """What came, in a few words."""
    if value is None:
        return "None (a camera or a file that gave no picture?)"
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" if shape is None else f"a {type(value).__name__} {tuple(shape)}"


Nearest = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Positions of rows and the kernel's scores, (n, k) each, falling; −1 and −inf where nothing is left."""


class SearchedRows(Protocol):
    """Rows of a gallery that lie on a GPU."""

    def enqueue(self, feature: Any, mask: Any, k: int, keep: NDArray[np.bool_] | None, stream: int) -> None:
        """Search for queries that lie there, (n, D) float32, behind what `stream` holds.

        keep: (N,) bool, rows that may be found; None: all.
        """

    def collect(self) -> Nearest:
        """What `enqueue` found, once its stream was waited for."""


class SearchBehind:
    """A search that an engine enqueues behind its network, once for each batch of the boxes."""

    def __init__(self, rows: SearchedRows, k: int, keep: NDArray[np.bool_] | None) -> None:
        self._rows, self._k, self._keep = rows, k, keep
        self._parts: list[Nearest] = []

    def enqueue(self, feature: Any, mask: Any, stream: int) -> None:
        """Arguments as of `SearchedRows`."""
        self._rows.enqueue(feature, mask, self._k, self._keep, stream)

    def collect(self) -> None:
        """Keep what was found for this batch; the stream was waited for."""
        self._parts.append(self._rows.collect())

    @property
    def nearest(self) -> Nearest:
        """Of all boxes, in their order."""
        if not self._parts:
            return np.full((0, self._k), -1, np.int64), np.full((0, self._k), -np.inf, np.float32)
        rows, scores = zip(*self._parts)
        return np.concatenate(rows), np.concatenate(scores)


class FrameQueries:
    """The people in some boxes of one frame. `Gallery.search` takes it in place of Embeddings."""

    def __init__(
        self, fingerprint: str, dimension: int, has_masks: bool, place: str, count: int,
        run: Callable[[SearchBehind | None], Embeddings],
    ) -> None:  # fmt: skip
        """For `Engine.search`; `run` embeds the boxes."""
        self.fingerprint = fingerprint
        self.dimension = dimension
        self.has_masks = has_masks
        """As `Embeddings.has_masks`."""
        self.place = place
        """Where the engine can search behind its network: "cuda:0"; "" for nowhere."""
        self.embeddings: Embeddings | None = None
        """What `embed` gave last."""
        self._count, self._run = count, run

    def __len__(self) -> int:
        return self._count

    def lies_with(self, place: str) -> bool:
        """Whether a gallery's rows at `place` lie on the GPU that embeds these queries."""
        return place != "" and place == self.place

    def embed(self, search: SearchBehind | None = None) -> Embeddings:
        """Embed the boxes, and search behind the network.

        Raises:
            ImageError, EngineError: as `Engine.embed`.
        """
        self.embeddings = self._run(search)
        return self.embeddings
