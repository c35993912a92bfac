"""A dressed figure: one mesh of skin, garments, hair, hat and bag, cut from the body's surfaces and moved off them.

Shapes: M vertices of the figure, T triangles, K bone weights a vertex. Everything is built once a person, unposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dpm_edge.train.synthetic import body as b
from dpm_edge.train.synthetic import materials, raster
from dpm_edge.train.synthetic.person import Layer, Person
from dpm_edge.train.synthetic.solids import box, ellipsoid

_HAIR_END = {"long": 0.34, "shoulder": 0.58, "bob": 0.66}


@dataclass(frozen=True)
class Figure:
    """rest: (M,3) f4 metres. triangles: (T,3) i4. cut: (M,) f4. chart: (M,3) f4. bones, weights: (M,K).
    owner: (T,) i4 rows of table. table: (rows, fields) f4 materials. rest_bones: anny's, for body.transforms.
    uv: (M,2) f4 texture coordinates. cut_out: (T,) i4, texture whose alpha cuts the triangle out, or -1.
    """

    rest: np.ndarray
    triangles: np.ndarray
    cut: np.ndarray
    chart: np.ndarray
    bones: np.ndarray
    weights: np.ndarray
    owner: np.ndarray
    table: np.ndarray
    rest_bones: object
    uv: np.ndarray
    cut_out: np.ndarray

    def pose(self, body: b.Body, rotations: dict[str, np.ndarray]) -> np.ndarray:
        """Posed vertices (M,3) f4, the lowest at z = 0 and the hips above the origin."""
        transforms = body.transforms(self.rest_bones, rotations)
        points = raster.skin(self.rest, self.bones, self.weights, transforms)
        shown = np.unique(self.triangles[(self.cut[self.triangles] >= 0).all(1)])
        points[:, 2] -= points[shown, 2].min()
        return points


class Builder:
    """Collects a person's meshes, unposed."""

    def __init__(self, body: b.Body, rest: np.ndarray) -> None:
        self.body, self.rest = body, rest
        self.normals = {name: raster.vertex_normals(rest, faces) for name, faces in body.faces.items()}
        self.parts: list[tuple[np.ndarray, ...]] = []
        self.table: list[np.ndarray] = []
        self.count = 0

    def add(self, points, triangles, cut, chart, bones, weights, look, uv=None, cut_out=-1) -> None:
        owner = np.full(len(triangles), len(self.table), np.int32)
        uv = np.zeros((len(points), 2), np.float32) if uv is None else uv
        cuts = np.full(len(triangles), cut_out, np.int32)
        self.parts.append((points, triangles + self.count, cut, chart, bones, weights, owner, uv, cuts))
        self.table.append(np.asarray(look, np.float32))
        self.count += len(points)

    def shell(self, surface: str, gap: np.ndarray, cut: np.ndarray, look: np.ndarray) -> None:
        """The part of a surface where cut (V,) is not negative, moved out by gap (V,)."""
        faces = self.body.faces[surface]
        faces = faces[(cut[faces] >= 0).any(1)]
        rows, flat = np.unique(faces, return_inverse=True)
        points = self.rest[rows] + gap[rows, None].astype(np.float32) * self.normals[surface][rows]
        self.add(points, flat.reshape(-1, 3).astype(np.int32), cut[rows].astype(np.float32), self.body.chart[rows],
                 self.body.bones[rows], self.body.weights[rows], look)  # fmt: skip

    def solid(self, mesh: tuple[np.ndarray, np.ndarray], chart: np.ndarray, bone: str, look: np.ndarray) -> None:
        """A rigid mesh (points at rest, triangles) that follows one bone."""
        points, triangles = mesh
        bones = np.zeros((len(points), self.body.bones.shape[1]), np.int32)
        weights = np.zeros(bones.shape, np.float32)
        bones[:, 0], weights[:, 0] = self.body.bone(bone), 1.0
        self.add(points, triangles, np.ones(len(points), np.float32), chart.astype(np.float32), bones, weights, look)

    def figure(self, rest_bones: object) -> Figure:
        """All that was added, as one mesh."""
        columns = [np.concatenate(column) for column in zip(*self.parts, strict=True)]
        points, triangles, cut, chart, bones, weights, owner, uv, cuts = columns
        return Figure(points, triangles, cut, chart, bones, weights, owner, np.stack(self.table), rest_bones, uv, cuts)


