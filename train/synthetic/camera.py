"""Cameras: where they hang, how they see, and what they do to a picture.

World axes: metres, z up, the person at the origin; the camera looks along +y from in front of it.
Screen: pixel x, pixel y, depth in metres.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

CAMERAS = 6


@dataclass(frozen=True)
class Camera:
    """One camera of the site; everything here is fixed for all of its pictures.

    height: metres. light: (3,) unit vector to the sun. sun, sky: (3,) RGB strengths. tint: (3,) white balance. gain:
    exposure. gamma: of the transfer curve. noise: standard deviation in grey levels. blur: pixels at 256 rows.
    """

    number: int
    height: float
    light: np.ndarray
    sun: np.ndarray
    sky: np.ndarray
    tint: np.ndarray
    gain: float
    gamma: float
    noise: float
    blur: float


def draw_camera(seed: int, number: int) -> Camera:
    """Camera `number` of the site that `seed` stands for."""
    rng = np.random.default_rng([seed, 1, number])
    turn, rise = rng.uniform(-1.3, 1.3), rng.uniform(0.5, 1.3)
    light = np.array([np.sin(turn) * np.cos(rise), -np.cos(turn) * np.cos(rise), np.sin(rise)])
    warm = rng.uniform(-0.12, 0.12)
    bright = rng.uniform(0.35, 1.1)
    return Camera(
        number=number,
        height=float(rng.uniform(1.7, 4.5)),
        light=light,
        sun=np.array([1 + warm, 1.0, 1 - warm]) * bright,
        sky=np.array([0.95 - warm, 1.0, 1.08 + warm]) * rng.uniform(0.55, 0.85),
        tint=1 + rng.normal(0, 0.05, 3),
        gain=float(rng.uniform(0.75, 1.25)),
        gamma=float(rng.uniform(2.0, 2.5)),
        noise=float(rng.uniform(1.0, 5.0)),
        blur=float(rng.uniform(0.3, 1.1)),
    )


@dataclass(frozen=True)
class View:
    """A camera's view of one crop: a pinhole at `distance`, tilted down at the person, cut to the crop."""

    distance: float
    height: float
    scale: float
    left: float
    top: float

    def rays(self, points: np.ndarray) -> np.ndarray:
        """(N,3) metres → (N,3): x and y on the plane at unit depth (y downwards), and depth in metres."""
        tilt = np.arctan2(self.height - 0.95, self.distance)
        across, ahead, up = points[:, 0], points[:, 1] + self.distance, points[:, 2] - self.height
        depth = ahead * np.cos(tilt) - up * np.sin(tilt)
        rise = ahead * np.sin(tilt) + up * np.cos(tilt)
        safe = np.where(np.abs(depth) < 1e-3, 1e-3, depth)
        return np.stack([across / safe, -rise / safe, depth], 1)

    def screen(self, points: np.ndarray) -> np.ndarray:
        """(N,3) metres → (N,3) f4: pixel x, pixel y, depth."""
        seen = self.rays(points)
        seen[:, 0] = (seen[:, 0] - self.left) * self.scale
        seen[:, 1] = (seen[:, 1] - self.top) * self.scale
        return seen.astype(np.float32)


def frame(rng: np.random.Generator, camera: Camera, points: np.ndarray, height: int, width: int) -> View:
    """A view whose crop of height × width pixels holds the points (N,3) as a detector would box them, jittered."""
    loose = View(float(rng.uniform(4.5, 13.0)), camera.height, 1.0, 0.0, 0.0)
    seen = loose.rays(points)
    low, high = seen[:, :2].min(0), seen[:, :2].max(0)
    tall = (high[1] - low[1]) * rng.uniform(1.02, 1.16)
    tall = max(tall, (high[0] - low[0]) * 1.04 * height / width)
    middle = (low + high) / 2 + rng.normal(0, [0.035, 0.02]) * tall
    scale = height / tall
    return View(loose.distance, camera.height, scale, middle[0] - width / scale / 2, middle[1] - tall / 2)


def develop(rng: np.random.Generator, camera: Camera, image: np.ndarray) -> np.ndarray:
    """Linear RGB (H,W,3) f4 → the camera's picture (H,W,3) uint8 BGR: exposure, white balance, blur, curve, noise."""
    rows = image.shape[0]
    image = image * (camera.gain * rng.uniform(0.85, 1.15)) * camera.tint.astype(np.float32)
    sigma = camera.blur * rows / 256 * rng.uniform(0.5, 1.6)
    image = cv2.GaussianBlur(image, (0, 0), max(sigma, 0.2))
    if rng.random() < 0.2:
        length = int(rng.integers(2, 5) * rows / 128) + 1
        image = cv2.blur(image, (length, 1))
    image = image / (1 + np.maximum(image - 0.75, 0))
    picture = 255 * np.clip(image, 0, 1) ** (1 / camera.gamma)
    picture += rng.normal(0, camera.noise, picture.shape) + rng.normal(0, camera.noise, (*picture.shape[:2], 1))
    return np.clip(picture[:, :, ::-1], 0, 255).astype(np.uint8)
