"""The frames that a boxes file speaks of, out of a video or a folder of pictures."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DataError, ImageError
from dpm_edge.images import read_image
from dpm_edge.progress import say, track
from dpm_edge.video import Video


def frames(
    source: Path, wanted: Collection[str], *, every: int, quiet: bool
) -> Iterator[tuple[str, NDArray[np.uint8] | str]]:
    """(frame name, frame or the reason why it cannot be read), each n-th frame that has boxes.

    Raises:
        DataError: the boxes name no frame that is there.
    """
    if source.is_dir():
        names = sorted(wanted)[::every]
        if not any((source / name).is_file() for name in names):
            raise DataError(f"none of the boxes' frames, such as {names[0]!r}, is a file in {source}")
        for name in track(names, what="frames", quiet=quiet):
            try:
                yield name, read_image(source / name)
            except ImageError as error:
                yield name, str(error)
        return
    used = 0
    with Video(source) as video:
        for number, frame in enumerate(track(video, what="frames", total=video.announced or None, quiet=quiet)):
            if number % every == 0 and str(number) in wanted:
                used += 1
                yield str(number), frame
        short = video.shortfall()
    if short:
        say(short)
    if not used:
        raise DataError(f"the boxes name no frame of {source}: frames are numbers from 0 to {video.read - 1}")