def dress(body: b.Body, person: Person) -> Figure:
    """Build the figure of a person."""
    rest, rest_bones = body.rest(person.phenotype)
    build = Builder(body, rest)
    covered = np.full(len(rest), -1.0, np.float32)
    for layer in person.layers:
        cut = hems(body, layer)
        gap = layer.gap + sag(body, layer)
        build.shell(layer.surface, gap, cut, layer.look)
        if layer.surface == "tights" and layer.opening == 0.0:
            covered = np.maximum(covered, cut - 0.02)
    head = body.region == b.HEAD
    skin = materials.material(person.skin, gloss=0.06, radius=0.1)
    build.shell("skin", np.zeros(len(rest)), np.where(head, 1.0, -covered), skin)
    add_face(build, person)
    add_hair(build, person)
    add_hat(build, person)
    add_bag(build, person)
    return build.figure(rest_bones)


def hems(body: b.Body, layer: Layer) -> np.ndarray:
    """Signed distance (V,) to the garment's edges, positive inside."""
    z = body.canonical[:, 2]
    inside = np.minimum(z - layer.low, layer.high - z)
    arm = (body.region == b.ARM_LEFT) | (body.region == b.ARM_RIGHT)
    inside[arm] = -1.0 if layer.sleeve is None else body.chart[arm, 2] - layer.sleeve
    if layer.opening:
        side = np.abs(body.canonical[:, 0]) - layer.opening * (0.5 + 0.5 * np.clip((0.6 - z) / 0.4, 0, 1))
        front = (body.canonical[:, 1] < -0.02) & ~arm
        inside[front] = np.minimum(inside[front], side[front])
    return inside


def sag(body: b.Body, layer: Layer) -> np.ndarray:
    """Extra gap (V,): the flare towards the lower hem, and the cloth's own unevenness."""
    chart = body.chart
    reach = np.clip((layer.high - chart[:, 2]) / max(layer.high - layer.low, 0.1), 0, 1)
    uneven = np.sin(chart[:, 2] * 37 + layer.gap * 900) * np.sin(
        np.arctan2(chart[:, 0], -chart[:, 1]) * 4 + layer.flare * 70
    )
    return layer.flare * reach + 0.25 * layer.gap * uneven


def add_face(build: Builder, person: Person) -> None:
    """Brows, eyes and lips as thin shells, so that the front of a head differs from its back."""
    body = build.body
    at = body.canonical
    eye = body.joints["eye.L"]
    across, up, front = np.abs(at[:, 0]) - eye[0], at[:, 2] - eye[2], at[:, 1] < eye[1] + 0.01
    brow = np.where(front, np.minimum(0.021 - np.abs(across), 0.0065 - np.abs(up - 0.02)), -1)
    eyes = np.where(front, np.minimum(0.014 - np.abs(across), 0.007 - np.abs(up)), -1)
    lips = np.where(front, np.minimum(0.024 - np.abs(at[:, 0]), 0.008 - np.abs(up + 0.068)), -1)
    build.shell(
        "skin", np.full(len(at), 0.003), brow, materials.material(person.hair_look[:3] * 0.8 + person.skin * 0.1)
    )
    build.shell("skin", np.full(len(at), 0.004), eyes, materials.material(person.skin * 0.12 + 0.02))
    lip = person.skin * np.array([0.8, 0.5, 0.5])
    build.shell("skin", np.full(len(at), 0.002), lips, materials.material(lip))


def add_hair(build: Builder, person: Person) -> None:
    body, style = build.body, person.hair
    if style == "bald":
        return
    at, eye = body.canonical, body.joints["eye.L"]
    head = body.region == b.HEAD
    back = at[:, 1] - eye[1]  # 0 at the eyes, about 0.2 at the back of the head
    line = np.interp(back, [-0.03, 0.05, 0.1, 0.16], [0.055, 0.045, 0.0, -0.06])  # the hair line above the eyes
    scalp = np.where(head, at[:, 2] - eye[2] - line, -1.0)
    thick = {"crop": 0.006, "short": 0.016, "full": 0.038, "bun": 0.01, "tail": 0.012}.get(style, 0.02)
    bumps = 1 + 0.25 * np.sin(at[:, 0] * 90) * np.sin(at[:, 2] * 80)
    look = person.hair_look
    build.shell("skin", thick * bumps * np.clip(scalp / 0.03, 0.25, 1), scalp, look)
    if style in _HAIR_END:
        end = _HAIR_END[style]
        cut = at[:, 2] - end
        cut = np.where(at[:, 1] < -0.06, np.minimum(cut, np.abs(at[:, 0]) - 0.055), cut)
        build.shell("hair", np.full(len(at), 0.012), cut, look)
    centre = body.joints["head"] + np.array([0, 0.12, 0.07])
    if style in ("bun", "tail"):
        at_rest = _follow(build, centre)
        size = (0.05, 0.045, 0.05) if style == "bun" else (0.035, 0.03, 0.12)
        lift = (0, 0.0, 0.05) if style == "bun" else (0, 0.025, -0.08)
        points, triangles = ellipsoid(at_rest + np.array(lift), size)
        build.solid((points, triangles), points - at_rest, "head", look)


