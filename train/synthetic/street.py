"""Two videos of rendered people who walk from one camera to the other, to try and to show the camera application.

python -m dpm_edge.train.synthetic.street --out street

writes door.mp4 and yard.mp4, 26 seconds each, which begin at the same moment. Five people pass by; three of them come
to the other camera, and one comes back. Nobody in them exists, so that they may be shown.

A frame is a backdrop, and before it each person's picture of that moment of the step, the far ones first.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from dpm_edge.errors import DpmError
from dpm_edge.train.synthetic import body as b
from dpm_edge.train.synthetic import camera as c
from dpm_edge.train.synthetic import materials, raster, scene
from dpm_edge.train.synthetic.figure import Figure, dress
from dpm_edge.train.synthetic.person import Person, draw_person
from dpm_edge.train.synthetic.poses import turn, walking
from dpm_edge.train.synthetic.third import draw_person_3, dress_3
from dpm_edge.train.synthetic.wardrobe import NOTHING, load_wardrobe

RATE, SECONDS = 8, 26
WIDTH, HEIGHT, HORIZON = 640, 480, 150
SEED, PHASES = 7, 8
CAMERAS = {"door": 4, "yard": 3}
"""Name → number of the rendered site's camera."""
NEAR = 0.86
"""Height of somebody, as a share of the rows from the horizon to the feet."""


@dataclass(frozen=True)
class Walk:
    """One person on the way through one camera's picture."""

    person: int
    camera: str
    start: float
    """Seconds."""
    seconds: float
    feet: int
    """Row of the picture on which the feet are."""
    to_right: bool


WALKS = (
    Walk(1, "door", 0.5, 6.5, 420, True),
    Walk(3, "door", 3.5, 7.0, 330, False),
    Walk(5, "yard", 0.0, 7.0, 360, True),
    Walk(10, "door", 8.5, 6.5, 380, True),
    Walk(1, "yard", 10.0, 6.5, 400, True),
    Walk(3, "yard", 12.0, 7.0, 320, False),
    Walk(5, "door", 13.0, 6.0, 440, True),
    Walk(3, "door", 18.5, 11.0, 330, True),
    Walk(1, "door", 19.5, 10.0, 400, False),
    Walk(8, "yard", 19.5, 9.5, 440, True),
    Walk(10, "yard", 20.5, 11.0, 350, True),
)


def picture_of(
    body: b.Body,
    who: tuple[Person, Figure],
    camera: c.Camera,
    phase: float,
    to_right: bool,
    rows: int,
    textures: tuple[np.ndarray, np.ndarray] = NOTHING,
) -> tuple[np.ndarray, np.ndarray]:
    """Somebody walking past: linear RGB (rows, w, 3) f4 with alpha (rows, w) f4, as high as the person."""
    figure = who[1]
    points = figure.pose(body, walking(who[0], phase)) @ turn("z", np.pi / 2 if to_right else -np.pi / 2).T
    points = np.ascontiguousarray(points, np.float32)
    loose = c.View(7.0, camera.height, 1.0, 0.0, 0.0)
    seen = loose.rays(points[np.unique(figure.triangles[(figure.cut[figure.triangles] >= 0).all(1)])])
    low, high = seen[:, :2].min(0), seen[:, :2].max(0)
    scale = 2 * rows / (high[1] - low[1])
    view = c.View(loose.distance, loose.height, scale, low[0], low[1])
    tall, wide = 2 * rows, 2 * max(4, int(np.ceil((high[0] - low[0]) * scale / 2)))
    depth = np.full((tall, wide), np.inf, np.float32)
    owner = np.full((tall, wide), raster.EMPTY, np.int32)
    surface = np.zeros((tall, wide, 8), np.float32)
    attributes = np.concatenate([raster.vertex_normals(points, figure.triangles), figure.chart, figure.uv], 1)
    raster.draw(
        view.screen(points), figure.triangles, figure.cut, np.ascontiguousarray(attributes, np.float32), figure.owner,
        depth, owner, surface, figure.cut_out, textures[1],
    )  # fmt: skip
    image = np.zeros((tall, wide, 3), np.float32)
    table = figure.table.astype(np.float32)
    materials.shade(image, owner, surface, table, camera.light, camera.sun, camera.sky, textures[0])
    alpha = (owner != raster.EMPTY).astype(np.float32)
    size = (wide // 2, rows)
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)


