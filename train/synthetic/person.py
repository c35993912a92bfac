"""Who a person is: body, skin, hair, clothes and bag, drawn once from the person's seed, the same in all views."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np

from dpm_edge.train.synthetic import materials as m

# Canonical heights (metres, z of the average adult at rest; see body.Body.canonical): ankle -0.80, knee -0.31,
# crotch 0.03, hip 0.11, waist 0.27, chest 0.45, shoulder 0.58, chin 0.68, crown 0.81. Arms go on below the shoulder.
TROUSER_HEMS = {"long": -0.84, "cropped": -0.66, "knee": -0.36, "short": -0.14}
SKIRT_HEMS = {"mini": -0.12, "knee": -0.32, "midi": -0.55, "long": -0.78}
WRIST = 0.58 - 0.53
SLEEVES = {"long": WRIST, "elbow": 0.58 - 0.27, "short": 0.58 - 0.17, "none": 0.58 - 0.02}
_FABRICS = [
    (0, 0, 0.02), (0, 0, 0.06), (0, 0, 0.2), (0, 0, 0.45), (0, 0, 0.85), (0.6, 0.5, 0.1), (0.6, 0.6, 0.25),
    (0.58, 0.35, 0.4), (0.1, 0.35, 0.35), (0.09, 0.5, 0.18), (0.0, 0.85, 0.4), (0.98, 0.8, 0.22), (0.33, 0.6, 0.15),
    (0.28, 0.4, 0.25), (0.55, 0.75, 0.55), (0.13, 0.8, 0.75), (0.06, 0.85, 0.65), (0.75, 0.5, 0.3), (0.9, 0.45, 0.65),
]  # fmt: skip
_PATTERNS = {m.STRIPES: 0.22, m.UPRIGHT: 0.06, m.CHECKS: 0.14, m.LOGO: 0.2, m.TWO_TONE: 0.12, m.DOTS: 0.04,
             m.BAND: 0.1, m.BLOTCHES: 0.06, m.BACK_PRINT: 0.06}  # fmt: skip
_SKINS = [(0.62, 0.40, 0.30), (0.55, 0.34, 0.24), (0.42, 0.24, 0.15), (0.26, 0.14, 0.085), (0.12, 0.062, 0.04)]
_HAIRS = [(0.012, 0.01, 0.01), (0.03, 0.018, 0.012), (0.07, 0.035, 0.018), (0.2, 0.11, 0.045), (0.42, 0.29, 0.14),
          (0.16, 0.045, 0.02), (0.32, 0.32, 0.33)]  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """A garment cut from a body surface: `surface` of body.SURFACES, between two heights, `gap` metres off the body.

    low, high: canonical heights of the hems; sleeve: where the sleeve ends on the arm's chart (None: no arms);
    flare: extra gap at the lower hem; opening: half width of an open front (0: closed); look: its material row.
    """

    name: str
    surface: str
    low: float
    high: float
    gap: float
    look: np.ndarray
    sleeve: float | None = None
    flare: float = 0.0
    opening: float = 0.0


@dataclass(frozen=True)
class Person:
    """Everything that stays fixed over all pictures of one person; colours are linear RGB."""

    phenotype: dict[str, float]
    skin: np.ndarray
    hair: str
    hair_look: np.ndarray
    hat: str
    hat_look: np.ndarray
    layers: tuple[Layer, ...]
    bag: str
    bag_look: np.ndarray
    stride: float
    slouch: float


def _color(rng: np.random.Generator) -> np.ndarray:
    hue, saturation, value = _FABRICS[rng.integers(len(_FABRICS))]
    hue = (hue + rng.normal(0, 0.025)) % 1.0
    saturation = np.clip(saturation + rng.normal(0, 0.05), 0, 1)
    return np.array(colorsys.hsv_to_rgb(hue, saturation, np.clip(value * rng.uniform(0.7, 1.3), 0.012, 0.9)))


def _look(rng: np.random.Generator, color: np.ndarray, patterned: float, gloss: float = 0.04) -> np.ndarray:
    second = _color(rng)
    if abs(second.sum() - color.sum()) < 0.25:
        second = np.full(3, 0.75) if color.sum() < 0.9 else np.full(3, 0.04)
    fabric = {"gloss": gloss, "folds": rng.uniform(0.5, 1.0), "seed": float(rng.integers(1000)), "radius": 0.13}
    if rng.random() >= patterned:
        return m.material(color, **fabric)
    pattern = int(rng.choice(list(_PATTERNS), p=list(_PATTERNS.values())))
    scale, duty, phase = rng.uniform(8, 24), rng.uniform(0.3, 0.6), rng.random()
    if pattern in (m.LOGO, m.BACK_PRINT):
        scale, duty, phase = rng.uniform(0.8, 2.2), rng.uniform(0.04, 0.1), rng.uniform(0.36, 0.48)
    elif pattern == m.TWO_TONE:
        phase = rng.uniform(0.25, 0.47)
    elif pattern == m.BAND:
        duty, phase = rng.uniform(0.03, 0.08), rng.uniform(0.28, 0.45)
    elif pattern == m.DOTS:
        duty = rng.uniform(0.25, 0.4)
    return m.material(color, second, pattern, scale, duty, phase, **fabric)


def _bottoms(rng: np.random.Generator, feminine: bool) -> list[Layer]:
    if rng.random() < (0.35 if feminine else 0.0):
        hem = SKIRT_HEMS[str(rng.choice(list(SKIRT_HEMS), p=[0.25, 0.35, 0.25, 0.15]))]
        look = _look(rng, _color(rng), 0.35)
        layers = [Layer("skirt", "skirt", hem, 0.27, 0.006, look, flare=rng.uniform(-0.05, 0.08))]
        if rng.random() < 0.4:
            layers.append(Layer("tights", "tights", -0.9, 0.2, 0.003, _look(rng, np.full(3, 0.02), 0.0)))
        return layers
    hem = TROUSER_HEMS[str(rng.choice(list(TROUSER_HEMS), p=[0.7, 0.08, 0.14, 0.08]))]
    look = _look(rng, _color(rng), 0.12)
    if rng.random() < 0.12:
        look = m.material(look[:3], [0.8, 0.8, 0.8], m.SIDE_STRIPE, duty=0.02, radius=0.08, folds=0.7)
    look[m.FIELDS.index("radius")] = 0.08
    slim = rng.uniform(0.004, 0.022)
    return [Layer("trousers", "tights", hem, 0.26, slim, look, flare=rng.uniform(0.0, 0.03))]


def _tops(rng: np.random.Generator, feminine: bool) -> list[Layer]:
    sleeve = SLEEVES[str(rng.choice(list(SLEEVES), p=[0.45, 0.08, 0.4, 0.07]))]
    top = Layer("top", "tights", rng.uniform(0.02, 0.2), rng.uniform(0.58, 0.64), rng.uniform(0.008, 0.022),
                _look(rng, _color(rng), 0.5), sleeve, flare=rng.uniform(0, 0.015))  # fmt: skip
    layers = [top]
    if rng.random() < 0.45:
        hem = rng.uniform(0.0, 0.18)
        opening = rng.uniform(0.03, 0.09) if rng.random() < 0.45 else 0.0
        look = _look(rng, _color(rng), 0.2, gloss=rng.choice([0.03, 0.12]))
        if opening == 0.0 and look[m.FIELDS.index("pattern")] == m.PLAIN and rng.random() < 0.6:
            look = m.material(look[:3], _color(rng), m.OPENING, duty=0.008, radius=0.13, folds=0.8, seed=look[13])
        gap = rng.uniform(0.026, 0.05)
        layers.append(Layer("jacket", "tights", hem, 0.63, gap, look, SLEEVES["long"] - 0.01, 0.01, opening))
        if rng.random() < 0.25:
            tail = rng.uniform(-0.45, -0.05)
            layers.append(Layer("coat", "skirt", tail, 0.3, gap * 0.8, look, flare=-0.06, opening=opening))
    return layers


def draw_person(seed: int, number: int) -> Person:
    """The person that (seed, number) stands for; the same pair always gives the same person."""
    rng = np.random.default_rng([seed, 0, number])
    feminine = bool(rng.random() < 0.5)
    phenotype = {
        "gender": float(np.clip((0.88 if feminine else 0.1) + rng.normal(0, 0.06), 0, 1)),
        "age": float(rng.uniform(0.6, 0.95)), "muscle": float(rng.uniform(0.25, 0.8)),
        "weight": float(np.clip(rng.normal(0.52, 0.2), 0.1, 1)),
        "height": float(np.clip(rng.normal(0.5, 0.18), 0.05, 0.95)),
        "proportions": float(rng.uniform(0.3, 0.9)),
    }  # fmt: skip
    skin = np.array(_SKINS[rng.integers(len(_SKINS))]) * rng.uniform(0.85, 1.15)
    styles = {"long": 0.3, "shoulder": 0.2, "bob": 0.12, "bun": 0.12, "tail": 0.14, "short": 0.12} if feminine else \
             {"short": 0.5, "crop": 0.22, "bald": 0.1, "full": 0.13, "shoulder": 0.05}  # fmt: skip
    weights = np.array(list(styles.values()))
    hair = str(rng.choice(list(styles), p=weights / weights.sum()))
    hair_color = np.array(_HAIRS[rng.integers(len(_HAIRS))]) * rng.uniform(0.7, 1.3)
    hair_look = m.material(hair_color, hair_color * 0.55, m.UPRIGHT, 45.0, 0.5, radius=0.1, gloss=0.1, folds=0.5)
    hat = str(rng.choice(["none", "cap", "beanie", "hood"], p=[0.78, 0.1, 0.07, 0.05]))
    layers = _bottoms(rng, feminine)
    dress = layers[0].name == "skirt" and rng.random() < 0.45
    tops = _tops(rng, feminine)
    if dress:
        top = tops[0]
        tops[0] = Layer("top", "tights", 0.2, top.high, top.gap, layers[0].look, top.sleeve)
    shoes = _look(rng, _color(rng) if rng.random() < 0.5 else np.full(3, rng.choice([0.02, 0.8])), 0.0, 0.12)
    boot = float(rng.choice([-0.85, -0.8, -0.55], p=[0.5, 0.38, 0.12]))
    layers += tops + [Layer("shoes", "tights", -1.2, boot, 0.014 if boot < -0.7 else 0.02, shoes)]
    bag = str(rng.choice(["none", "backpack", "shoulder", "handbag"], p=[0.45, 0.27, 0.16, 0.12]))
    hat_look = _look(rng, _color(rng), 0.1)
    if hat == "hood":
        hat_look = tops[-1].look.copy()
    return Person(
        phenotype, skin, hair, hair_look, hat, hat_look, tuple(layers), bag, _look(rng, _color(rng), 0.25, 0.08),
        float(rng.uniform(0.35, 0.6)), float(rng.normal(0.02, 0.05)),
    )  # fmt: skip
