"""Video files, frame by frame, with the truth about where they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError

SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")


class Video:
    """An open video; iterate over it once for its frames, each (H, W, 3) uint8 BGR."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            DataError: the file is missing or no video that OpenCV can open.
        """
        if not path.is_file():
            raise DataError(f"{path} does not exist; a video file is wanted")
        self._capture = cv2.VideoCapture(str(path))
        if not self._capture.isOpened():
            raise DataError(f"{path} is not a video that OpenCV can open ({path.stat().st_size} bytes)")
        self.path = path
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        """Frames per second; 25 where the file does not say."""
        self.announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        """Frames that the file's header announces; 0 where it does not."""
        self.read = 0
        """Frames read so far."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while True:
            good, frame = self._capture.read()
            if not good or frame is None:
                return
            self.read += 1
            yield np.asarray(frame, np.uint8)

    def shortfall(self) -> str | None:
        """After the last frame: a sentence where the file ended before what its header announces."""
        if self.read >= self.announced:
            return None
        return (
            f"{self.path} ended early: {self.read} frames could be read of {self.announced} announced. "
            "What was read is kept; copy the file again for the rest"
        )

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._capture.release()
