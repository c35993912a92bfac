"""What stands around a person: backdrops behind, and rails, signs, plants, cars, walls in front.

A backdrop is a wide linear RGB picture with its horizon at half height; a crop takes a window of it. An occluder is a
list of (mesh, material row) in world metres, y negative: between the person at the origin and the camera.
"""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np

from dpm_edge.train.synthetic import materials as m
from dpm_edge.train.synthetic.solids import Mesh, box, cylinder, ellipsoid, extrude, leaves

SOLID_KINDS = ("rail", "sign", "plant", "car", "wall")
KINDS = (*SOLID_KINDS, "passer-by")
BACKDROPS = 5
_ROWS, _COLUMNS = 384, 768
Parts = list[tuple[Mesh, np.ndarray]]


def _noise(rng: np.random.Generator, rows: int, columns: int, cells: tuple[int, int]) -> np.ndarray:
    """Smooth noise in 0–1, (rows, columns) f4, from a coarse grid of `cells`."""
    coarse = rng.random(cells).astype(np.float32)
    return cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC).clip(0, 1)


def _muted(rng: np.random.Generator) -> np.ndarray:
    """A colour as buildings have it, near grey: (3,) f4 linear RGB."""
    return (rng.uniform(0.05, 0.6) * rng.uniform(0.82, 1.18, 3)).astype(np.float32)


@lru_cache(maxsize=256)
def backdrop(seed: int, camera: int, number: int) -> np.ndarray:
    """One of a camera's backdrops, (384, 768, 3) f4 linear RGB: façade or hedge or street above, ground below."""
    rng = np.random.default_rng([seed, 2, camera, number])
    half = _ROWS // 2
    image = np.empty((_ROWS, _COLUMNS, 3), np.float32)
    grey = rng.uniform(0.08, 0.45)
    ground = np.array([grey * rng.uniform(0.85, 1.15) for _ in range(3)], np.float32)
    if rng.random() < 0.25:
        ground = np.array([0.08, 0.14, 0.05], np.float32) * rng.uniform(0.6, 1.6)
    grain = 0.5 * _noise(rng, half, _COLUMNS, (96, 384)) + 0.5 * _noise(rng, half, _COLUMNS, (6, 24))
    image[half:] = ground * (0.7 + 0.6 * grain[:, :, None])
    if rng.random() < 0.6:  # paving, in perspective
        y, x = np.mgrid[1 : half + 1, :_COLUMNS].astype(np.float32)
        across, along = (x - _COLUMNS / 2) / y * 2.2, 160 / y
        joints = ((across % 1.0) < 0.05) | ((along % 0.35) < 0.02)
        image[half:][joints & (y > 18)] *= 0.7
    kind = rng.choice(["wall", "windows", "hedge", "street"])
    base = _muted(rng)
    upper = image[:half]
    upper[:] = base * (0.8 + 0.4 * _noise(rng, half, _COLUMNS, (8, 16))[:, :, None])
    if kind == "wall" and rng.random() < 0.6:
        y, x = np.mgrid[:half, :_COLUMNS]
        course = 8
        mortar = (y % course == 0) | ((x + (y // course % 2) * course) % (2 * course) == 0)
        upper[mortar] *= 0.75
    elif kind == "windows":
        step, wide, tall = int(rng.integers(60, 120)), rng.uniform(0.4, 0.8), int(rng.integers(60, 120))
        glass = 0.5 * _muted(rng)
        for left in range(int(rng.integers(0, 40)), _COLUMNS, step):
            bottom = half - int(rng.integers(8, 50))
            pane = upper[max(0, bottom - tall) : bottom, left : left + int(step * wide)]
            pane[:] = glass * (0.5 + _noise(rng, max(pane.shape[0], 1), max(pane.shape[1], 1), (4, 3))[:, :, None])
            cv2.rectangle(upper, (left, bottom - tall), (left + int(step * wide), bottom), (base * 1.3).tolist(), 2)
    elif kind == "hedge":
        green = np.array([0.05, 0.12, 0.03], np.float32) * rng.uniform(0.6, 1.8)
        upper[:] = green * (0.3 + 1.5 * _noise(rng, half, _COLUMNS, (64, 256))[:, :, None])
    elif kind == "street":
        upper[:] = np.array([0.5, 0.6, 0.75], np.float32) * rng.uniform(0.6, 1.2)
        for _ in range(int(rng.integers(6, 14))):
            left, wide, top = (int(rng.integers(*ends)) for ends in ((0, _COLUMNS), (40, 160), (0, half)))
            upper[top:, left : left + wide] = _muted(rng)
        for _ in range(int(rng.integers(2, 8))):
            centre = (int(rng.integers(0, _COLUMNS)), half - int(rng.integers(0, 12)))
            axes = (int(rng.integers(20, 60)), int(rng.integers(8, 18)))
            cv2.ellipse(upper, centre, axes, 0, 180, 360, _muted(rng).tolist(), -1)
    return cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.6, 2.2)))


