"""Garments, shoes and hair of MakeHuman's bundled assets, fitted to a body: meshes on the base mesh, and textures.

The folder is a checkout of https://github.com/makehumancommunity/makehuman-assets (CC0 since September 2020; its
pictures are in git LFS): `base/clothes/NAME/NAME.mhclo`, `.obj`, `.mhmat` and the diffuse texture that the last names.
A `.mhclo` binds each vertex to three vertices of MakeHuman's base mesh: their weighted sum, and an offset that is
scaled with the body (https://static.makehumancommunity.org, "MHCLO file format").

Shapes: V vertices of the base mesh, N of a garment, T triangles, S pixels of a texture's side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from dpm_edge.errors import DataError
from dpm_edge.train.synthetic.body import Body

SIDE = 512
TOPS, BOTTOMS, SHOES, HAIR = "top", "bottom", "shoes", "hair"
_ONE_PIECE = ("male_worksuit01",)
"""Overalls: neither a top nor a bottom."""
_WAIST = 1.0
"""Decimetres of MakeHuman's base mesh: a piece of a suit whose middle is higher is a top."""


@dataclass(frozen=True)
class Garment:
    """name; kind: top, bottom, shoes or hair. refs: (N,3) i4 base vertices. share: (N,3) f4, their weights.
    offset: (N,3) f4 decimetres in MakeHuman's axes. scales: three of (vertex, vertex, decimetres) for x, y, z.
    triangles: (T,3) i4. uv: (N,2) f4, 0–1, rows from above. hides: (V,) bool, skin that it covers.
    texture: row of Wardrobe.textures. light: mean luminance of its cloth, linear. cut_out: whether alpha cuts it out.
    """

    name: str
    kind: str
    refs: np.ndarray
    share: np.ndarray
    offset: np.ndarray
    scales: tuple[tuple[int, int, float], ...]
    triangles: np.ndarray
    uv: np.ndarray
    hides: np.ndarray
    texture: int
    light: float
    cut_out: bool

    def points(self, rest: np.ndarray) -> np.ndarray:
        """The garment (N,3) f4 metres on a body at rest (V,3), in anny's axes (z up, front -y)."""
        held = np.einsum("nk,nkc->nc", self.share, rest[self.refs])
        factor = [
            abs(rest[a, axis] - rest[b, axis]) * 10 / by
            for (a, b, by), axis in zip(self.scales, (0, 2, 1), strict=True)
        ]
        x, y, z = (self.offset[:, i] * factor[i] * 0.1 for i in range(3))
        return (held + np.stack([x, -z, y], 1)).astype(np.float32)

    def skinning(self, body: Body) -> tuple[np.ndarray, np.ndarray]:
        """bones, weights (N,K), of the base vertices that hold it, the K strongest."""
        count, k = len(self.refs), body.bones.shape[1]
        sums = np.zeros((count, int(body.bones.max()) + 1), np.float32)
        held = np.clip(self.share, 0, None)
        held /= held.sum(1, keepdims=True)
        rows = np.repeat(np.arange(count), k)
        for corner in range(3):
            at = self.refs[:, corner]
            np.add.at(sums, (rows, body.bones[at].ravel()), (body.weights[at] * held[:, corner, None]).ravel())
        bones = np.argsort(-sums, axis=1)[:, :k].astype(np.int32)
        weights = np.take_along_axis(sums, bones, 1)
        return bones, (weights / weights.sum(1, keepdims=True)).astype(np.float32)

    def chart(self, body: Body) -> np.ndarray:
        """(N,3) f4 canonical coordinates, those of the nearest of the three vertices that hold it."""
        nearest = np.take_along_axis(self.refs, self.share.argmax(1)[:, None], 1)[:, 0]
        return body.chart[nearest]


