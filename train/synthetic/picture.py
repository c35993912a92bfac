"""One picture: a figure posed before a camera, with what stands in front and behind, and its exact visible share.

Shapes: H×W pixels of the crop; drawn at twice that and averaged.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dpm_edge.train.synthetic import body as b
from dpm_edge.train.synthetic import camera as c
from dpm_edge.train.synthetic import materials, raster, scene, second, third
from dpm_edge.train.synthetic.figure import Figure
from dpm_edge.train.synthetic.person import Person
from dpm_edge.train.synthetic.poses import draw_pose, turn
from dpm_edge.train.synthetic.wardrobe import NOTHING

SUPERSAMPLE = 2


@dataclass(frozen=True)
class Shot:
    """image: (H,W,3) uint8 BGR. visible: share of the person's silhouette inside the crop that nothing covers.
    mask: (H,W) bool, the pixels that show the person, half of them or more. whole: (H,W) bool, the same if nothing
    stood in front."""

    image: np.ndarray
    visible: float
    mask: np.ndarray
    whole: np.ndarray


@dataclass(frozen=True)
class _Drawn:
    """World points, triangles, cut, (N,8) normals, charts and texture coordinates, (T,) material rows, the rows' table,
    (T,) textures that cut out."""

    points: np.ndarray
    triangles: np.ndarray
    cut: np.ndarray
    attributes: np.ndarray
    owner: np.ndarray
    table: np.ndarray
    cut_out: np.ndarray


def _figure(body: b.Body, figure: Figure, pose: dict[str, np.ndarray], yaw: float, at: tuple[float, float]) -> _Drawn:
    points = figure.pose(body, pose) @ turn("z", yaw).T.astype(np.float32)
    points[:, :2] += np.asarray(at, np.float32)
    attributes = np.concatenate([raster.vertex_normals(points, figure.triangles), figure.chart, figure.uv], 1)
    return _Drawn(points, figure.triangles, figure.cut, attributes, figure.owner, figure.table, figure.cut_out)


def _solids(parts: scene.Parts) -> list[_Drawn]:
    drawn = []
    for (points, triangles), look in parts:
        points = np.ascontiguousarray(points, np.float32)
        chart = np.stack([points[:, 0], points[:, 1], points[:, 2]], 1)
        attributes = np.concatenate([raster.vertex_normals(points, triangles), chart, chart[:, :2] * 0], 1)
        owner = np.zeros(len(triangles), np.int32)
        uncut = np.full(len(triangles), -1, np.int32)
        drawn.append(_Drawn(points, triangles, np.ones(len(points), np.float32), attributes, owner, look[None], uncut))
    return drawn


def take(
    body: b.Body,
    who: tuple[Person, Figure],
    camera: c.Camera,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    site: int,
    occluder: str = "",
    other: tuple[Person, Figure] | None = None,
    edition: int = 1,
    textures: tuple[np.ndarray, np.ndarray] = NOTHING,
) -> Shot:
    """Render one crop.

    Args:
        who: the person and their figure.
        rng: the picture's own generator; the same state gives the same picture.
        size: (H, W) of the crop.
        site: seed of the cameras' backdrops.
        occluder: a kind of scene.KINDS, or "" for none; "passer-by" needs `other`.
        edition: 2 and 3 box and send the picture as dpm_edge.train.synthetic.second does.
        textures: those of the figures' materials, and their alpha (wardrobe.Wardrobe).
    """
    height, width = size
    yaw = float(rng.uniform(-np.pi, np.pi))
    main = _figure(body, who[1], draw_pose(rng, who[0]), yaw, (0.0, 0.0))
    shown = np.unique(main.triangles[(main.cut[main.triangles] >= 0).all(1)])
    view = c.frame(rng, camera, main.points[shown], height * SUPERSAMPLE, width * SUPERSAMPLE)
    sent = third if edition == 3 else second
    if edition >= 2:
        view = second.detector_box(rng, view, height * SUPERSAMPLE, width * SUPERSAMPLE, sent.SLACK)
    things: list[_Drawn] = []
    if occluder == "passer-by":
        assert other is not None, "a passer-by needs another figure"
        at = (float(rng.normal(0, 0.28)), -float(rng.uniform(0.45, 1.2)))
        things = [_figure(body, other[1], draw_pose(rng, other[0]), float(rng.uniform(-np.pi, np.pi)), at)]
    elif occluder:
        things = _solids(scene.occluder(rng, occluder))

    rows, columns = height * SUPERSAMPLE, width * SUPERSAMPLE
    depth = np.full((rows, columns), np.inf, np.float32)
    owner = np.full((rows, columns), raster.EMPTY, np.int32)
    surface = np.zeros((rows, columns, 8), np.float32)
    tables, first = [], 0
    whole = np.zeros((rows, columns), bool)
    for number, thing in enumerate([main, *things]):
        attributes = np.ascontiguousarray(thing.attributes, np.float32)
        raster.draw(
            view.screen(thing.points),
            thing.triangles,
            thing.cut,
            attributes,
            thing.owner + first,
            depth,
            owner,
            surface,
            thing.cut_out,
            textures[1],
        )
        tables.append(thing.table)
        first += len(thing.table)
        if number == 0:
            whole = owner != raster.EMPTY
    mine = (owner >= 0) & (owner < len(tables[0]))
    behind = scene.backdrop(site, camera.number, int(rng.integers(scene.BACKDROPS)))
    image = cv2.resize(scene.window(rng, behind, height, width), (columns, rows))
    image *= (camera.sky + 0.5 * camera.sun).astype(np.float32)
    _shadow(image, view, rng)
    table = np.concatenate(tables).astype(np.float32)
    materials.shade(image, owner, surface, table, camera.light, camera.sun, camera.sky, textures[0])
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    seen, all_of_it = (
        cv2.resize(part.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA) >= 0.5
        for part in (mine, whole)
    )
    taken = c.develop(rng, camera, image)
    if edition >= 2:
        taken = second.transmit(rng, taken, sent.SMALLEST)
    return Shot(taken, float(mine.sum() / max(int(whole.sum()), 1)), seen, all_of_it)


def _shadow(image: np.ndarray, view: c.View, rng: np.random.Generator) -> None:
    """A soft shadow around the feet, in place."""
    around = np.linspace(0, 2 * np.pi, 20)
    ring = np.stack([0.42 * np.cos(around), 0.3 * np.sin(around), np.zeros(20)], 1)
    seen = view.screen(ring)[:, :2]
    mask = np.zeros(image.shape[:2], np.float32)
    cv2.fillPoly(mask, [np.round(seen).astype(np.int32)], 1.0)
    soft = np.asarray(cv2.GaussianBlur(mask, (0, 0), image.shape[0] / 40))
    image *= 1 - float(rng.uniform(0.3, 0.65)) * soft[:, :, None]
