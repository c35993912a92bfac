"""Materials: what a surface looks like from its chart coordinates, and the shading of a drawn picture.

A material is one row of a float table, by the field names in FIELDS. Colours are linear RGB in 0–1. A surface point
comes with its normal and its chart coordinates (p, q across, v along, metres); u = angle of (p, q) from the front ×
`radius`.
"""

from __future__ import annotations

import numpy as np
from numba import njit

FIELDS = (
    "r", "g", "b",  # first colour
    "r2", "g2", "b2",  # second colour, of the pattern
    "pattern", "scale", "duty", "phase",  # what the pattern does with them is written at each pattern in `_mix`
    "radius",  # metres of u for a radian; 0: u = p and v = v, for flat things
    "gloss", "folds", "seed",  # specular share 0–1, strength of folds in the normal 0–1, phase of the folds
    "texture", "dye", "light",  # row of the textures (-1: none), how far dyed 0–1, the texture's mean luminance
)  # fmt: skip
PLAIN, STRIPES, UPRIGHT, CHECKS, LOGO, TWO_TONE, OPENING, DOTS, BAND, BLOTCHES, SIDE_STRIPE, BACK_PRINT = range(12)
BRICKS, LEAVES = 12, 13
CAMOUFLAGE, PLAID, PRINT, MELANGE = 14, 15, 16, 17


def material(
    color, second=None, pattern=PLAIN, scale=1.0, duty=0.5, phase=0.0, radius=0.0, gloss=0.05, folds=0.0, seed=0.0,
    texture=-1, dye=1.0, light=1.0,
):  # fmt: skip
    """One material row, (len(FIELDS),) f4. color and second: linear RGB; second is the first colour when left out."""
    second = color if second is None else second
    row = [*color, *second, pattern, scale, duty, phase, radius, gloss, folds, seed, texture, dye, light]
    return np.array(row, np.float32)


@njit(cache=True)
def _hash(i: int, j: int, seed: int) -> float:
    n = (i * 374761393 + j * 668265263 + seed * 1274126177) & 0x7FFFFFFF
    n = ((n ^ (n >> 13)) * 1274126177) & 0x7FFFFFFF
    return ((n ^ (n >> 16)) & 0xFFFF) / 65535.0


@njit(cache=True)
def value_noise(x: float, y: float, seed: int) -> float:
    """Smooth noise in 0–1 with a period of about one unit of x and y."""
    i, j = int(np.floor(x)), int(np.floor(y))
    fx, fy = x - i, y - j
    fx, fy = fx * fx * (3 - 2 * fx), fy * fy * (3 - 2 * fy)
    low = _hash(i, j, seed) * (1 - fx) + _hash(i + 1, j, seed) * fx
    high = _hash(i, j + 1, seed) * (1 - fx) + _hash(i + 1, j + 1, seed) * fx
    return low * (1 - fy) + high * fy


@njit(cache=True)
def _mix(m: np.ndarray, u: float, v: float) -> float:
    """Share of the second colour at (u, v) for material row m."""
    pattern, scale, duty, phase = int(m[6]), m[7], m[8], m[9]
    if pattern == 1:  # scale: stripes a metre along v
        return 1.0 if (v * scale + phase) % 1.0 < duty else 0.0
    if pattern == 2:  # scale: stripes a metre along u
        return 1.0 if (u * scale + phase) % 1.0 < duty else 0.0
    if pattern == 3:
        across = 0.5 if (u * scale + phase) % 1.0 < duty else 0.0
        return across + (0.5 if (v * scale + phase) % 1.0 < duty else 0.0)
    if pattern == 4:  # a patch on the chest: phase its height, duty its half size; scale > 1 makes it wide
        return 1.0 if abs(u) < duty * scale and abs(v - phase) < duty else 0.0
    if pattern == 5:  # below phase
        return 1.0 if v < phase else 0.0
    if pattern == 6:  # a strip of half width duty down the front
        return 1.0 if abs(u) < duty else 0.0
    if pattern == 7:  # dots of radius duty, scale a metre
        du, dv = (u * scale) % 1.0 - 0.5, (v * scale + phase) % 1.0 - 0.5
        return 1.0 if du * du + dv * dv < duty * duty else 0.0
    if pattern == 8:  # a band of half width duty at height phase
        return 1.0 if abs(v - phase) < duty else 0.0
    if pattern == 9:
        return 1.0 if value_noise(u * scale + phase * 7, v * scale, 5) > 1.0 - duty else 0.0
    if pattern == 10:  # a strip down each side
        return 1.0 if abs(abs(u) - 1.57 * m[10]) < duty else 0.0
    if pattern == 11:  # a patch on the back
        return 1.0 if 3.1416 * m[10] - abs(u) < duty * scale and abs(v - phase) < duty else 0.0
    if pattern == 12:  # second colour: mortar; scale: courses a metre
        row = np.floor(v * scale)
        shift = 0.5 * (row % 2.0)
        return 1.0 if (v * scale) % 1.0 < 0.12 or (u * scale * 0.5 + shift) % 1.0 < 0.06 else 0.0
    if pattern == 13:
        return value_noise(u * scale, v * scale, 9)
    if pattern == 14:  # blotches in four steps; scale a metre, phase: which blotches
        seed = int(phase * 9999)
        n = 0.65 * value_noise(u * scale, v * scale, seed) + 0.35 * value_noise(u * scale * 2.7, v * scale * 2.7, seed)
        return np.floor(min(n * 1.4, 0.999) * 4) / 3
    if pattern == 15:  # bands of three widths, woven both ways
        across, along = (u * scale * 0.5 + phase) % 1.0, (v * scale * 0.5 + phase) % 1.0
        share = 0.5 * (across < duty * 0.6) + 0.3 * (along < duty * 0.6)
        return min(1.0, share + 0.35 * (abs(across - 0.75) < 0.04) + 0.35 * (abs(along - 0.75) < 0.04))
    if pattern == 16:  # a print on chest and back: fine noise inside a field, phase its height and its picture
        if (
            abs(v - 0.36 - 0.1 * phase) > 0.04 + 0.16 * duty
            or min(abs(u), 3.1416 * m[10] - abs(u)) > 0.05 + 0.15 * duty
        ):
            return 0.0
        seed = int(phase * 9999)
        n = value_noise(u * scale * 2, v * scale * 2, seed) + 0.6 * value_noise(u * scale * 5, v * scale * 5, seed + 1)
        return 1.0 if n > 0.75 else 0.3
    if pattern == 17:  # worn or mottled cloth
        seed = int(phase * 9999)
        return duty * value_noise(u * scale, v * scale * 0.6, seed) + (1 - duty) * value_noise(u * 60, v * 60, seed + 1)
    return 0.0