@dataclass(frozen=True)
class Wardrobe:
    """garments by kind; textures: (n,S,S,3) uint8 sRGB, red first; alpha: (n,S,S) uint8."""

    garments: dict[str, tuple[Garment, ...]]
    textures: np.ndarray
    alpha: np.ndarray


NOTHING = (np.zeros((1, 1, 1, 3), np.uint8), np.full((1, 1, 1), 255, np.uint8))
"""Textures and alpha where no garment has any."""


@lru_cache(maxsize=2)
def load_wardrobe(folder: Path) -> Wardrobe:
    """Read every garment of a checkout of makehuman-assets.

    Raises DataError where the folder holds none, or where a texture is still a git LFS pointer.
    """
    found: dict[str, list[Garment]] = {kind: [] for kind in (TOPS, BOTTOMS, SHOES, HAIR)}
    textures: list[np.ndarray] = []
    for path in sorted((folder / "base").glob("*/*/*.mhclo")):
        room, name = path.parent.parent.name, path.parent.name
        kind = HAIR if room == "hair" else SHOES if name.startswith("shoes") else "suit" if "suit" in name else ""
        if kind and name not in _ONE_PIECE:
            for piece in _garment(path, kind, len(textures)):
                found[piece.kind].append(piece)
            textures.append(_texture(path))
    if not all(found.values()):
        short = ", ".join(kind for kind, some in found.items() if not some)
        raise DataError(
            f"expected clothes and hair below {folder}/base, got no {short}. Clone "
            "https://github.com/makehumancommunity/makehuman-assets with git LFS and pass its folder."
        )
    stack = np.stack(textures)
    lit = {kind: tuple(_lit(one, stack) for one in some) for kind, some in found.items()}
    return Wardrobe(lit, np.ascontiguousarray(stack[..., :3]), np.ascontiguousarray(stack[..., 3]))


def _lit(one: Garment, stack: np.ndarray) -> Garment:
    middle = one.uv[one.triangles].mean(1)
    at = (middle * SIDE).astype(int).clip(0, SIDE - 1)
    seen = stack[one.texture, at[:, 1], at[:, 0]]
    cloth = (seen[seen[:, 3] > 127] if one.cut_out else seen)[:, :3].astype(np.float32) / 255
    return replace(one, light=max(float((cloth**2.2 @ [0.2126, 0.7152, 0.0722]).mean()), 0.01))


def _texture(mhclo: Path) -> np.ndarray:
    """(S,S,4) uint8, red first, of the diffuse texture of a garment's material."""
    material = _field(mhclo, "material") or f"{mhclo.stem}.mhmat"
    name = _field(mhclo.parent / material, "diffuseTexture")
    path = mhclo.parent / material if name is None else (mhclo.parent / material).parent / name
    if name is None or not path.is_file():
        raise DataError(f"expected a diffuseTexture in {mhclo.parent / material}, got {name}: {path} is not there.")
    picture = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if picture is None:
        raise DataError(
            f"expected a picture, got {path.stat().st_size} bytes in {path}. If it is a pointer of git LFS, run "
            "git lfs pull in that checkout."
        )
    picture = cv2.resize(picture, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if picture.ndim == 2:
        picture = cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR)
    if picture.shape[2] == 3:
        picture = cv2.cvtColor(picture, cv2.COLOR_BGR2BGRA)
    return cv2.cvtColor(picture, cv2.COLOR_BGRA2RGBA)


def _field(path: Path, name: str) -> str | None:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(name + " "):
            return line[len(name) + 1 :].strip()
    return None


