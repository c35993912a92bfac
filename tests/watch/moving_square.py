"""A small video whose frames say their own number, and streams that do as a test tells them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray


def picture(number: int, size: tuple[int, int] = (48, 64)) -> NDArray[np.uint8]:
    """A grey picture, (48, 64, 3), as bright as its number."""
    return np.full((*size, 3), number % 256, np.uint8)


def write_video(path: Path, frames: int = 12, fps: float = 10.0) -> Path:
    """A video of bright grey frames; frame n is 10 n bright."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    for number in range(frames):
        writer.write(picture(10 * number))
    writer.release()
    return path


class ScriptedStream:
    """A stream that gives what its script says: pictures, "end", "hang" (until released) or an exception."""

    total = 0

    def __init__(self, script: list[Any], released: threading.Event | None = None) -> None:
        self._script, self._released = script, released or threading.Event()

    def __iter__(self) -> Iterator[tuple[NDArray[np.uint8], None]]:
        for step in self._script:
            if isinstance(step, Exception):
                raise step
            if isinstance(step, str):
                if step == "end":
                    return
                self._released.wait()
                return
            yield step, None

    def shortfall(self) -> str:
        return ""

    def __enter__(self) -> ScriptedStream:
        return self

    def __exit__(self, *error: object) -> None: ...
