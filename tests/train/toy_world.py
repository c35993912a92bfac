"""A toy world for the tests of training: coloured stick people in Market-1501's layout, and a tiny network."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from dpm_edge import spec

TINY = spec.ModelSpec(
    name="tiny", width=48, heads=3, layers=4, patch=8, stride=8, mask_blocks=(1, 2, 3, 4), joint_dim=16, hmg="lite"
)
SMALL = [
    "model.preset=tiny",
    "model.init=",
    "model.height=64",
    "model.width=32",
    "model.stride=8",
    "data.identities=8",
    "schedule.epochs=2",
    "evaluate.every=2",
    "evaluate.occlusion=false",
    "saliency.source=learned",
    "saliency.epochs=1",
    "log_every=1",
    "device=cpu",
]


def person(number: int, camera: int, draw: np.random.Generator) -> np.ndarray:
    """A stick person whose clothes follow from `number`, seen by a camera with its own tint: (128, 64, 3) uint8."""
    look = np.random.default_rng(number)
    top, bottom, bag = (tuple(look.uniform(10, 245, 3)) for _ in range(3))
    image = cv2.resize(np.random.default_rng(1000 + camera).uniform(40, 200, (8, 4, 3)), (64, 128))
    centre = 32 + int(draw.integers(-5, 6))
    cv2.rectangle(image, (centre - 14, 28), (centre + 14, 72), top, -1)
    if look.random() < 0.5:
        cv2.rectangle(image, (centre - 3, 28), (centre + 3, 72), bag, -1)
    cv2.rectangle(image, (centre - 11, 72), (centre + 11, 120), bottom, -1)
    cv2.circle(image, (centre, 18), 9, (150, 180, 220), -1)
    tint = np.random.default_rng(50 + camera).uniform(0.55, 1.3, 3)
    return (image * tint * draw.uniform(0.8, 1.2) + draw.normal(0, 6, image.shape)).clip(0, 255).astype(np.uint8)


def make_market(root: Path, people: int = 32, cameras: int = 3) -> Path:
    """A Market-1501 folder: three quarters of the people to train on, one query a camera of the others."""
    draw = np.random.default_rng(0)
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (root / part).mkdir(parents=True)
    for number in range(1, people + 1):
        for camera in range(1, cameras + 1):
            for shot in range(2):
                part = "bounding_box_train" if number <= 0.75 * people else ("query", "bounding_box_test")[shot]
                name = f"{number:04d}_c{camera}s1_{shot:06d}_00.jpg"
                cv2.imwrite(str(root / part / name), person(number, camera, draw))
    return root
