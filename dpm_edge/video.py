"""Video files, frame by frame, with the truth about where they end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dpm_edge.boxes import BoxesFile, FrameBoxes
from dpm_edge.errors import DataError
from dpm_edge.opencv import cv2
from dpm_edge.progress import say, track

SUFFIXES = (".avi", ".mp4", ".mkv", ".mov", ".webm", ".m4v", ".mpg", ".mpeg", ".ts")


class Video:
    """An open video; iterate over it once for its frames, each (H, W, 3) uint8 BGR."""

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            DataError: the file is missing or no video that OpenCV can open.
        """
        if not path.is_file():
            found = "a folder" if path.is_dir() else "nothing"
            raise DataError(f"expected a video file ({', '.join(SUFFIXES)}) at {path}, got {found}. Check the path")
        try:
            with path.open("rb"):
                self._capture = cv2.VideoCapture(str(path))
        except OSError as error:
            raise DataError(f"expected a video file that may be read, got {path}: {error.strerror}") from error
        except UnicodeEncodeError as error:
            raise DataError(f"expected a file name in UTF-8, got {path}. Rename it: OpenCV opens no other") from error
        if not self._capture.isOpened():
            raise DataError(
                f"expected a video that OpenCV can open, got {path} of {path.stat().st_size} bytes, "
                "which is not a video or has a format that this OpenCV lacks. Convert it: ffmpeg -i FILE out.mp4"
            )
        self.path = path
        self.width = int(self._capture.get(cv2.CAP_PROP_FRAME_WIDTH))
        self.height = int(self._capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or 25.0
        """Frames per second; 25 where the file does not say."""
        self.announced = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        """Frames that the file's header announces; 0 where it does not."""
        self.read = 0
        """Frames read so far."""
        self.position = 0.0
        """Seconds from the first frame to the last one read, by the file's own times where it has them."""

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        while True:
            good, frame = self._capture.read()
            if not good or frame is None:
                return
            stamp = self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
            self.position = stamp if stamp > 0 else self.read / self.fps
            self.read += 1
            yield np.asarray(frame, np.uint8)

    def shortfall(self) -> str | None:
        """Say, after the last frame, where the file ended before what its header announces; None where it did not."""
        if self.read >= self.announced:
            return None
        return (
            f"{self.path} ended early: expected {self.announced} frames, as its header says, got {self.read}. "
            "What was read is kept; copy the file again for the rest"
        )

    def __enter__(self) -> Video:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._capture.release()


def boxed_frames(
    path: Path, file: BoxesFile, *, every: int = 1, first_frame: int | None = None, quiet: bool = False
) -> Iterator[tuple[str, FrameBoxes, NDArray[np.uint8]]]:
    """Yield each n-th frame that has boxes: its position from 0, its boxes and its picture, with progress.

    Raises:
        DataError: the boxes name no frame of the video, or may be numbered from 0 as well as from 1.
    """
    used = 0
    with Video(path) as video:
        boxes, how = file.of_video(video.announced, first_frame)
        if how:  # a decision and no progress: said with --quiet too
            say(how)
        for position, frame in enumerate(track(video, what="frames", total=video.announced or None, quiet=quiet)):
            if position % every == 0 and position in boxes:
                used += 1
                yield str(position), boxes[position], frame
        short = video.shortfall()
    beyond = sum(position >= video.read for position in boxes)
    if short:
        say(short)
    if not used:
        raise DataError(
            f"expected boxes of the {video.read} frames of {path}, got none of them in {file.path}. "
            "Check --first-frame and --every, or take the boxes file of this video"
        )
    if beyond:
        say(f"left out the boxes of {beyond} frames of {file.path} that come after the video's last frame")
