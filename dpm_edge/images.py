"""Pictures in, network input out: the only preprocessing there is, used by training, building and serving.

frame (H, W, 3) uint8, BGR unless said otherwise · boxes (N, 4) float xyxy pixels · input (N, 3, h, w) float32
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import ImageError
from dpm_edge.progress import say
from dpm_edge.spec import Preprocessing

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_INTERPOLATION = {"bilinear": 1, "bicubic": 2, "area": 3}
"""Name → OpenCV's number. OpenCV itself is imported by the functions that need it: a gallery needs none."""


def find_images(folder: Path) -> list[Path]:
    """List every picture below `folder`, sorted by path. A folder inside that cannot be read is named on stderr.

    Raises:
        ImageError: `folder` does not exist, cannot be read, or holds no picture.
    """
    kinds = ", ".join(SUFFIXES)
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing"
        raise ImageError(f"expected a folder of pictures ({kinds}) at {folder}, got {found}. Check the path")
    unreadable: list[OSError] = []
    pictures = sorted(
        path
        for here, _, names in os.walk(folder, onerror=unreadable.append)
        for path in (Path(here, name) for name in names)
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    for error in unreadable:
        if error.filename == str(folder) or not pictures:
            raise ImageError(
                f"expected a folder of pictures that may be read, got {error.filename}: {error.strerror}. "
                "Change its rights, or run as somebody who may read it"
            )
        say(f"skipped folder {error.filename}: {error.strerror}")
    if not pictures:
        raise ImageError(f"expected files ending in {kinds} below {folder}, got none. Check the path")
    return pictures


def path_text(path: Path) -> str:
    r"""Write a path as text that every file format can hold: bytes of a name that are not UTF-8 become \xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read_image(path: Path) -> NDArray[np.uint8]:
    """Read a picture file as (H, W, 3) uint8 BGR, upright; grey, alpha and 16-bit pictures are converted.

    Raises:
        ImageError: the file is missing, empty, or no picture that OpenCV can read whole.
    """
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ImageError(f"expected a picture file, got {path}: {error.strerror}") from error
    return decode_image(data, what=str(path))


def decode_image(data: bytes | NDArray[np.uint8], *, what: str = "picture") -> NDArray[np.uint8]:
    """Decode a picture file as (H, W, 3) uint8 BGR; grey, alpha and 16-bit pictures are converted.

    A picture that an EXIF orientation calls turned or mirrored is set upright, as `cv2.imread` and browsers do.

    Args:
        data: bytes, or (n,) uint8.
        what: named in errors.

    Raises:
        ImageError: the bytes are none, end too early, or are no picture that OpenCV can read whole.
    """
    from dpm_edge.opencv import cv2

    data = np.frombuffer(data, np.uint8) if isinstance(data, bytes) else data
    if data.size == 0:
        raise ImageError(f"expected a picture file, got {what}, which is empty. Copy it again")
    if data[:2].tobytes() == b"\xff\xd8" and b"\xff\xd9" not in data[-1024:].tobytes():
        raise ImageError(f"expected a whole JPEG, got {what}, which ends too early ({data.size} bytes). Copy it again")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)  # these flags honour the orientation
    except cv2.error as error:
        reason = str(error).strip().splitlines()[-1]
        raise ImageError(f"expected a picture that OpenCV can read, got {what}: {reason}") from error
    if image is None:
        raise ImageError(
            f"expected a picture that OpenCV can read ({', '.join(SUFFIXES)}), got {what} of {data.size} bytes, "
            "which is not a picture. Convert it, or copy it again"
        )
    return as_bgr(image, what=what)


def as_bgr(image: NDArray, *, color: str = "bgr", what: str = "picture") -> NDArray[np.uint8]:
    """Convert any common picture array to (H, W, 3) uint8 BGR.

    Args:
        image: (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); uint8 or uint16. Alpha is dropped, grey is repeated.
        color: order of the channels of `image`: "bgr" or "rgb".
        what: named in errors.

    Raises:
        ImageError: another shape or dtype, or an empty picture.
    """
    if color not in ("bgr", "rgb"):
        raise ImageError(f"expected color 'bgr' or 'rgb', got {color!r}. Say which comes first in your pictures")
    if not isinstance(image, np.ndarray):
        hint = ". The camera or file gave no frame" if image is None else ""
        raise ImageError(f"expected a numpy array (H, W, 3) uint8, got {what} of type {type(image).__name__}{hint}")
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.dtype != np.uint8:
        raise ImageError(f"expected uint8 (0–255) or uint16, got {what} of {image.dtype}. Scale floats to 0–255 first")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ImageError(
            f"expected (H, W, 3) with H and W above 0, got {what} of shape {image.shape}. "
            "Pass one picture, channels last"
        )
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    image = image[:, :, :3]
    return np.ascontiguousarray(image[:, :, ::-1] if color == "rgb" else image)


def clip_boxes(boxes: NDArray, frame_shape: tuple[int, ...]) -> tuple[NDArray[np.int64], list[tuple[int, str]]]:
    """Round boxes outward to whole pixels and clip them to the frame.

    Args:
        boxes: (N, 4) float, x0 y0 x1 y1 in pixels; (0, 0) is the frame's upper left corner.
        frame_shape: (H, W, …).

    Returns:
        (N, 4) int64, half-open, and the rows that cannot be used with the reason for each; such a row is all zero.

    Raises:
        ImageError: not an (N, 4) array of numbers.
    """
    try:
        boxes = np.asarray(boxes, dtype=np.float64)
    except (ValueError, TypeError) as error:
        raise ImageError(
            f"expected (N, 4) boxes in pixels, got rows that are not four numbers each ({error})"
        ) from error
    boxes = boxes if boxes.size else np.zeros((0, 4))
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ImageError(
            f"expected (N, 4) boxes in pixels, got shape {boxes.shape}. Pass x0 y0 x1 y1, one row for each person"
        )
    height, width = frame_shape[:2]
    whole = np.zeros(boxes.shape, np.int64)
    unusable = []
    for row, (x0, y0, x1, y1) in enumerate(boxes):
        if not np.isfinite(boxes[row]).all():
            unusable.append((row, f"expected finite numbers, got box {boxes[row].tolist()}, which is not finite"))
        elif x1 <= x0 or y1 <= y0:
            unusable.append(
                (row, f"expected x1 > x0 and y1 > y0, got box {boxes[row].tolist()}, which is empty. Pass x0 y0 x1 y1")
            )
        elif x0 >= 0 and y0 >= 0 and x1 <= 1 and y1 <= 1 and (x1 < 1 or y1 < 1):  # one whole pixel is a box
            unusable.append(
                (
                    row,
                    f"expected pixels, got box {boxes[row].tolist()} between 0 and 1. "
                    f"Multiply x by {width} and y by {height}",
                )
            )
        elif x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            unusable.append(
                (
                    row,
                    f"expected a box inside the frame, got {boxes[row].tolist()}, "
                    f"which lies outside the frame of {width}×{height} pixels",
                )
            )
        else:
            whole[row] = (
                max(0, math.floor(x0)),
                max(0, math.floor(y0)),
                min(width, math.ceil(x1)),
                min(height, math.ceil(y1)),
            )
    return whole, unusable


def to_network_size(image: NDArray[np.uint8], pre: Preprocessing) -> NDArray[np.uint8]:
    """Bring a crop to the network's size: `preprocess` makes the same input of the result as of the crop itself.

    Args:
        image: (H, W, 3) uint8 BGR, any size.
        pre: size and interpolation.

    Returns:
        (height, width, 3) uint8 BGR.
    """
    from dpm_edge.opencv import cv2

    small = cv2.resize(image, (pre.width, pre.height), interpolation=_INTERPOLATION[pre.interpolation])
    return np.asarray(small, np.uint8)


def resize(image: NDArray[np.uint8], pre: Preprocessing) -> NDArray[np.uint8]:
    """Bring a crop to the network's size and channel order, still in bytes; `pre.affine()` does the rest.

    Args:
        image: (H, W, 3) uint8 BGR, any size.
        pre: size, channel order and interpolation.

    Returns:
        (height, width, 3) uint8; its channels may be a view in reverse.
    """
    small = to_network_size(image, pre)
    return small[:, :, ::-1] if pre.color == "rgb" else small


def preprocess(
    images: Sequence[NDArray[np.uint8]], pre: Preprocessing, out: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Turn crops into the network's input.

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
        raise ImageError(f"expected out of shape {shape}, got {batch.shape}")
    scale, shift = np.asarray(pre.affine(), np.float32)
    for row, image in enumerate(images):
        small = resize(image, pre)
        for channel in range(3):
            plane = batch[row, channel]
            np.multiply(small[:, :, channel], scale[channel], out=plane, casting="unsafe")
            plane += shift[channel]
    return batch


def chunks(count: int, size: int) -> Iterator[slice]:
    """Cover `count` rows in order by slices of at most `size`."""
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))
