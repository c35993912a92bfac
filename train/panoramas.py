"""Views into panoramas of real places, to put people before (`surround` in dpm_edge.train.backgrounds).

A panorama holds all directions of a place: columns are longitude from -180° to 180°, rows latitude from 90° down to
-90° (equirectangular). A view is what a pinhole camera would see of it, turned at random and looking down as cameras of
sites do, with an exposure of its own. Panoramas under CC0: npm's `@pmndrs/assets` (hdri/*.exr.js, from Poly Haven) and
Blender's datafiles/studiolights/world (*.exr, from Poly Haven when it was HDRI Haven).

H×W is a panorama, h×w a view; both are (…, 3), red first. Angles are radians.
"""

from __future__ import annotations

import base64
import re
import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dpm_edge.errors import DataError
from dpm_edge.progress import track

GAMMA = 2.2
LARGE, EXR, MODULE = (".hdr",), ".exr", ".exr.js"
SMALL = (".png", ".jpg", ".jpeg")
_FIELD = (28.0, 80.0)
"""Least and largest angle, in degrees, that a view's height spans."""
_PITCH, _ROLL = (-38.0, 6.0), 3.0
"""Degrees up (down is negative), and the standard deviation of the tilt."""
_EXPOSURE = (0.08, 0.45)
"""Where a view's median luminance is brought to, linear."""
_TINT, _GRAIN = 0.15, 4.0


def read_panorama(path: Path) -> NDArray[np.float32]:
    """(H, W, 3) float32, linear light, of a .hdr, .exr, .exr.js (base64 in a JavaScript module), .png or .jpg file.

    Raises:
        DataError: it cannot be read, or is not twice as wide as high; .exr wants the package OpenEXR.
    """
    name = path.name.lower()
    if name.endswith(MODULE):
        found = re.search(r"base64,([A-Za-z0-9+/=]+)", path.read_text(errors="replace"))
        if found is None:
            raise DataError(f"expected a panorama as base64 in {path}, got none")
        with tempfile.NamedTemporaryFile(suffix=EXR) as file:
            file.write(base64.b64decode(found[1]))
            file.flush()
            image = _read_exr(Path(file.name))
    elif name.endswith(EXR):
        image = _read_exr(path)
    else:
        read = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if read is None or read.ndim != 3:
            raise DataError(f"expected a panorama in colour at {path}, got something that OpenCV cannot read as one")
        image = np.asarray(read[:, :, 2::-1], np.float32)
        if read.dtype == np.uint8:
            image = np.asarray((image / 255) ** GAMMA, np.float32)
    if image.shape[1] != 2 * image.shape[0]:
        raise DataError(f"expected a panorama twice as wide as high at {path}, got {image.shape[1]}×{image.shape[0]}")
    return np.ascontiguousarray(image, np.float32)


def _read_exr(path: Path) -> NDArray[np.float32]:
    try:
        import OpenEXR
    except ImportError:
        raise DataError(f"expected the package OpenEXR to read {path.name}, got none. pip install OpenEXR") from None
    with OpenEXR.File(str(path)) as file:
        channels = file.channels()
        for name in ("RGB", "RGBA"):
            if name in channels:
                return np.asarray(channels[name].pixels[..., :3], np.float32)
        return np.stack([np.asarray(channels[c].pixels, np.float32) for c in "RGB"], -1)


def view(
    panorama: NDArray[np.float32],
    height: int,
    width: int,
    *,
    yaw: float = 0.0,
    pitch: float = 0.0,
    roll: float = 0.0,
    field: float = 1.0,
) -> NDArray[np.float32]:
    """What a pinhole camera sees, (height, width, 3): bilinear.

    `yaw` is to the right of longitude 0, `pitch` is up, `roll` turns the camera clockwise, and `field` is the angle
    that the view's height spans.
    """
    across, down = np.meshgrid(np.arange(width) - (width - 1) / 2, np.arange(height) - (height - 1) / 2)
    focal = height / 2 / np.tan(field / 2)
    right = (across * np.cos(roll) - down * np.sin(roll)) / focal
    up = -(across * np.sin(roll) + down * np.cos(roll)) / focal
    ahead = np.cos(pitch) - up * np.sin(pitch)
    up = np.sin(pitch) + up * np.cos(pitch)
    longitude, latitude = np.arctan2(right, ahead) + yaw, np.arctan2(up, np.hypot(right, ahead))
    rows, columns = panorama.shape[:2]
    x = ((longitude / (2 * np.pi) + 0.5) % 1.0) * columns - 0.5
    y = (0.5 - latitude / np.pi) * rows - 0.5
    maps = (x.astype(np.float32), y.astype(np.float32))
    return np.asarray(cv2.remap(panorama, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP), np.float32)


def _exposed(linear: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture of what the camera sees: exposure, highlights clipped or rolled off, tint, grain."""
    linear = linear * (rng.uniform(*_EXPOSURE) / max(float(np.median(linear.mean(-1))), 1e-4))
    shown = linear / np.sqrt(1 + linear**2) if rng.random() < 0.5 else linear.clip(0, 1)
    shown = (shown.clip(0, 1) ** (1 / GAMMA) * (1 + rng.uniform(-_TINT, _TINT, 3))).clip(0, 1) * 255
    return (shown + rng.normal(0, rng.uniform(0, _GRAIN), shown.shape)).clip(0, 255).astype(np.uint8)


def views(folder: Path, height: int, width: int, seed: int, count: int, *, quiet: bool = True) -> Tensor:
    """(count, 3, height, width) uint8 views into a folder's panoramas; the same for the same seed.

    Raises:
        DataError: there is no panorama in `folder`, or one that cannot be read.
    """
    endings = (*LARGE, *SMALL, EXR, MODULE)
    paths = sorted(p for p in Path(folder).rglob("*") if p.name.lower().endswith(endings))
    if not paths:
        raise DataError(f"expected panoramas ({', '.join(endings)}) in {folder}, got none")
    panoramas, rng, made = [read_panorama(path) for path in paths], np.random.default_rng([seed, 22]), []
    for _ in track(range(count), what="views of places", quiet=quiet):
        pitch, roll = np.deg2rad(rng.uniform(*_PITCH)), np.deg2rad(rng.normal(0, _ROLL))
        seen = view(
            panoramas[rng.integers(len(panoramas))], height, width,
            yaw=rng.uniform(-np.pi, np.pi), pitch=pitch, roll=roll, field=np.deg2rad(rng.uniform(*_FIELD)),
        )  # fmt: skip
        made.append(_exposed(seen, rng).transpose(2, 0, 1))
    return torch.from_numpy(np.stack(made))
