"""Rendered people, second edition: look-alikes, textured cloth, continuous colours, harsher cameras, detectors' boxes.

`Settings(edition=2)` draws people, cameras, boxes and pictures by the functions here; the body, the clothes' cuts, the
scene and the raster are those of the first edition. Everything follows from a numpy Generator.
"""

from __future__ import annotations

import colorsys
from dataclasses import replace

import cv2
import numpy as np

from dpm_edge.train.synthetic import materials as m
from dpm_edge.train.synthetic.camera import Camera, View
from dpm_edge.train.synthetic.person import Person, draw_person

GROUP = 4
"""People of a group of look-alikes: numbers that share number // GROUP."""
ALIKE = 0.5
"""Share of the groups whose people look alike: all but a few parts are the first one's."""
_PARTS = ("top", "bottom", "bag", "hair", "shoes", "colour")
_BOTTOMS = ("skirt", "tights", "trousers")
_COLOURS, _PATTERN, _SCALE = slice(0, 6), 6, 7
_CLOTH = (m.CAMOUFLAGE, m.PLAID, m.PRINT, m.MELANGE)
SLACK = 0.03
"""How much larger than the person a detector's box is on average."""
SMALLEST = 40
"""Rows of the smallest person before the picture is enlarged."""


def draw_person_2(seed: int, number: int) -> Person:
    """The person that (seed, number) stands for: repainted, and in half of the groups dressed as the group's first."""
    group = np.random.default_rng([seed, 6, number // GROUP])
    own = _repainted(draw_person(seed, number), np.random.default_rng([seed, 7, number]))
    first = number - number % GROUP
    if group.random() >= ALIKE or number == first:
        return own
    base = _repainted(draw_person(seed, first), np.random.default_rng([seed, 7, first]))
    rng = np.random.default_rng([seed, 8, number])
    return _alike(base, own, set(rng.choice(_PARTS, size=int(rng.integers(1, 3)), replace=False).tolist()))


def _alike(base: Person, own: Person, differs: set[str]) -> Person:
    """`base` with the parts named in `differs` from `own`; the body's measures are always `own`'s."""

    def of(part: str) -> Person:
        return own if part in differs else base

    bottoms = [one for one in of("bottom").layers if one.name in _BOTTOMS]
    shoes = [one for one in of("shoes").layers if one.name == "shoes"]
    tops = [one for one in of("top").layers if one.name not in (*_BOTTOMS, "shoes")]
    if "colour" in differs and "top" not in differs:
        theirs = [one for one in own.layers if one.name == "top"]
        tops = [replace(one, look=theirs[0].look) if one.name == "top" and theirs else one for one in tops]
    hair, bag = of("hair"), of("bag")
    return replace(
        base,
        phenotype={**base.phenotype, "height": own.phenotype["height"], "weight": own.phenotype["weight"]},
        layers=tuple(bottoms + tops + shoes),
        hair=hair.hair,
        hair_look=hair.hair_look,
        hat=hair.hat,
        hat_look=hair.hat_look,
        skin=hair.skin,
        bag=bag.bag,
        bag_look=bag.bag_look,
    )


def colour(rng: np.random.Generator) -> np.ndarray:
    """A cloth colour, (3,) linear RGB, from a continuous space: a half near grey or dark blue, the rest any hue."""
    if rng.random() < 0.5:
        hue, saturation, value = rng.normal(0.6, 0.05) % 1, rng.beta(1.2, 4), rng.beta(0.9, 1.5)
    else:
        hue, saturation, value = rng.random(), rng.beta(2, 2), rng.beta(1.2, 1.8)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, float(np.clip(value, 0.012, 0.9))))


def _repainted(person: Person, rng: np.random.Generator) -> Person:
    """The same clothes in colours of `colour`, a third of them in one of the second edition's cloths."""
    looks: dict[int, np.ndarray] = {}  # garments that shared a look go on sharing one
    layers = []
    for layer in person.layers:
        key = id(layer.look)
        if key not in looks:
            looks[key] = _cloth(layer.look, rng, patterned=0.0 if layer.name in ("shoes", "tights") else 0.35)
        layers.append(replace(layer, look=looks[key]))
    bag = _cloth(person.bag_look, rng, patterned=0.2)
    return replace(person, layers=tuple(layers), bag_look=bag)


def _cloth(look: np.ndarray, rng: np.random.Generator, patterned: float) -> np.ndarray:
    look = look.copy()
    if rng.random() < 0.85:
        look[_COLOURS] = np.concatenate([colour(rng), colour(rng)])
    if rng.random() < patterned:
        look[_PATTERN] = float(rng.choice(_CLOTH))
        look[_SCALE] = float(np.exp(rng.uniform(np.log(4.0), np.log(30.0))))
        look[8], look[9] = rng.uniform(0.3, 0.7), rng.random()
    return look


def draw_camera_2(seed: int, number: int) -> Camera:
    """Camera `number` of many sites: from night lamps to glare, with casts, heights and noise of a wide range."""
    rng = np.random.default_rng([seed, 9, number])
    turn, rise = rng.uniform(-np.pi, np.pi), rng.uniform(0.3, 1.4)
    light = np.array([np.sin(turn) * np.cos(rise), -np.cos(turn) * np.cos(rise), np.sin(rise)])
    warm = rng.normal(0, 0.12)
    return Camera(
        number=number,
        height=float(rng.uniform(1.4, 6.0)),
        light=light,
        sun=np.array([1 + warm, 1.0, 1 - warm]).clip(0.5, 1.5) * rng.uniform(0.1, 1.4),
        sky=np.array([0.95 - warm, 1.0, 1.08 + warm]).clip(0.5, 1.5) * rng.uniform(0.4, 0.95),
        tint=np.exp(rng.normal(0, 0.1, 3)),
        gain=float(np.exp(rng.normal(0, 0.35))),
        gamma=float(rng.uniform(1.8, 2.7)),
        noise=float(rng.uniform(0.5, 7.0)),
        blur=float(rng.uniform(0.3, 1.6)),
    )


def detector_box(rng: np.random.Generator, view: View, height: int, width: int, slack: float = SLACK) -> View:
    """The view as a detector would box it: loose by a share of `slack` on average, shifted, one in five cut short.

    A short one lacks the feet, or, in one of five, the head.
    """
    tall, wide = height / view.scale, width / view.scale
    loose = float(np.clip(np.exp(rng.normal(slack, 0.09)), 0.9, 1.35))
    left, top = rng.normal(0, [0.05, 0.03]) * [tall, tall]
    if rng.random() < 0.2:  # cut: zoom in and keep the head (four of five) or the feet
        loose = float(rng.uniform(0.6, 0.9))
        top = 0.0 if rng.random() < 0.8 else tall * (1 - loose)
    else:
        top -= tall * (loose - 1) / 2
    left -= wide * (loose - 1) / 2
    return View(view.distance, view.height, view.scale / loose, view.left + left, view.top + top)


def transmit(rng: np.random.Generator, picture: np.ndarray, smallest: int = SMALLEST) -> np.ndarray:
    """(H, W, 3) uint8 → the same after a low resolution (down to `smallest` rows) and compression, each in a half."""
    height, width = picture.shape[:2]
    if rng.random() < 0.5:
        rows = int(np.exp(rng.uniform(np.log(min(smallest, height)), np.log(height))))
        small = cv2.resize(picture, (max(8, width * rows // height), rows), interpolation=cv2.INTER_AREA)
        picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 85))])
        picture = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
    return picture