def window(rng: np.random.Generator, picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """A height × width window of a backdrop: feet on the ground, the horizon somewhere behind the person."""
    tall = int(rng.uniform(0.45, 0.95) * _ROWS)
    wide = max(8, int(tall * width / height))
    top = int(np.clip(_ROWS / 2 - rng.uniform(0.25, 0.6) * tall, 0, _ROWS - tall))
    left = int(rng.integers(0, _COLUMNS - wide + 1))
    part = picture[top : top + tall, left : left + wide]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    return cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)


def _paint(rng: np.random.Generator, gloss: float = 0.1, **pattern: float) -> np.ndarray:
    color = rng.uniform(0.02, 0.8) * rng.uniform(0.4, 1.0, 3)
    return m.material(color, rng.uniform(0.02, 0.8, 3), gloss=gloss, **pattern)


def _rail(rng: np.random.Generator, y: float) -> Parts:
    look, top = _paint(rng), rng.uniform(0.85, 1.15)
    bars = [box((0, y, z), (2.0, 0.025, rng.uniform(0.02, 0.05))) for z in np.linspace(0.25, top, rng.integers(2, 5))]
    gap, shift = rng.uniform(0.12, 0.6), rng.uniform(0, 0.3)
    posts = [box((x, y, top / 2), (0.02, 0.02, top / 2)) for x in np.arange(-1.6 + shift, 1.6, gap)]
    return [(mesh, look) for mesh in bars + posts]


def _sign(rng: np.random.Generator, y: float) -> Parts:
    x, post = rng.normal(0, 0.22), _paint(rng)
    half = (rng.uniform(0.18, 0.45), 0.02, rng.uniform(0.18, 0.5))
    centre = (x, y, rng.uniform(0.5, 1.6))
    board = _paint(rng, 0.15, pattern=m.STRIPES, scale=rng.uniform(3, 8), duty=0.3)
    return [(cylinder((x, y, 0), rng.uniform(0.03, 0.09), 2.6), post), (box(centre, half), board)]


def _plant(rng: np.random.Generator, y: float) -> Parts:
    x, tall = rng.normal(0, 0.25), rng.uniform(0.5, 1.1)
    green = np.array([0.05, 0.16, 0.04]) * rng.uniform(0.6, 1.8)
    leaf = m.material(green, green * 0.4, m.LEAVES, 9.0)
    half = (rng.uniform(0.25, 0.5), 0.25, tall / 2)
    bush = leaves(rng, (x, y, 0.35 + tall / 2), half, int(rng.integers(250, 600)), 0.11)
    return [(cylinder((x, y, 0), 0.22, 0.4, taper=1.2), _paint(rng)), (bush, leaf)]


def _car(rng: np.random.Generator, y: float) -> Parts:
    shift, flip = rng.uniform(-1.6, 1.6), rng.choice([-1.0, 1.0])
    body = np.array([(-2.1, 0.3), (2.1, 0.3), (2.1, 0.75), (1.3, 0.92), (-1.7, 0.95), (-2.1, 0.8)])
    cabin = np.array([(-1.55, 0.93), (1.1, 0.93), (0.5, 1.4), (-1.0, 1.42)])
    paint = m.material(rng.uniform(0.02, 0.8) * rng.uniform(0.3, 1.0, 3), gloss=0.6)
    dark = m.material([0.03, 0.035, 0.04], gloss=0.5)
    parts: Parts = []
    for profile, look, depth in ((body, paint, 1.7), (cabin, dark, 1.5)):
        profile = profile * [flip, 1.0] + [shift, 0]
        parts.append((extrude(profile, -depth), look))
    parts += [(ellipsoid((shift + flip * x, 0, 0.31), (0.31, 0.12, 0.31)), dark) for x in (-1.35, 1.35)]
    return [((points + np.array([0, y, 0], np.float32), triangles), look) for (points, triangles), look in parts]


def _wall(rng: np.random.Generator, y: float) -> Parts:
    brick = _paint(rng, 0.02, pattern=m.BRICKS, scale=10.0)
    if rng.random() < 0.5:
        return [(box((0, y, rng.uniform(0.2, 0.55)), (3.0, 0.15, rng.uniform(0.25, 0.6))), brick)]
    side = rng.choice([-1.0, 1.0])
    return [(box((side * rng.uniform(0.35, 0.65), y, 1.2), (0.4, 0.15, 1.4)), brick)]


_MAKERS = {"rail": _rail, "sign": _sign, "plant": _plant, "car": _car, "wall": _wall}


def occluder(rng: np.random.Generator, kind: str) -> Parts:
    """Meshes of a solid occluder of `kind` in front of the person."""
    return _MAKERS[kind](rng, -float(rng.uniform(0.5, 1.3)))
