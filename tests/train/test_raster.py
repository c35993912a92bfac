"""Triangles into pixels, and their light, by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from dpm_edge.train.synthetic import materials, raster
from dpm_edge.train.synthetic.wardrobe import NOTHING


def screen(points: list[tuple[float, float, float]]) -> np.ndarray:
    return np.array(points, np.float32)


def canvas(rows: int, columns: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.full((rows, columns), np.inf, np.float32),
        np.full((rows, columns), raster.EMPTY, np.int32),
        np.zeros((rows, columns, 3), np.float32),
    )


def draw(
    points: np.ndarray,
    number: int,
    cut: list[float],
    target: tuple[np.ndarray, np.ndarray, np.ndarray],
    alpha: np.ndarray | None = None,
) -> None:
    triangle = np.array([[0, 1, 2]], np.int32)
    values = np.array([[0, 0, 0], [0, 1, 0], [1, 0, 1]], np.float32)  # something, and texture coordinates
    owner, textured = np.array([number], np.int32), np.array([-1 if alpha is None else 0], np.int32)
    alpha = NOTHING[1] if alpha is None else alpha[None]
    raster.draw(points, triangle, np.array(cut, np.float32), values, owner, *target, textured, alpha)


def test_a_triangle_covers_the_pixels_whose_centres_it_holds() -> None:
    corners = screen([(1.2, 0.7, 2.0), (18.4, 5.1, 2.0), (6.3, 15.9, 2.0)])
    target = canvas(17, 20)
    draw(corners, 3, [1, 1, 1], target)
    expected = np.zeros((17, 20), bool)
    for y in range(17):
        for x in range(20):
            sides = []
            for i in range(3):
                (ax, ay, _), (bx, by, _) = corners[i], corners[(i + 1) % 3]
                sides.append((bx - ax) * (y + 0.5 - ay) - (by - ay) * (x + 0.5 - ax))
            expected[y, x] = min(sides) >= 0 or max(sides) <= 0
    assert expected.sum() > 50
    np.testing.assert_array_equal(target[1] == 3, expected)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_nearer_triangle_wins_whatever_the_order(order: tuple[int, int]) -> None:
    shape = [(0, 0), (30, 0), (0, 30)]
    target = canvas(8, 8)
    for number in order:
        draw(screen([(x, y, (3.0, 1.5)[number]) for x, y in shape]), number, [1, 1, 1], target)
    assert (target[1] == 1).all()
    np.testing.assert_allclose(target[0], 1.5, rtol=1e-5)


def test_cut_leaves_out_what_lies_past_the_hem() -> None:
    target = canvas(9, 9)
    draw(screen([(0, 0, 1), (40, 0, 1), (0, 40, 1)]), 0, [4.5, 4.5, -35.5], target)  # 4.5 − y
    assert (target[1][:4] == 0).all() and (target[1][5:] == raster.EMPTY).all()


def test_attributes_are_interpolated_with_perspective() -> None:
    target = canvas(8, 8)
    draw(screen([(0, 0, 1), (80, 0, 1), (0, 80, 4)]), 0, [1, 1, 1], target)
    y = 6
    w = (y + 0.5) / 80  # on the screen; in space, nearer points take more of it
    assert target[2][y, 0, 0] == pytest.approx((w / 4) / ((1 - w) + w / 4), rel=1e-4)


def test_a_texture_cuts_out_where_its_alpha_is_low() -> None:
    target = canvas(8, 8)
    alpha = np.full((2, 2), 255, np.uint8)
    alpha[0, 1] = 0  # u of a half and more, v below a half: the right half of the triangle's upper rows
    draw(screen([(0, 0, 1), (16, 0, 1), (0, 16, 1)]), 0, [1, 1, 1], target, alpha)
    assert (target[1] == 0).all()  # u reaches a half at column 8
    target = canvas(4, 16)
    draw(screen([(0, 0, 1), (16, 0, 1), (0, 16, 1)]), 0, [1, 1, 1], target, alpha)
    assert (target[1][:, :8] == 0).all() and (target[1][:, 8:12] == raster.EMPTY).all()


def test_a_dyed_cloth_keeps_its_texture_and_an_undyed_one_its_colour() -> None:
    """Against the formula by hand: colour × luminance ÷ mean, and the texel itself, each times the sky."""
    textures = np.array([[[[200, 100, 50]]]], np.uint8)
    owner, surface = np.array([[0, 1]], np.int32), np.zeros((1, 2, 8), np.float32)
    surface[:, :, 1] = -1.0  # normals toward the camera
    linear = (np.array([200, 100, 50]) / 255) ** 2.2
    light = float(linear @ [0.2126, 0.7152, 0.0722])
    colour = np.array([0.3, 0.2, 0.1])
    table = np.stack([
        materials.material(colour, gloss=0.0, texture=0, dye=1.0, light=2 * light),
        materials.material(colour, gloss=0.0, texture=0, dye=0.0, light=2 * light),
    ])  # fmt: skip
    image = np.zeros((1, 2, 3), np.float32)
    dark = np.zeros(3)
    materials.shade(image, owner, surface, table, np.array([0.0, -1.0, 0.0]), dark, np.ones(3), textures)
    np.testing.assert_allclose(image[0, 0], colour * 0.5 * 0.62, rtol=1e-4)
    np.testing.assert_allclose(image[0, 1], linear * 0.62, rtol=1e-4)
