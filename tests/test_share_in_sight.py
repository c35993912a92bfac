"""Visibility of maps: hand-worked cases."""

import numpy as np

from dpm_edge.sight import visibility_of_maps


def test_visibility_is_the_seen_share_of_seen_and_hidden() -> None:
    maps = np.zeros((3, 2, 2, 2), np.float32)
    maps[0, 0] = [[1.0, 0.5], [0.0, 0.0]]
    maps[0, 1] = [[0.0, 0.5], [1.0, 1.0]]
    maps[1, 0, 0] = 0.25
    np.testing.assert_allclose(visibility_of_maps(maps), [1.5 / 4, 1.0, 0.0])
