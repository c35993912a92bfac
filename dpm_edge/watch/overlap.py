"""How far boxes overlap, and the pairing of two sets that costs least.

n, m boxes (…, 4) float, x0 y0 x1 y1 in pixels
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def iou(a: NDArray, b: NDArray) -> NDArray:
    """Intersection over union of each pair of boxes, (n, 4) and (m, 4) → (n, m); empty boxes overlap nothing."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = (np.clip(x[:, 2:] - x[:, :2], 0, None).prod(-1) for x in (a, b))
    return inside / np.maximum(area_a[:, None] + area_b[None] - inside, 1e-9)


def assign(cost: NDArray) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pair rows with columns, each at most once and as many as there can be, so that the sum of costs is least.

    Shortest augmenting paths (Jonker and Volgenant 1987), in O(n²m). Costs must be finite.

    Returns:
        Rows, rising, and their columns, both (min(n, m),).
    """
    n, m = cost.shape
    if n > m:
        columns, rows = assign(cost.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    u, v = np.zeros(n), np.zeros(m)
    row_of = np.full(m, -1, np.int64)
    for row in range(n):
        distance, before = np.full(m, np.inf), np.full(m, -1, np.int64)
        done = np.zeros(m, bool)
        current, at, least = row, -1, 0.0
        while True:
            reduced = least + cost[current] - u[current] - v
            better = ~done & (reduced < distance)
            distance[better], before[better] = reduced[better], at
            at = int(np.argmin(np.where(done, np.inf, distance)))
            least = float(distance[at])
            done[at] = True
            if row_of[at] < 0:
                break
            current = int(row_of[at])
        earlier = done.copy()
        earlier[at] = False
        u[row_of[earlier]] += least - distance[earlier]
        u[row] += least
        v[earlier] -= least - distance[earlier]
        while at >= 0:
            previous = int(before[at])
            row_of[at] = row if previous < 0 else row_of[previous]
            at = previous
    taken = np.flatnonzero(row_of >= 0)
    order = np.argsort(row_of[taken])
    return row_of[taken][order], taken[order]
