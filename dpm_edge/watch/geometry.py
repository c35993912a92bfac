"""Points, zones and lines in a camera's picture."""

from __future__ import annotations

from collections.abc import Sequence

from dpm_edge.watch.site_config import Point


def feet(box: Sequence[float], size: tuple[int, int]) -> Point:
    """Where a person stands: the middle of the box's lower edge, inside a picture of (height, width)."""
    x0, _, x1, y1 = (float(value) for value in box)
    height, width = size
    return min(max((x0 + x1) / 2, 0.0), width - 1.0), min(max(y1, 0.0), height - 1.0)


def in_pixels(points: Sequence[Point], size: tuple[int, int]) -> tuple[Point, ...]:
    """Points in pixels of a picture of (height, width); where all numbers are in 0..1 they are shares of it."""
    if all(0 <= x <= 1 and 0 <= y <= 1 for x, y in points):
        return tuple((x * (size[1] - 1), y * (size[0] - 1)) for x, y in points)
    return tuple(points)


def inside(point: Point, polygon: Sequence[Point]) -> bool:
    """Whether a point is in a polygon, by counting the edges to its right."""
    x, y = point
    within = False
    for (x0, y0), (x1, y1) in zip(polygon, (*polygon[1:], polygon[0])):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) * (x1 - x0) / (y1 - y0):
            within = not within
    return within


def side(point: Point, begin: Point, end: Point) -> float:
    """Distance from the line through `begin` and `end`; above 0 to the right of somebody who looks along it."""
    dx, dy = end[0] - begin[0], end[1] - begin[1]
    length = (dx * dx + dy * dy) ** 0.5 or 1.0
    return (dx * (point[1] - begin[1]) - dy * (point[0] - begin[0])) / length


def crosses(before: Point, now: Point, begin: Point, end: Point) -> bool:
    """Whether the way from `before` to `now` goes over the stretch between `begin` and `end`."""
    apart = side(before, begin, end) * side(now, begin, end) <= 0
    return apart and side(begin, before, now) * side(end, before, now) <= 0
