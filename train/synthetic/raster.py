"""Software rasteriser: triangles to a z-buffer with interpolated attributes, in numba.

Shapes: N vertices, T triangles, H x W pixels (supersampled), A attributes a vertex, K bone weights a vertex, J bones.
Pixel centres lie at (x + 0.5, y + 0.5). Depth is the distance along the viewing axis in metres, smaller is nearer.
"""

from __future__ import annotations

import numpy as np
from numba import njit

EMPTY = -1  # material of a pixel that no triangle covers
NEAR = 0.05  # metres; a triangle with a vertex nearer than this is not drawn


@njit(cache=True)
def skin(rest: np.ndarray, bones: np.ndarray, weights: np.ndarray, transforms: np.ndarray) -> np.ndarray:
    """Linear blend skinning: rest (N,3) f4, bones (N,K) i4, weights (N,K) f4, transforms (J,3,4) f4 -> (N,3) f4."""
    posed = np.zeros_like(rest)
    for n in range(rest.shape[0]):
        for k in range(bones.shape[1]):
            weight = weights[n, k]
            if weight == 0.0:
                continue
            m = transforms[bones[n, k]]
            for i in range(3):
                posed[n, i] += weight * (m[i, 0] * rest[n, 0] + m[i, 1] * rest[n, 1] + m[i, 2] * rest[n, 2] + m[i, 3])
    return posed


@njit(cache=True)
def vertex_normals(points: np.ndarray, triangles: np.ndarray) -> np.ndarray:
    """Area-weighted unit normals (N,3) f4 of points (N,3) f4 with triangles (T,3) i4."""
    normals = np.zeros_like(points)
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t]
        ux, uy, uz = points[b, 0] - points[a, 0], points[b, 1] - points[a, 1], points[b, 2] - points[a, 2]
        vx, vy, vz = points[c, 0] - points[a, 0], points[c, 1] - points[a, 1], points[c, 2] - points[a, 2]
        nx, ny, nz = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
        for v in (a, b, c):
            normals[v, 0] += nx
            normals[v, 1] += ny
            normals[v, 2] += nz
    for n in range(points.shape[0]):
        length = np.sqrt(normals[n, 0] ** 2 + normals[n, 1] ** 2 + normals[n, 2] ** 2)
        if length > 1e-12:
            normals[n] /= length
    return normals


@njit(cache=True)
def draw(
    screen: np.ndarray,
    triangles: np.ndarray,
    cut: np.ndarray,
    attributes: np.ndarray,
    materials: np.ndarray,
    depth: np.ndarray,
    material: np.ndarray,
    surface: np.ndarray,
    cut_out: np.ndarray,
    alpha: np.ndarray,
) -> None:
    """Draw triangles into depth, material and surface, in place; nearer pixels win, both sides of a triangle show.

    screen: (N,3) f4, pixel x, pixel y, depth. triangles: (T,3) i4. cut: (N,) f4, interpolated; a pixel is left out
    where it is negative (hems, sleeves, hair lines). attributes: (N,A) f4. materials: (T,) i4.
    depth: (H,W) f4; material: (H,W) i4; surface: (H,W,A) f4. Attributes are interpolated with perspective; the last two
    are texture coordinates, 0–1. cut_out: (T,) i4, row of alpha (n,S,S) uint8 that cuts the triangle out where it is
    below a half; -1: none.
    """
    side = alpha.shape[1]
    height, width = depth.shape
    count = attributes.shape[1]
    for t in range(triangles.shape[0]):
        a, b, c = triangles[t]
        if cut[a] < 0 and cut[b] < 0 and cut[c] < 0:
            continue
        za, zb, zc = screen[a, 2], screen[b, 2], screen[c, 2]
        if za < NEAR or zb < NEAR or zc < NEAR:
            continue
        xa, ya, xb, yb, xc, yc = screen[a, 0], screen[a, 1], screen[b, 0], screen[b, 1], screen[c, 0], screen[c, 1]
        x0 = max(0, int(np.floor(min(xa, xb, xc))))
        x1 = min(width - 1, int(np.ceil(max(xa, xb, xc))))
        y0 = max(0, int(np.floor(min(ya, yb, yc))))
        y1 = min(height - 1, int(np.ceil(max(ya, yb, yc))))
        if x0 > x1 or y0 > y1:
            continue
        area = (xb - xa) * (yc - ya) - (xc - xa) * (yb - ya)
        if abs(area) < 1e-9:
            continue
        for y in range(y0, y1 + 1):
            py = y + 0.5
            for x in range(x0, x1 + 1):
                px = x + 0.5
                wb = ((px - xa) * (yc - ya) - (xc - xa) * (py - ya)) / area
                wc = ((xb - xa) * (py - ya) - (px - xa) * (yb - ya)) / area
                wa = 1.0 - wb - wc
                if wa < 0.0 or wb < 0.0 or wc < 0.0:
                    continue
                ia, ib, ic = wa / za, wb / zb, wc / zc
                z = 1.0 / (ia + ib + ic)
                if z >= depth[y, x]:
                    continue
                ia, ib, ic = ia * z, ib * z, ic * z
                if ia * cut[a] + ib * cut[b] + ic * cut[c] < 0.0:
                    continue
                if cut_out[t] >= 0:
                    u = ia * attributes[a, count - 2] + ib * attributes[b, count - 2] + ic * attributes[c, count - 2]
                    v = ia * attributes[a, count - 1] + ib * attributes[b, count - 1] + ic * attributes[c, count - 1]
                    row, column = min(max(int(v * side), 0), side - 1), min(max(int(u * side), 0), side - 1)
                    if alpha[cut_out[t], row, column] < 128:
                        continue
                depth[y, x] = z
                material[y, x] = materials[t]
                for k in range(count):
                    surface[y, x, k] = ia * attributes[a, k] + ib * attributes[b, k] + ic * attributes[c, k]