@njit(cache=True)
def shade(
    image: np.ndarray,
    owner: np.ndarray,
    surface: np.ndarray,
    table: np.ndarray,
    light: np.ndarray,
    sun: np.ndarray,
    sky: np.ndarray,
    textures: np.ndarray,
) -> None:
    """Write the shaded colours of the drawn pixels into image, in place; pixels without a material stay.

    image: (H,W,3) f4 linear RGB. owner: (H,W) i4 rows of table or -1. surface: (H,W,8) f4, normal, chart (p, q, v),
    texture coordinates. textures: (n,S,S,3) uint8 sRGB. light: (3,) unit vector to the sun in world axes (camera looks
    along +y). sun, sky: (3,) RGB strengths.
    """
    side = textures.shape[1]
    linear = (np.arange(256) / 255.0) ** 2.2
    for y in range(owner.shape[0]):
        for x in range(owner.shape[1]):
            if owner[y, x] < 0:
                continue
            m = table[owner[y, x]]
            nx, ny, nz = surface[y, x, 0], surface[y, x, 1], surface[y, x, 2]
            p, q, v = surface[y, x, 3], surface[y, x, 4], surface[y, x, 5]
            u = np.arctan2(p, -q) * m[10] if m[10] > 0 else p
            if m[12] > 0:
                s = int(m[13])
                nx += m[12] * (value_noise(u * 14 + v * 5, v * 9, s) - 0.5)
                nz += m[12] * (value_noise(u * 9 - v * 6, v * 16, s + 1) - 0.5)
            length = np.sqrt(nx * nx + ny * ny + nz * nz) + 1e-9
            nx, ny, nz = nx / length, ny / length, nz / length
            if ny > 0.25:  # seen from behind: the inside of a hem
                nx, ny, nz = -nx, -ny, -nz
            facing = nx * light[0] + ny * light[1] + nz * light[2]
            direct = max(0.0, 0.15 + 0.85 * facing)
            share = _mix(m, u, v)
            half = max(0.0, nx * light[0] + ny * (light[1] - 1.0) * 0.6 + nz * light[2])
            shine = m[11] * half * half * half * half
            ambient = 0.62 + 0.38 * nz
            cloth, dye, detail = int(m[14]), m[15], 1.0
            row = min(max(int(surface[y, x, 7] * side), 0), side - 1)
            column = min(max(int(surface[y, x, 6] * side), 0), side - 1)
            if cloth >= 0:
                texel = textures[cloth, row, column]
                detail = 0.2126 * linear[texel[0]] + 0.7152 * linear[texel[1]] + 0.0722 * linear[texel[2]]
                detail = min(detail / m[16], 3.0)
            for c in range(3):
                albedo = m[c] * (1 - share) + m[3 + c] * share
                if cloth >= 0:
                    own = linear[textures[cloth, row, column, c]]
                    albedo = min(dye * albedo * detail + (1 - dye) * own, 1.0)
                image[y, x, c] = albedo * (sky[c] * ambient + sun[c] * direct) + shine * sun[c]
