"""Views into panoramas: directions worked out by hand, and files that are none."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from dpm_edge.errors import DataError
from dpm_edge.train import panoramas

ROWS, COLUMNS = 180, 360


def directions() -> np.ndarray:
    """A panorama whose pixels say where they are: cos and sin of the longitude, and the latitude, in degrees."""
    longitude = np.deg2rad(np.arange(COLUMNS) + 0.5 - 180)
    latitude = 90 - (np.arange(ROWS) + 0.5)
    made = np.zeros((ROWS, COLUMNS, 3), np.float32)
    made[..., 0], made[..., 1] = np.cos(longitude), np.sin(longitude)
    made[..., 2] = latitude[:, None]
    return made


def where(pixel: np.ndarray) -> tuple[float, float]:
    """Longitude and latitude in degrees."""
    return float(np.rad2deg(np.arctan2(pixel[1], pixel[0]))), float(pixel[2])


@pytest.mark.parametrize(("yaw", "pitch"), [(0, 0), (90, 0), (179, 0), (-120, 20), (45, -35)])
def test_the_middle_of_a_view_is_where_the_camera_points(yaw: float, pitch: float) -> None:
    seen = panoramas.view(directions(), 65, 33, yaw=np.deg2rad(yaw), pitch=np.deg2rad(pitch), field=np.deg2rad(50))
    assert where(seen[32, 16]) == pytest.approx((yaw, pitch), abs=0.6)


def test_edges_lie_where_the_field_of_view_says() -> None:
    seen = panoramas.view(directions(), 101, 101, field=np.deg2rad(60))
    assert where(seen[0, 50])[1] == pytest.approx(30, abs=0.7)  # up
    assert where(seen[100, 50])[1] == pytest.approx(-30, abs=0.7)
    assert where(seen[50, 100])[0] == pytest.approx(30, abs=0.7)  # right


def test_pitch_turns_up_and_roll_turns_clockwise() -> None:
    tilted = panoramas.view(directions(), 101, 101, roll=np.deg2rad(90), field=np.deg2rad(60))
    assert where(tilted[50, 100])[1] == pytest.approx(-30, abs=0.7)  # the right edge of the picture looks down
    down = panoramas.view(directions(), 101, 101, pitch=np.deg2rad(-40), field=np.deg2rad(60))
    assert where(down[100, 50])[1] == pytest.approx(-70, abs=0.7)


def test_reads_hdr_and_png_alike_and_gives_the_same_views_for_a_seed(tmp_path: Path) -> None:
    linear = np.random.default_rng(0).uniform(0.05, 0.95, (32, 64, 3)).astype(np.float32)
    cv2.imwrite(str(tmp_path / "a.hdr"), linear[:, :, ::-1])
    cv2.imwrite(str(tmp_path / "b.png"), (255 * linear[:, :, ::-1] ** (1 / 2.2)).round().astype(np.uint8))
    for name in ("a.hdr", "b.png"):
        np.testing.assert_allclose(panoramas.read_panorama(tmp_path / name), linear, atol=0.01)
    made = panoramas.views(tmp_path, 24, 12, seed=1, count=6)
    assert made.shape == (6, 3, 24, 12) and made.float().std() > 5
    assert (panoramas.views(tmp_path, 24, 12, seed=1, count=6) == made).all()


def test_says_what_is_no_panorama(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected panoramas"):
        panoramas.views(tmp_path, 24, 12, seed=0, count=1)
    cv2.imwrite(str(tmp_path / "square.png"), np.zeros((32, 32, 3), np.uint8))
    with pytest.raises(DataError, match=r"twice as wide as high.*32×32"):
        panoramas.read_panorama(tmp_path / "square.png")
    (tmp_path / "city.exr.js").write_text("export default 3")
    with pytest.raises(DataError, match="expected a panorama as base64"):
        panoramas.read_panorama(tmp_path / "city.exr.js")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="OpenCV cannot read"):
        panoramas.read_panorama(tmp_path / "broken.png")
