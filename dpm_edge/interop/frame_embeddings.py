"""What every tracker's adapter does: embed the boxes of a frame, one row for each box, whatever could be embedded.

n boxes · D feature dimensions
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import ImageError
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.engine import Engine


def embed_boxes(
    engine: Engine, frame: Any, boxes: Any, *, color: str = "bgr"
) -> tuple[NDArray[np.float32], Embeddings]:
    """Embed a frame's boxes.

    Args:
        engine: any engine.
        frame: (H, W, 3) uint8.
        boxes: (n, 4) x0 y0 x1 y1 in pixels; numpy, a list, or a tensor (`as_numpy`).
        color: channel order of the frame, "bgr" or "rgb".

    Returns:
        Features (n, D) float32 of norm 1, zeros for a box outside the frame, as trackers want a row for each of theirs;
        and the embeddings, whose `rows` say which boxes they are.

    Raises:
        ImageError: the frame is no picture, or the boxes are no (n, 4) numbers in pixels.
        EngineError: the engine is closed.
    """
    numbers = np.asarray(as_numpy(boxes), np.float64).reshape(-1, 4) if len(boxes) == 0 else as_numpy(boxes)
    found = engine.embed(frame, numbers, color=color)
    features = np.zeros((len(numbers), engine.dimension), np.float32)
    features[found.rows] = found.features
    return features, found


def as_numpy(values: Any) -> NDArray:
    """An array of another library (a torch tensor, on a GPU too) in the CPU's memory, without importing that library.

    Raises:
        ImageError: it is no array.
    """
    for step in ("detach", "cpu", "numpy"):
        if not isinstance(values, np.ndarray) and hasattr(values, step):
            values = getattr(values, step)()
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ImageError(f"expected numbers, got a {type(values).__name__} ({error}). Pass an array") from error
