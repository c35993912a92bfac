"""From a map of what is seen to one number: how much of the person is in sight. numpy alone; every room reads it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def visibility_of_maps(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 2, h, w) shares of each patch, of the person seen and of the person hidden → (n,) share in sight, 0..1.

    Σ seen / (Σ seen + Σ hidden): of what lies inside the crop; 0 where there is nobody.
    """
    shown, hidden = maps.sum(axis=(2, 3)).T
    return shown / np.maximum(shown + hidden, np.float32(1e-6))
