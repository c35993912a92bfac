"""Rendered people, third edition: real cuts and textures of clothes, shoes and hair (`wardrobe`), dyed and printed on.

The garments are MakeHuman's; each person wears a top of one suit and a bottom of another, in own colours, half of them
in groups of look-alikes that differ in one or two parts. Coats, skirts, hats and bags are those of the first edition.
Cameras are milder than the second edition's: harsh light, casts and noise lost accuracy (docs/training.md).
Boxes, low resolution and compression are the second edition's. Everything follows from a numpy Generator.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dpm_edge.train.synthetic import body as b
from dpm_edge.train.synthetic import materials as m
from dpm_edge.train.synthetic.camera import Camera
from dpm_edge.train.synthetic.figure import Builder, Figure, add_bag, add_face, add_hair, add_hat, hems, sag
from dpm_edge.train.synthetic.person import Layer, Person, draw_person
from dpm_edge.train.synthetic.second import ALIKE, GROUP, colour, draw_camera_2
from dpm_edge.train.synthetic.wardrobe import Garment, Wardrobe

SLACK, SMALLEST = -0.02, 64
"""As in the second edition; boxes are tighter and pictures sharper here, nearer to real ones."""
PARTS = ("top", "bottom", "shoes", "hair", "bag", "top colour", "bottom colour")
_OVER = ("jacket", "coat")
_HAIR_OF = {"long": ("long01", "braid01", "long01"), "shoulder": ("bob02", "bob01"), "bob": ("bob01", "bob02"),
            "bun": ("ponytail01",), "tail": ("ponytail01", "braid01"),
            "short": ("short01", "short02", "short03", "short04"), "crop": ("short04", "short02"),
            "full": ("afro01", "short03"), "bald": ()}  # fmt: skip
_PRINTS = {m.PLAIN: 0.62, m.STRIPES: 0.08, m.UPRIGHT: 0.03, m.PLAID: 0.06, m.LOGO: 0.05, m.PRINT: 0.06,
           m.TWO_TONE: 0.05, m.BAND: 0.03, m.CAMOUFLAGE: 0.02}  # fmt: skip
_BLACK, _WHITE, _NAVY = (0.015, 0.015, 0.015), (0.6, 0.6, 0.6), (0.02, 0.025, 0.06)
_USUAL = {
    "top": (_BLACK, (0.08, 0.08, 0.08), _WHITE, _NAVY),
    "bottom": (_BLACK, (0.03, 0.045, 0.09), (0.06, 0.1, 0.2), (0.06, 0.06, 0.065), (0.2, 0.16, 0.1), _NAVY),
    "shoes": (_BLACK, _WHITE, (0.08, 0.05, 0.03)),
}
"""Linear colours that many wear: black, grey, white, navy; black, denim, grey, beige, navy."""


@dataclass(frozen=True)
class Worn:
    """A garment and its material row (the texture's row and mean luminance are filled in from the garment)."""

    garment: Garment
    look: np.ndarray


_Parts = tuple[list[Worn], list[Layer]]


@dataclass(frozen=True)
class Dressed(Person):
    """A person of the third edition: `layers` keeps only what the wardrobe has not (skirts, coats, open jackets)."""

    worn: tuple[Worn, ...] = ()


def draw_person_3(wardrobe: Wardrobe, seed: int, number: int) -> Dressed:
    """The person that (seed, number) stands for; each part is drawn by its own generator, or by the group's first's."""
    first = number - number % GROUP
    differs = set(PARTS)
    if number != first and np.random.default_rng([seed, 10, first]).random() < ALIKE:
        own = np.random.default_rng([seed, 11, number])
        differs = set(own.choice(PARTS, size=int(own.integers(1, 3)), replace=False).tolist())

    def rng(part: str) -> np.random.Generator:
        return np.random.default_rng([seed, 12, PARTS.index(part), number if part in differs else first])

    theirs = draw_person(seed, number if "hair" in differs else first)
    mine, bags = draw_person(seed, number), draw_person(seed, number if "bag" in differs else first)
    feminine = theirs.phenotype["gender"] > 0.5
    tops, bottoms = (
        _top(wardrobe, rng("top"), rng("top colour"), feminine),
        _bottom(wardrobe, rng("bottom"), rng("bottom colour"), feminine),
    )
    worn = [*tops[0], *bottoms[0], _shoes(wardrobe, rng("shoes"))]
    hair = _hair(wardrobe, rng("hair"), theirs)
    return Dressed(
        phenotype={**theirs.phenotype, **{n: mine.phenotype[n] for n in ("height", "weight")}},
        skin=theirs.skin, hair="crop" if hair else theirs.hair, hair_look=theirs.hair_look,
        hat=theirs.hat if theirs.hat != "hood" else "none", hat_look=_dyed(theirs.hat_look, rng("hair")),
        layers=(*bottoms[1], *tops[1]), bag=bags.bag, bag_look=_dyed(bags.bag_look, rng("bag")),
        stride=mine.stride, slouch=mine.slouch, worn=(*worn, *hair),
    )  # fmt: skip


def _dyed(look: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    look = look.copy()
    look[:6] = np.concatenate([colour(rng), colour(rng)])
    return look


def _cloth(rng: np.random.Generator, garment: Garment, original: float, printed: bool = True) -> Worn:
    """The garment in its own colours (a share of `original`) or dyed, with a print on some."""
    dye = 0.0 if rng.random() < original else 1.0
    base, second = colour(rng), colour(rng)
    if dye and rng.random() < (0.6 if garment.kind == "bottom" else 0.3):
        base = np.array(_USUAL[garment.kind][rng.integers(len(_USUAL[garment.kind]))]) * rng.uniform(0.6, 1.5)
    kinds, shares = list(_PRINTS), np.array(list(_PRINTS.values()))
    pattern = int(rng.choice(kinds, p=shares)) if dye and printed else m.PLAIN
    scale, duty, phase = rng.uniform(8, 24), rng.uniform(0.3, 0.6), rng.random()
    if pattern == m.LOGO:
        scale, duty, phase = rng.uniform(0.8, 2.2), rng.uniform(0.04, 0.1), rng.uniform(0.36, 0.48)
    elif pattern == m.TWO_TONE:
        phase = rng.uniform(0.25, 0.47)
    elif pattern == m.BAND:
        duty, phase = rng.uniform(0.03, 0.08), rng.uniform(0.28, 0.45)
    look = m.material(
        base, second, pattern, scale, duty, phase, 0.13 if garment.kind == "top" else 0.08,
        float(rng.choice([0.02, 0.05, 0.1])), rng.uniform(0.1, 0.5), float(rng.integers(1000)),
        garment.texture, dye, garment.light,
    )  # fmt: skip
    return Worn(garment, look)


def _pick(wardrobe: Wardrobe, rng: np.random.Generator, kind: str, feminine: bool) -> Garment:
    """A garment of the kind; three times in four one that is cut for the body."""
    some = wardrobe.garments[kind]
    fits = [one for one in some if one.name.startswith("female") == feminine]
    chosen = fits if fits and rng.random() < 0.75 else some
    return chosen[int(rng.integers(len(chosen)))]


def _top(wardrobe: Wardrobe, rng: np.random.Generator, paint: np.random.Generator, feminine: bool) -> _Parts:
    garment = _pick(wardrobe, rng, "top", feminine)
    worn, layers = [_cloth(paint, garment, original=0.2)], list[Layer]()
    if rng.random() < 0.22:
        over = [one for _ in range(8) for one in draw_person(int(rng.integers(1 << 30)), 1).layers if one.name in _OVER]
        if over:
            look = _dyed(over[0].look, paint)
            layers = [
                replace(one, look=look, gap=max(one.gap, 0.045))
                for one in over[: 1 + (len(over) > 1 and over[1].name == "coat")]
            ]
    return worn, layers


def _bottom(wardrobe: Wardrobe, rng: np.random.Generator, paint: np.random.Generator, feminine: bool) -> _Parts:
    if feminine and rng.random() < 0.3:
        for _ in range(12):
            drawn = draw_person(int(rng.integers(1 << 30)), 1).layers
            skirts = [one for one in drawn if one.name in ("skirt", "tights")]
            if skirts:
                look = _dyed(skirts[0].look, paint)
                return [], [replace(one, look=look) if one.name == "skirt" else one for one in skirts]
    garment = _pick(wardrobe, rng, "bottom", feminine)
    return [_cloth(paint, garment, original=0.3, printed=paint.random() < 0.15)], []


def _shoes(wardrobe: Wardrobe, rng: np.random.Generator) -> Worn:
    some = wardrobe.garments["shoes"]
    return _cloth(rng, some[int(rng.integers(len(some)))], original=0.4, printed=False)


def _hair(wardrobe: Wardrobe, rng: np.random.Generator, person: Person) -> list[Worn]:
    names = _HAIR_OF[person.hair]
    some = {one.name: one for one in wardrobe.garments["hair"]}
    names = tuple(name for name in names if name in some)
    if not names:
        return []
    garment = some[names[int(rng.integers(len(names)))]]
    look = person.hair_look.copy()
    look[m.FIELDS.index("pattern")], look[m.FIELDS.index("folds")] = m.PLAIN, 0.0
    look[m.FIELDS.index("texture")], look[m.FIELDS.index("light")] = garment.texture, garment.light
    return [Worn(garment, look)]


def dress_3(body: b.Body, person: Dressed) -> Figure:
    """Build the figure of a person of the third edition."""
    rest, rest_bones = body.rest(person.phenotype)
    build = Builder(body, rest)
    hidden = np.zeros(len(rest), bool)
    head, above = body.region == b.HEAD, _above(body)
    for worn in person.worn:
        garment = worn.garment
        bones, weights = garment.skinning(body)
        points = garment.points(rest)
        if garment.kind != "hair":
            part = {"top": above, "bottom": ~above}.get(garment.kind, np.ones_like(above))
            hidden |= garment.hides & part
        build.add(
            points, garment.triangles, np.ones(len(points), np.float32), garment.chart(body), bones, weights, worn.look,
            garment.uv, garment.texture if garment.cut_out else -1,
        )  # fmt: skip
    for layer in person.layers:
        build.shell(layer.surface, layer.gap + sag(body, layer), hems(body, layer), layer.look)
    skin = m.material(person.skin, gloss=0.06, radius=0.1)
    build.shell("skin", np.zeros(len(rest)), np.where(hidden & ~head, -1.0, 1.0), skin)
    add_face(build, person)
    add_hair(build, person)
    add_hat(build, person)
    add_bag(build, replace(person, layers=(*person.layers, Layer("top", "tights", 0, 0, 0.03, skin))))  # type: ignore[call-arg]
    return build.figure(rest_bones)


def _above(body: b.Body) -> np.ndarray:
    """(V,) bool: what a top covers of the body, rather than a bottom: from the waist up, and the arms."""
    arm = (body.region == b.ARM_LEFT) | (body.region == b.ARM_RIGHT)
    return (body.canonical[:, 2] > 0.17) | arm


def draw_camera_3(seed: int, number: int) -> Camera:
    """Camera `number`: the second edition's place, with half of its casts, exposure and noise, a third of its blur."""
    rng = np.random.default_rng([seed, 13, number])
    warm = rng.normal(0, 0.06)
    harsh = draw_camera_2(seed, number)
    return replace(
        harsh,
        sun=np.array([1 + warm, 1.0, 1 - warm]) * rng.uniform(0.1, 1.2),
        sky=np.array([0.97 - warm, 1.0, 1.05 + warm]) * rng.uniform(0.45, 0.9),
        tint=np.exp(rng.normal(0, 0.04, 3)),
        gain=float(np.exp(rng.normal(0, 0.25))),
        noise=float(rng.uniform(0.5, 4.0)),
        blur=float(rng.uniform(0.1, 0.6)),
    )
