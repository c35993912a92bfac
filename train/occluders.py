"""Occluders that training never saw, to cover held-out queries with: textures, drawn objects, other people's bodies.

SPT's occluders come from inside the training pictures, on a patch grid; these do not. Pictures are (H, W, 3) uint8;
the covered share is the share of the picture's pixels. Everything follows from a numpy Generator.
"""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Stamp = tuple[Picture, NDArray[np.float32]]
"""A picture and its alpha (H, W) in 0..1, cropped to what is visible of it."""
Placed = tuple[NDArray[np.bool_], tuple[int, int, int, int]]
"""Which pixels of a picture a stamp covers, and its top, left, height, width."""
TOLERANCE = 0.03
"""Largest deviation from the share that was asked for."""
SEARCH = 4
"""Pixels of a cell when the size is looked for."""


def _colour(draw: np.random.Generator) -> NDArray[np.float64]:
    return draw.uniform(20, 235, 3)


def texture(height: int, width: int, draw: np.random.Generator) -> Picture:
    """Stripes, checks, blotches or grain in two colours."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = draw.uniform(0, np.pi), draw.uniform(4, 16)
    along = np.cos(angle) * x + np.sin(angle) * y
    across = -np.sin(angle) * x + np.cos(angle) * y
    kind = draw.integers(4)
    if kind == 0:
        share = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * along / period))
    elif kind == 1:
        share = 0.5 + 0.5 * np.sign(np.sin(2 * np.pi * along / period) * np.sin(2 * np.pi * across / period))
    elif kind == 2:
        coarse = draw.uniform(0, 1, (height // 8 + 2, width // 8 + 2))
        share = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).clip(0, 1)
    else:
        share = draw.uniform(0, 1, (height, width))
    first, second = _colour(draw), _colour(draw)
    mixed = first.astype(np.float32) + (second - first).astype(np.float32) * share[:, :, None].astype(np.float32)
    return mixed.clip(0, 255).astype(np.uint8)


def texture_stamp(height: int, width: int, draw: np.random.Generator) -> Stamp:
    """A full box of texture."""
    return texture(height, width, draw), np.ones((height, width), np.float32)


def object_stamp(height: int, width: int, draw: np.random.Generator) -> Stamp:
    """A drawn thing: a bin, a plant, a fence, a sign on a post or a car's side, shaded from one side."""
    alpha = np.zeros((height, width), np.float32)
    picture = np.empty((height, width, 3), np.float32)
    picture[:] = _colour(draw)

    def box(x0: float, y0: float, x1: float, y1: float) -> tuple[tuple[int, int], tuple[int, int]]:
        return (int(x0 * width), int(y0 * height)), (int(x1 * width) - 1, int(y1 * height) - 1)

    kind = draw.integers(5)
    if kind == 0:
        corners = np.array([[0.0, 0.0], [1.0, 0.0], [0.85, 1.0], [0.15, 1.0]]) * [width - 1, height - 1]
        cv2.fillConvexPoly(alpha, corners.astype(np.int32), 1.0)
    elif kind == 1:
        for _ in range(60):
            centre = (int(draw.uniform(0.1, 0.9) * width), int(draw.uniform(0.05, 0.7) * height))
            axes = (max(2, int(0.12 * width)), max(2, int(0.07 * height)))
            cv2.ellipse(alpha, centre, axes, float(draw.uniform(0, 180)), 0, 360, 1.0, -1)
            cv2.ellipse(picture, centre, axes, 0, 0, 360, tuple(draw.uniform([10, 60, 10], [70, 170, 80])), -1)
        cv2.rectangle(alpha, *box(0.3, 0.65, 0.7, 1.0), 1.0, -1)
    elif kind == 2:
        for i in range(9):
            cv2.rectangle(alpha, *box(i / 9, 0.0, i / 9 + 0.075, 1.0), 1.0, -1)
        for y in (0.1, 0.5, 0.85):
            cv2.rectangle(alpha, *box(0, y, 1, y + 0.1), 1.0, -1)
    elif kind == 3:
        cv2.rectangle(alpha, *box(0.0, 0.0, 1.0, 0.45), 1.0, -1)
        cv2.rectangle(picture, *box(0.08, 0.05, 0.92, 0.4), tuple(_colour(draw)), -1)
        cv2.rectangle(alpha, *box(0.4, 0.4, 0.6, 1.0), 1.0, -1)
    else:
        cv2.rectangle(alpha, *box(0.0, 0.35, 1.0, 1.0), 1.0, -1)
        cv2.rectangle(alpha, *box(0.2, 0.0, 0.8, 0.4), 1.0, -1)
        cv2.rectangle(picture, *box(0.27, 0.06, 0.73, 0.35), (60.0, 50.0, 40.0), -1)
        for x in (0.2, 0.8):
            cv2.circle(picture, (int(x * width), int(0.88 * height)), int(0.1 * width), (30.0, 30.0, 30.0), -1)
    picture *= np.linspace(draw.uniform(0.6, 1.0), draw.uniform(0.8, 1.2), width, dtype=np.float32)[None, :, None]
    picture += draw.standard_normal(picture.shape, np.float32) * 4
    return picture.clip(0, 255).astype(np.uint8), alpha


