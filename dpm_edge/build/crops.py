"""Which crops an engine is calibrated on, and which it is verified and timed on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpm_edge.errors import ImageError, SpecError
from dpm_edge.images import find_images, read_image
from dpm_edge.progress import say, track
from dpm_edge.shipped import ASSETS

CALIBRATION_CROPS = 512
"""Crops that int8 and fp8 are calibrated on, where the folder holds so many."""
VERIFICATION_CROPS = 64
SEED = 0
"""Of the draw: the same folder gives the same crops, and so the same engine."""
SAMPLES = ASSETS / "samples"
"""The crops that ship with the package: what is verified on where the user gives none."""


def choose(folder: Path, *, calibrate: bool, quiet: bool) -> tuple[list[Path], list[Path]]:
    """Pictures to calibrate on (none unless `calibrate`) and pictures to verify on, drawn from the whole folder.

    They are disjoint where the folder holds at least two.

    Raises:
        ImageError: there is no such folder, or no picture in it.
        SpecError: no picture can be read, or the package came without samples and no folder is given.
    """
    if folder == SAMPLES and not folder.is_dir():
        raise SpecError(
            "expected real crops to verify the engine on, got an installation without samples. "
            "Give a folder of crops (--calibrate DIR)"
        )
    paths = find_images(folder)
    wanted = min(len(paths), VERIFICATION_CROPS + (CALIBRATION_CROPS if calibrate else 0))
    drawn = sorted(np.random.default_rng(SEED).permutation(len(paths))[:wanted])
    good = readable([paths[i] for i in drawn], quiet=quiet)
    if not good:
        raise SpecError(f"expected real crops of people in {folder}, got no picture that can be read")
    if not calibrate:
        return [], good
    held_out = {
        good[i] for i in np.random.default_rng(SEED).permutation(len(good))[: min(VERIFICATION_CROPS, len(good) // 2)]
    }
    verification = [path for path in good if path in held_out] or good
    return [path for path in good if path not in held_out], verification


def readable(paths: Sequence[Path], *, quiet: bool) -> list[Path]:
    """The pictures that can be read; the others are named on stderr."""
    good = []
    for path in track(paths, what="reading crops", quiet=quiet):
        try:
            read_image(path)
        except ImageError as error:
            say(f"left out: {error}")
        else:
            good.append(path)
    return good
