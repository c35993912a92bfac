"""Simple solids: boxes, cylinders, ellipsoids and profiles as (points (N,3) f4 metres, triangles (T,3) i4)."""

from __future__ import annotations

import numpy as np

Mesh = tuple[np.ndarray, np.ndarray]


def box(centre, half, taper: float = 1.0) -> Mesh:
    """A box of half sizes `half`; its top is `taper` times as wide. Faces share no corners: normals stay flat."""
    corners = np.array([[x, y, z] for z in (-1, 1) for y in (-1, 1) for x in (-1, 1)], np.float32)
    corners[4:, :2] *= taper
    quads = [(0, 1, 5, 4), (1, 3, 7, 5), (3, 2, 6, 7), (2, 0, 4, 6), (4, 5, 7, 6), (2, 3, 1, 0)]
    points = np.concatenate([corners[list(quad)] for quad in quads]) * np.asarray(half) + np.asarray(centre)
    triangles = [(4 * i + a, 4 * i + c, 4 * i + d) for i in range(6) for a, c, d in ((0, 1, 2), (0, 2, 3))]
    return points.astype(np.float32), np.array(triangles, np.int32)


def _grid(rows: np.ndarray) -> Mesh:
    """Close a (R,S,3) stack of rings into a surface."""
    count, around = rows.shape[:2]
    r, s = np.meshgrid(np.arange(count - 1), np.arange(around), indexing="ij")
    a, c = r * around + s, r * around + (s + 1) % around
    quads = np.stack([a, c, c + around, a + around], -1).reshape(-1, 4)
    triangles = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]])
    return rows.reshape(-1, 3).astype(np.float32), triangles.astype(np.int32)


def ellipsoid(centre, half, rings: int = 9, around: int = 14) -> Mesh:
    """An ellipsoid of half axes `half`."""
    polar, turn = np.linspace(-np.pi / 2, np.pi / 2, rings)[:, None], np.arange(around) / around * 2 * np.pi
    unit = np.stack(np.broadcast_arrays(np.cos(polar) * np.cos(turn), np.cos(polar) * np.sin(turn), np.sin(polar)), -1)
    return _grid(unit * np.asarray(half) + np.asarray(centre))


def cylinder(base, radius: float, height: float, around: int = 12, taper: float = 1.0) -> Mesh:
    """An upright cylinder on `base`; its top is `taper` times as thick."""
    turn = np.arange(around) / around * 2 * np.pi
    ring = np.stack([np.cos(turn), np.sin(turn), np.zeros(around)], -1) * radius
    top = ring * taper + np.array([0, 0, height])
    return _grid(np.stack([ring, top]) + np.asarray(base))


def extrude(profile: np.ndarray, depth: float) -> Mesh:
    """A convex (P,2) profile in x and z, drawn out along y from 0 to depth, both ends closed."""
    count = len(profile)
    front = np.stack([profile[:, 0], np.zeros(count), profile[:, 1]], 1)
    rear = front + np.array([0, depth, 0])
    side, side_triangles = _grid(np.stack([front, rear]))
    fan = np.array([(0, i, i + 1) for i in range(1, count - 1)], np.int32)
    triangles = np.concatenate([side_triangles, fan + 2 * count, fan + 3 * count])
    return np.concatenate([side, front, rear]).astype(np.float32), triangles


def leaves(rng: np.random.Generator, centre, half, count: int, size: float) -> Mesh:
    """A bush: triangles of about `size` metres, at random places and angles inside an ellipsoid."""
    at = rng.normal(size=(count, 3))
    at *= rng.random((count, 1)) ** 0.4 / np.linalg.norm(at, axis=1, keepdims=True)
    middle = at * np.asarray(half) + np.asarray(centre)
    corners = middle[:, None] + rng.normal(0, size * 0.6, (count, 3, 3))
    return corners.reshape(-1, 3).astype(np.float32), np.arange(3 * count, dtype=np.int32).reshape(-1, 3)