def _garment(path: Path, kind: str, texture: int) -> list[Garment]:
    """The garment of one `.mhclo`; a suit comes as its top and its bottom."""
    scales: dict[str, tuple[int, int, float]] = {}
    rows: list[list[float]] = []
    hides = np.zeros(19158, bool)
    part = ""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if not words or line.startswith("#"):
            continue
        if words[0] in ("x_scale", "y_scale", "z_scale"):
            scales[words[0][0]] = (int(words[1]), int(words[2]), float(words[3]))
        elif words[0] in ("verts", "delete_verts"):
            part = words[0]
        elif part == "verts" and words[0].isdigit():
            rows.append(
                [float(word) for word in words] if len(words) == 9 else [float(words[0])] * 3 + [1, 0, 0, 0, 0, 0]
            )
        elif part == "delete_verts" and words[0][0].isdigit():
            for run in line.replace(" - ", "-").split():
                low, _, high = run.partition("-")
                hides[int(low) : int(high or low) + 1] = True
    table = np.array(rows)
    mesh = _field(path, "obj_file") or f"{path.stem}.obj"
    vertex, uv, faces, height = _obj(path.parent / mesh)
    unit = (1, 2, 10.0)
    whole = Garment(
        name=path.parent.name,
        kind=kind,
        refs=table[vertex, :3].astype(np.int32),
        share=table[vertex, 3:6].astype(np.float32),
        offset=table[vertex, 6:].astype(np.float32),
        scales=tuple(scales.get(axis, unit) for axis in "xyz"),
        triangles=faces,
        uv=uv,
        hides=hides,
        texture=texture,
        light=1.0,
        cut_out=kind == HAIR,
    )
    if kind != "suit":
        return [whole]
    upper = _pieces(vertex, faces, height)
    parts = [(TOPS, upper), (BOTTOMS, ~upper)]
    return [_part(whole, name, chosen) for name, chosen in parts if chosen.any()]


def _part(whole: Garment, kind: str, chosen: np.ndarray) -> Garment:
    """The chosen triangles (T,) of a garment, as a garment of a kind."""
    used, flat = np.unique(whole.triangles[chosen], return_inverse=True)
    return replace(
        whole,
        kind=kind,
        refs=whole.refs[used],
        share=whole.share[used],
        offset=whole.offset[used],
        uv=whole.uv[used],
        triangles=flat.reshape(-1, 3).astype(np.int32),
    )


def _pieces(vertex: np.ndarray, faces: np.ndarray, height: np.ndarray) -> np.ndarray:
    """(T,) bool: whether a triangle belongs to the suit's upper part, by connected pieces."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    corner = vertex[faces]
    edges = np.concatenate([corner[:, [0, 1]], corner[:, [1, 2]]])
    count = int(vertex.max()) + 1
    _, of = connected_components(coo_matrix((np.ones(len(edges)), edges.T), (count, count)), directed=False)
    label = of[corner[:, 0]]
    middle = height[corner].mean(1)
    upper = np.zeros(of.max() + 1, bool)
    for number in np.unique(label):
        upper[number] = middle[label == number].mean() > _WAIST
    if (label == np.bincount(label).argmax()).mean() > 0.95:  # one piece from neck to ankle: cut at the waist
        return middle > _WAIST
    return upper[label]


def _obj(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """An OBJ file as (vertex of each corner (N,), uv (N,2), triangles (T,3) into N, height of each vertex)."""
    height: list[float] = []
    uvs: list[tuple[float, float]] = []
    corners: dict[tuple[int, int], int] = {}
    triangles: list[tuple[int, int, int]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.split()
        if line.startswith("v "):
            height.append(float(words[2]))
        elif line.startswith("vt "):
            uvs.append((float(words[1]) % 1.0, (1.0 - float(words[2])) % 1.0))
        elif line.startswith("f "):
            face = []
            for word in words[1:]:
                v, _, rest = word.partition("/")
                t = rest.partition("/")[0]
                key = (int(v) - 1, int(t) - 1 if t else 0)
                face.append(corners.setdefault(key, len(corners)))
            triangles += [(face[0], face[i], face[i + 1]) for i in range(1, len(face) - 1)]
    keys = np.array(list(corners))
    return keys[:, 0], np.array(uvs, np.float32)[keys[:, 1]], np.array(triangles, np.int32), np.array(height)
