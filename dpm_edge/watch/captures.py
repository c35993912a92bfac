"""What OpenCV reads: a stream, a device, a video file, or a folder of pictures or videos."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dpm_edge import video
from dpm_edge.errors import ImageError, SourceError
from dpm_edge.images import SUFFIXES, read_image
from dpm_edge.opencv import cv2
from dpm_edge.watch.addresses import redacted

TIMEOUT_MS = 5000
"""Milliseconds that FFmpeg waits for a server to answer, and for the next packet."""
BAD_FRAMES = 50
"""Frames in a row that cannot be decoded, after which a stream counts as lost."""
PICTURE_SECONDS = 1.0
"""Seconds between the pictures of a folder."""

Frames = Iterator[tuple[NDArray[np.uint8], "float | None"]]
"""Pictures (H, W, 3) uint8 BGR, each with its position in seconds; of a stream with the camera's own Unix seconds, None
where it does not tell them."""


class Capture(Protocol):
    """An open address: iterate over it once; leaving it closes it."""

    total: int
    """Frames that a file announces; 0 where unknown."""

    def __iter__(self) -> Frames: ...

    def __enter__(self) -> Capture: ...

    def __exit__(self, *error: Any) -> None: ...

    def shortfall(self) -> str:
        """Say, after the last frame, what a file lacks; "" where nothing is missing."""


def as_picture(frame: Any) -> NDArray[np.uint8] | None:
    """A frame as (H, W, 3) uint8 BGR, whatever a camera sends; None where it is no picture."""
    if not isinstance(frame, np.ndarray) or frame.ndim not in (2, 3) or 0 in frame.shape:
        return None
    if frame.dtype == np.uint16:
        frame = (frame >> 8).astype(np.uint8)
    if frame.dtype != np.uint8:
        return None
    if frame.ndim == 2 or frame.shape[2] == 1:
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR), np.uint8)
    if frame.shape[2] == 4:
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGRA2BGR), np.uint8)
    return np.asarray(frame, np.uint8) if frame.shape[2] == 3 else None


class StreamCapture:
    """A network stream or a camera of this machine."""

    total = 0

    def __init__(self, address: str, *, device: bool) -> None:
        """Connect.

        Raises:
            SourceError: nobody answers, or the answer is no video.
        """
        try:
            if device:
                number: Any = int(address) if address.isdigit() else address
                self._capture = cv2.VideoCapture(number)
            else:
                # Only FFmpeg: OpenCV's other readers would write the address, password included, to stderr.
                limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
                self._capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
        except cv2.error as error:
            raise SourceError(f"expected a stream at {redacted(address)}, got an error of OpenCV") from error
        if not self._capture.isOpened():
            self._capture.release()
            what = "a camera of that number" if device else "a stream that answers, with the right name and password"
            raise SourceError(f"expected {what} at {redacted(address)}, got no answer. Check the address")
        if device:
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)

    def __iter__(self) -> Frames:
        bad = 0
        while bad < BAD_FRAMES:
            good, frame = self._capture.read()
            if not good:
                return
            picture = as_picture(frame)
            bad = 0 if picture is not None else bad + 1
            if picture is not None:
                yield picture, None

    def shortfall(self) -> str:
        """A stream has no end to fall short of."""
        return ""

    def __enter__(self) -> StreamCapture:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._capture.release()


class FileCapture:
    """Videos, one after the other, as if they were one."""

    def __init__(self, paths: list[Path]) -> None:
        """Open the first, so that what is no video is refused at once.

        Raises:
            DataError: it is no video.
        """
        self._paths = paths
        self._first: video.Video | None = video.Video(paths[0])
        self.total = self._first.announced if len(paths) == 1 else 0
        self._missing: list[str] = []

    def __iter__(self) -> Frames:
        begin = 0.0
        for number, path in enumerate(self._paths):
            opened = self._first if number == 0 and self._first else video.Video(path)
            with opened as frames:
                position = -1.0 / frames.fps
                for frame in frames:
                    position = max(frames.position, position + 1e-4)  # a damaged index must not turn time around
                    yield frame, begin + position
                begin += position + 1.0 / frames.fps
                self._missing += [frames.shortfall() or ""]

    def shortfall(self) -> str:
        """Say which files ended before what their headers announce."""
        return "; ".join(one for one in self._missing if one)

    def __enter__(self) -> FileCapture:
        return self

    def __exit__(self, *error: object) -> None:
        if self._first is not None:
            self._first.__exit__(None, None, None)


class FolderCapture:
    """A folder's videos, one after the other by name; or its pictures, a second apart."""

    def __init__(self, folder: Path) -> None:
        """Look for files.

        Raises:
            SourceError: the folder holds neither videos nor pictures.
        """
        files = sorted(path for path in folder.iterdir() if path.is_file())
        videos = [path for path in files if path.suffix.lower() in video.SUFFIXES]
        self._pictures = [path for path in files if path.suffix.lower() in SUFFIXES]
        self._videos = FileCapture(videos) if videos else None
        self.total = self._videos.total if self._videos else len(self._pictures)
        self._unreadable = 0
        if not videos and not self._pictures:
            kinds = ", ".join((*video.SUFFIXES, *SUFFIXES))
            raise SourceError(f"expected videos or pictures ({kinds}) in {folder}, got none. Check the path")

    def __iter__(self) -> Frames:
        if self._videos is not None:
            yield from self._videos
            return
        for number, path in enumerate(self._pictures):
            try:
                picture = read_image(path)
            except ImageError:
                self._unreadable += 1
                continue
            yield picture, number * PICTURE_SECONDS

    def shortfall(self) -> str:
        """Say what could not be read."""
        if self._videos is not None:
            return self._videos.shortfall()
        return f"{self._unreadable} pictures could not be read" if self._unreadable else ""

    def __enter__(self) -> FolderCapture:
        return self

    def __exit__(self, *error: object) -> None:
        if self._videos is not None:
            self._videos.__exit__(*error)