def body_stamp(bodies: NDArray[np.uint8]) -> Callable[[int, int, np.random.Generator], Stamp]:
    """A maker of stamps from other people's pictures (M, H, W, 3): the middle of one, cut out as a rounded column."""

    def make(height: int, width: int, draw: np.random.Generator) -> Stamp:
        body = cv2.resize(bodies[draw.integers(len(bodies))], (width, height))
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        inside = (np.abs(x) / 0.72) ** 2.5 + np.abs(y) ** 6 <= 1
        columns = np.flatnonzero(inside.any(0))
        part = slice(columns[0], columns[-1] + 1)
        return np.ascontiguousarray(body[:, part]), np.ascontiguousarray(inside[:, part].astype(np.float32))

    return make


def cover(
    image: Picture, share: float, make: Callable[[int, int, np.random.Generator], Stamp], draw: np.random.Generator
) -> Picture:
    """The picture with an occluder over `share` of its pixels, in from the bottom, a side, or anywhere.

    The stamp is made as large as the picture and then scaled until the share fits (± 3 points).
    """
    if share <= 0:
        return image
    height, width = image.shape[:2]
    stamp, alpha = make(height, width, draw)
    aspect = draw.uniform(0.6, 1.6)
    anchor = draw.choice(["bottom", "left", "right", "anywhere"], p=[0.4, 0.2, 0.2, 0.2])
    along = draw.uniform(0.0, 1.0, 2)
    for solid in (
        alpha,
        np.ones_like(alpha),
    ):  # a fence seen from too near may never cover enough: then its whole box does
        shape = _fitted(solid, share, height, width, anchor, along, aspect)
        if abs(shape[0].mean() - share) <= TOLERANCE:
            break
    covered, (top, left, tall, wide) = shape
    scaled = cv2.resize(stamp, (wide, tall), interpolation=cv2.INTER_LINEAR)
    ys, xs = slice(max(0, top), min(height, top + tall)), slice(max(0, left), min(width, left + wide))
    result = image.copy()
    piece = scaled[ys.start - top : ys.stop - top, xs.start - left : xs.stop - left]
    region = covered[ys, xs]
    result[ys, xs][region] = piece[region]
    return result


def _fitted(
    alpha: NDArray[np.float32],
    share: float,
    height: int,
    width: int,
    anchor: str,
    along: NDArray[np.float64],
    aspect: float,
) -> Placed:
    """The stamp at the size that covers `share`, by bisection on a coarser grid."""
    cells = (width // SEARCH, height // SEARCH)
    coarse = np.asarray(cv2.resize(alpha, cells, interpolation=cv2.INTER_AREA), np.float32)

    def placed(size: float, mask: NDArray[np.float32], tall: int, wide: int) -> Placed:
        sides = max(2, round(tall * size * aspect)), max(2, round(wide * size / aspect))
        return _place(mask, *sides, tall, wide, anchor, along)

    low, high = 0.02, 3.0
    for _ in range(11):
        middle = 0.5 * (low + high)
        less = placed(middle, coarse, height // SEARCH, width // SEARCH)[0].mean() < share
        low, high = (middle, high) if less else (low, middle)
    return placed(middle, alpha, height, width)


def _place(
    alpha: NDArray[np.float32], tall: int, wide: int, height: int, width: int, anchor: str, along: NDArray[np.float64]
) -> Placed:
    """Which pixels a stamp of this size covers, and its (top, left, tall, wide)."""
    top = round(along[0] * (height - tall))
    left = round(along[1] * (width - wide))
    if anchor == "bottom":
        top = height - tall
    elif anchor == "left":
        left = 0
    elif anchor == "right":
        left = width - wide
    covered = np.zeros((height, width), bool)
    ys, xs = slice(max(0, top), min(height, top + tall)), slice(max(0, left), min(width, left + wide))
    scaled = cv2.resize(alpha, (wide, tall), interpolation=cv2.INTER_NEAREST) > 0.5
    covered[ys, xs] = scaled[ys.start - top : ys.stop - top, xs.start - left : xs.stop - left]
    return covered, (top, left, tall, wide)


KINDS = ("texture", "object", "body")
"""Names of the kinds of occluders."""


def kinds(bodies: NDArray[np.uint8]) -> dict[str, Callable[[int, int, np.random.Generator], Stamp]]:
    """Give the maker of each of the KINDS; bodies (M, H, W, 3): other people's pictures."""
    return dict(zip(KINDS, (texture_stamp, object_stamp, body_stamp(bodies))))