def _follow(build: Builder, canonical: np.ndarray) -> np.ndarray:
    """Where a point of the canonical body lies on this person: moved with the nearest skin vertex."""
    rows = np.unique(build.body.faces["skin"])
    nearest = rows[np.linalg.norm(build.body.canonical[rows] - canonical, axis=1).argmin()]
    return build.rest[nearest] + canonical - build.body.canonical[nearest]


def add_hat(build: Builder, person: Person) -> None:
    if person.hat == "none":
        return
    body = build.body
    at, eye = body.canonical, body.joints["eye.L"]
    head = body.region == b.HEAD
    up, back = at[:, 2] - eye[2], at[:, 1] - eye[1]
    if person.hat == "hood":
        cut = np.where(head, np.maximum(back - 0.07, up - 0.07), -1.0)
        build.shell("skin", np.full(len(at), 0.05), cut, person.hat_look)
        return
    edge = 0.035 if person.hat == "cap" else 0.03
    cut = np.where(head, up - edge + 0.15 * np.clip(back, 0, 0.15), -1.0)
    build.shell("skin", np.full(len(at), 0.03 if person.hat == "cap" else 0.034), cut, person.hat_look)
    if person.hat == "cap":
        brow = _follow(build, np.array([0, eye[1] - 0.02, eye[2] + 0.05]))
        brim = ellipsoid(brow + np.array([0, -0.05, 0.0]), (0.075, 0.07, 0.008))
        build.solid(brim, brim[0] * 0, "head", person.hat_look)


def add_bag(build: Builder, person: Person) -> None:
    if person.bag == "none":
        return
    body = build.body
    at = body.canonical
    torso = (body.region == b.TORSO) | (body.region == b.LEG_LEFT) | (body.region == b.LEG_RIGHT)
    gap = max([layer.gap for layer in person.layers if layer.name in ("top", "jacket")], default=0.02) + 0.008
    look = person.bag_look.copy()
    look[materials.FIELDS.index("radius")] = 0.0
    if person.bag == "backpack":
        spine = _follow(build, np.array([0, at[body.region == b.TORSO, 1].max(), 0.42]))
        mesh = box(spine + np.array([0, 0.06 + gap, 0.0]), (0.16, 0.075, 0.23), taper=0.8)
        build.solid(mesh, mesh[0] - spine + np.array([0, 0, 0.42]), "spine02", look)
        strap = np.minimum(0.02 - np.abs(np.abs(at[:, 0]) - 0.11), at[:, 2] - 0.34)
        build.shell("tights", np.full(len(at), gap), np.where(body.region == b.TORSO, strap, -1.0), look)
    elif person.bag == "shoulder":
        hip = _follow(build, np.array([0.19, 0.02, 0.12]))
        mesh = box(hip + np.array([0.07 + gap, 0, 0.0]), (0.055, 0.15, 0.12), taper=0.9)
        build.solid(mesh, (mesh[0] - hip)[:, [1, 0, 2]] + np.array([0, 0, 0.42]), "pelvis.L", look)
        along = (at[:, 0] + 0.12) * 0.8 + (at[:, 2] - 0.58) * 0.5
        strap = np.minimum(0.017 - np.abs(along), at[:, 2] - 0.1)
        build.shell("tights", np.full(len(at), gap), np.where(torso, strap, -1.0), look)
    else:
        hand = _follow(build, body.joints["finger3-1.R"])
        points, triangles = box(np.array([0.0, 0.0, -0.2]), (0.15, 0.05, 0.13), taper=0.85)
        axis = body.joints["wrist.R"] - body.joints["lowerarm01.R"]
        axis = axis / np.linalg.norm(axis)
        side = np.cross(axis, [0, 1, 0])
        side /= np.linalg.norm(side)
        turn = np.stack([np.cross(side, axis), side, -axis])
        build.solid(((points @ turn + hand).astype(np.float32), triangles), points + [0, 0, 0.6], "wrist.R", look)
