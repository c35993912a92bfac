"""Pictures in, network input out: the only preprocessing there is, used by training, building and serving.

frame (H, W, 3) uint8, BGR unless said otherwise · boxes (N, 4) float xyxy pixels · input (N, 3, h, w) float32
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import ImageError
from dpm_edge.spec import Preprocessing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "area": cv2.INTER_AREA, "bicubic": cv2.INTER_CUBIC}


def find_images(folder: Path) -> list[Path]:
    """Every picture below `folder`, sorted by path.

    Raises:
        ImageError: the folder does not exist or holds no picture.
    """
    if not folder.is_dir():
        raise ImageError(f"{folder} is not a folder; a folder of pictures ({', '.join(SUFFIXES)}) is wanted")
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not found:
        raise ImageError(f"{folder} holds no picture; files ending in {', '.join(SUFFIXES)} are wanted")
    return found


def read_image(path: Path) -> NDArray[np.uint8]:
    """A picture file as (H, W, 3) uint8 BGR; grey, alpha and 16-bit pictures are converted.

    Raises:
        ImageError: the file is missing, empty, or no picture that OpenCV can read whole.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}") from error
    return decode_image(data, what=str(path))


def decode_image(data: bytes | NDArray[np.uint8], *, what: str = "picture") -> NDArray[np.uint8]:
    """The bytes of a picture file as (H, W, 3) uint8 BGR; grey, alpha and 16-bit pictures are converted.

    Args:
        data: bytes, or (n,) uint8.
        what: named in errors.

    Raises:
        ImageError: the bytes are none, end too early, or are no picture that OpenCV can read whole.
    """
    data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    if data.size == 0:
        raise ImageError(f"{what} is empty")
    if data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data[-1024:].tobytes():
        raise ImageError(f"{what} is a JPEG that ends too early ({data.size} bytes); copy it again")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise ImageError(f"{what} cannot be decoded: {error}") from error
    if image is None:
        raise ImageError(f"{what} is not a picture that OpenCV can read ({data.size} bytes)")
    return as_bgr(image, what=what)


def as_bgr(image: NDArray, *, color: str = "bgr", what: str = "picture") -> NDArray[np.uint8]:
    """Any common picture array as (H, W, 3) uint8 BGR.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8 or uint16. Alpha is dropped, grey is repeated.
        color: order of the channels of `image`: "bgr" or "rgb".
        what: named in errors.

    Raises:
        ImageError: another shape or dtype, or an empty picture.
    """
    if color not in ("bgr", "rgb"):
        raise ImageError(f"color is {color!r}; 'bgr' or 'rgb' is wanted")
    if not isinstance(image, np.ndarray):
        raise ImageError(f"{what} is a {type(image).__name__}; a numpy array (H, W, 3) uint8 is wanted")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(f"{what} is {image.dtype}; uint8 (0–255) or uint16 is wanted. Scale floats to 0–255 first")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ImageError(f"{what} has shape {image.shape}; (H, W, 3) with H and W above 0 is wanted")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    image = image[:, :, :3]
    return np.ascontiguousarray(image[:, :, ::-1] if color == "rgb" else image)


def clip_boxes(boxes: NDArray, frame_shape: tuple[int, ...]) -> tuple[NDArray[np.int64], list[tuple[int, str]]]:
    """Boxes rounded outward to whole pixels and clipped to the frame.

    Args:
        boxes: (N, 4) float, x0 y0 x1 y1 in pixels; (0, 0) is the frame's upper left corner.
        frame_shape: (H, W, …).

    Returns:
        (N, 4) int64, half-open, and the rows that cannot be used with the reason for each; such a row is all zero.

    Raises:
        ImageError: not an (N, 4) array of numbers.
    """
    boxes = np.asarray(boxes, dtype=np.float64) if np.size(boxes) else np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ImageError(f"boxes have shape {boxes.shape}; (N, 4) is wanted: x0 y0 x1 y1 in pixels")
    height, width = frame_shape[:2]
    whole = np.zeros(boxes.shape, np.int64)
    unusable = []
    for row, (x0, y0, x1, y1) in enumerate(boxes):
        if not np.isfinite(boxes[row]).all():
            unusable.append((row, f"box {boxes[row].tolist()} is not finite"))
        elif x1 <= x0 or y1 <= y0:
            unusable.append((row, f"box {boxes[row].tolist()} is empty: x1 > x0 and y1 > y0 are wanted"))
        elif x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            unusable.append((row, f"box {boxes[row].tolist()} lies outside the frame of {width}×{height} pixels"))
        else:
            whole[row] = (
                max(0, math.floor(x0)),
                max(0, math.floor(y0)),
                min(width, math.ceil(x1)),
                min(height, math.ceil(y1)),
            )
    return whole, unusable


def resize(image: NDArray[np.uint8], pre: Preprocessing) -> NDArray[np.uint8]:
    """Bring a crop to the network's size and channel order, still in bytes; `pre.affine()` does the rest.

    Args:
        image: (H, W, 3) uint8 BGR, any size.
        pre: size, channel order and interpolation.

    Returns:
        (height, width, 3) uint8; its channels may be a view in reverse.
    """
    small = cv2.resize(image, (pre.width, pre.height), interpolation=_INTERPOLATION[pre.interpolation])
    return np.asarray(small[:, :, ::-1] if pre.color == "rgb" else small, np.uint8)


def preprocess(
    images: Sequence[NDArray[np.uint8]], pre: Preprocessing, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Crops to the network's input.

    Args:
        images: N pictures, each (H, W, 3) uint8 BGR, any size.
        pre: size, channel order, mean, std and interpolation.
        out: (N, 3, height, width) float32 to write into; a new array without one.

    Returns:
        (N, 3, height, width) float32, contiguous; `out` where it was given.
    """
    shape = (len(images), 3, pre.height, pre.width)
    batch = np.empty(shape, np.float32) if out is None else out
    if batch.shape != shape:
        raise ImageError(f"out has shape {batch.shape}; {shape} is wanted")
    scale, shift = np.asarray(pre.affine(), np.float32)
    for row, image in enumerate(images):
        small = resize(image, pre)
        for channel in range(3):
            plane = batch[row, channel]
            np.multiply(small[:, :, channel], scale[channel], out=plane, casting="unsafe")
            plane += shift[channel]
    return batch


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover `count` rows in order."""
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))