def place(frame: np.ndarray, picture: np.ndarray, alpha: np.ndarray, middle: float, feet: int) -> None:
    """Lay somebody, whose colours are multiplied by alpha already, and a shadow into a frame, in place."""
    rows, columns = alpha.shape
    shadow = np.zeros(frame.shape[:2], np.float32)
    cv2.ellipse(shadow, (int(middle), feet - 2), (max(4, rows // 5), max(2, rows // 18)), 0, 0, 360, 0.45, -1)
    frame *= 1 - cv2.GaussianBlur(shadow, (0, 0), max(1.0, rows / 40))[:, :, None]
    left, top = int(middle - columns / 2), feet - rows
    x0, x1, y0, y1 = max(0, left), min(WIDTH, left + columns), max(0, top), min(HEIGHT, feet)
    if x0 >= x1 or y0 >= y1:
        return
    part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
    frame[y0:y1, x0:x1] = frame[y0:y1, x0:x1] * (1 - alpha[part][:, :, None]) + picture[part]


def film(out: Path, wardrobe: Path | None = None) -> list[Path]:
    """Render both videos, of people of the first edition, or of the third in what the folder `wardrobe` holds.

    Raises:
        DpmError: OpenCV cannot write them there, or the folder is no wardrobe.
    """
    out.mkdir(parents=True, exist_ok=True)
    body = b.load_body()
    dressed: dict[int, tuple[Person, Figure]] = {}
    textures = NOTHING
    for number in {walk.person for walk in WALKS}:
        if wardrobe is None:
            person = draw_person(SEED, number)
            dressed[number] = person, dress(body, person)
        else:
            clothes = load_wardrobe(wardrobe)
            textures = clothes.textures, clothes.alpha
            wearing = draw_person_3(clothes, SEED, number)
            dressed[number] = wearing, dress_3(body, wearing)
    made = []
    for name, number in CAMERAS.items():
        camera = c.draw_camera(SEED, number)
        behind = cv2.resize(
            scene.backdrop(SEED, number, 0), (WIDTH * 5 // 4, 2 * HEIGHT), interpolation=cv2.INTER_CUBIC
        )
        behind = behind[HEIGHT - HORIZON : 2 * HEIGHT - HORIZON, :WIDTH] * (camera.sky + 0.5 * camera.sun)
        pictures: dict[tuple[int, int], tuple[np.ndarray, np.ndarray]] = {}
        path = out / f"{name}.mp4"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (WIDTH, HEIGHT))
        if not writer.isOpened():
            raise DpmError(f"expected an OpenCV that writes MPEG-4 to {path}, got one that does not")
        walks = sorted((walk for walk in WALKS if walk.camera == name), key=lambda walk: walk.feet)
        for index in range(RATE * SECONDS):
            frame = behind.astype(np.float32).copy()
            for walk in walks:
                gone = (index / RATE - walk.start) / walk.seconds
                if 0 <= gone <= 1:
                    phase = int(index * PHASES / RATE * 0.9 + walk.person) % PHASES
                    key = WALKS.index(walk), phase
                    if key not in pictures:
                        rows = round(NEAR * (walk.feet - HORIZON))
                        angle = 2 * np.pi * phase / PHASES
                        who, right = dressed[walk.person], walk.to_right
                        pictures[key] = picture_of(body, who, camera, angle, right, rows, textures)
                    across = gone if walk.to_right else 1 - gone
                    place(frame, *pictures[key], -60 + across * (WIDTH + 120), walk.feet)
            writer.write(c.develop(np.random.default_rng([SEED, number]), camera, frame))
        writer.release()
        made.append(path)
    return made


def main(arguments: list[str] | None = None) -> int:
    """Parse, render, print the paths."""
    parser = argparse.ArgumentParser(
        prog="python -m dpm_edge.train.synthetic.street", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--wardrobe", type=Path, help="a checkout of makehuman-assets: people of the third edition")
    said = parser.parse_args(arguments)
    try:
        for path in film(said.out, said.wardrobe):
            print(path)
    except (DpmError, OSError) as error:
        print(f"street: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
