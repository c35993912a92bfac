"""The frame that every camera sees: full HD, with sample people standing in it side by side."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from dpm_edge.bench.cameras import Scene
from dpm_edge.gallery import Gallery
from dpm_edge.images import find_images, read_image
from dpm_edge.metrics import normalise
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.shipped import ASSETS

PLACES = 8
SAMPLES = ASSETS / "samples" / "query"
HEIGHT, WIDTH = 400, 160
"""Pixels of a person in the frame."""


def sample_people() -> list[NDArray[np.uint8]]:
    """Pictures of PLACES different people out of the samples that ship.

    Raises:
        ImageError: the samples are missing from this installation.
    """
    first = {path.name.split("_", 1)[0]: path for path in reversed(find_images(SAMPLES))}
    return [read_image(path) for _, path in sorted(first.items())[:PLACES]]


def compose(people: Sequence[NDArray[np.uint8]]) -> Scene:
    """A frame (1080, 1920, 3) with up to PLACES people, each HEIGHT × WIDTH pixels."""
    frame = np.full((1080, 1920, 3), 127, np.uint8)
    boxes = []
    for place, person in enumerate(people[:PLACES]):
        x, y = 40 + 230 * place, 300
        frame[y : y + HEIGHT, x : x + WIDTH] = cv2.resize(person, (WIDTH, HEIGHT))
        boxes.append((x, y, x + WIDTH, y + HEIGHT))
    return Scene(frame=frame, boxes=np.array(boxes, np.float64), names=[f"person {i}" for i in range(len(boxes))])


def crops(scene: Scene, count: int) -> list[NDArray[np.uint8]]:
    """`count` crops of the scene's people, cut out already, one person after the other."""
    cut = [np.ascontiguousarray(scene.frame[y0:y1, x0:x1]) for x0, y0, x1, y1 in scene.boxes.astype(int)]
    return [cut[i % len(cut)] for i in range(count)]


def fill(gallery: Gallery, people: Embeddings, scene: Scene, rows: int) -> None:
    """The scene's people under their names, and random strangers up to `rows` rows."""
    gallery.add(people, people=scene.names)
    strangers = max(0, rows - len(people))
    if strangers:
        draw = np.random.default_rng(0)
        features = normalise(draw.standard_normal((strangers, people.dimension), np.float32))
        gallery.add(
            Embeddings(
                features=features,
                masks=0.2 + 0.6 * draw.random(features.shape, np.float32),
                visibility=np.ones(strangers, np.float32),
                rows=np.arange(strangers),
                fingerprint=people.fingerprint,
            ),
            people=["stranger"] * strangers,
        )
