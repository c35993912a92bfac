"""The body: anny's parametric person, its MakeHuman helper surfaces (tights, skirt, hair) and canonical coordinates.

Shapes: V vertices of the base mesh (body and helpers), K bone weights a vertex, J bones. Metres; z up, the person's
front is -y, the person's left is +x. `anny` (Apache-2.0; MakeHuman body data, CC0) is imported when a body is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from dpm_edge.errors import MissingLibrary

PHENOTYPES = ("gender", "age", "muscle", "weight", "height", "proportions")
SURFACES = {"skin": "body", "tights": "helper-tights", "skirt": "helper-skirt", "hair": "helper-hair"}
TORSO, HEAD, ARM_LEFT, ARM_RIGHT, LEG_LEFT, LEG_RIGHT = range(6)
_BONES_OF_REGION = {
    HEAD: ("neck", "head", "eye"),
    ARM_LEFT: ("upperarm", "lowerarm", "wrist", "finger", "metacarpal"),
    LEG_LEFT: ("upperleg", "lowerleg", "foot", "toe"),
}


@dataclass(frozen=True)
class Body:
    """The body model and what the clothes need to know about its surface.

    faces: surface name -> (T,3) i4 triangles into the V vertices.
    bones, weights: (V,K) i4 and f4, skinning. region: (V,) i4, one of TORSO … LEG_RIGHT.
    chart: (V,3) f4, canonical coordinates that are the same for every shape and pose: two across the limb or trunk and
    one along it (height z on trunk, legs and head; shoulder height minus the distance from the shoulder on the arms).
    canonical: (V,3) f4, the average adult at rest. joints: bone name -> (3,) f4 canonical position.
    """

    model: Any
    faces: dict[str, np.ndarray]
    bones: np.ndarray
    weights: np.ndarray
    region: np.ndarray
    chart: np.ndarray
    canonical: np.ndarray
    joints: dict[str, np.ndarray]

    def bone(self, name: str) -> int:
        """Row of a bone by its name; ValueError when anny has no such bone."""
        return self.model.bone_labels.index(name)

    def rest(self, phenotype: dict[str, float]) -> tuple[np.ndarray, Any]:
        """The unposed shape of a person: vertices (V,3) f4 and anny's rest bone poses (1,J,4,4) for `transforms`."""
        import torch

        with torch.no_grad():
            _, shape, local, facial = self.model.get_tensor_inputs(None, phenotype, None, None)
            coefficients = self.model._get_phenotype_blendshape_coefficients(shape, local, facial)
            rest = self.model.get_rest_model(coefficients)
        return rest["rest_vertices"][0].numpy().astype(np.float32), rest["rest_bone_poses"]

    def transforms(self, rest_bones: Any, rotations: dict[str, np.ndarray]) -> np.ndarray:
        """Bone transforms (J,3,4) f4 of a pose: bone name -> (3,3) rotation, in the axes of the upright person."""
        import torch

        deltas = {}
        for name, rotation in rotations.items():
            delta = torch.eye(4, dtype=rest_bones.dtype)[None].clone()
            delta[0, :3, :3] = torch.as_tensor(rotation, dtype=rest_bones.dtype)
            deltas[name] = delta
        with torch.no_grad():
            moves, _ = self.model.get_bone_transforms(deltas, rest_bones)
        return np.ascontiguousarray(moves[0, :, :3].numpy().astype(np.float32))


def _helper_faces(path: Any) -> dict[str, np.ndarray]:
    """Triangles of the named groups of MakeHuman's base mesh, from its OBJ file."""
    wanted = {group: name for name, group in SURFACES.items()}
    triangles: dict[str, list[tuple[int, int, int]]] = {name: [] for name in SURFACES}
    group = None
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if line.startswith("g "):
                group = wanted.get(line[2:].strip())
            elif line.startswith("f ") and group:
                corner = [int(part.split("/")[0]) - 1 for part in line.split()[1:]]
                triangles[group] += [(corner[0], corner[i], corner[i + 1]) for i in range(1, len(corner) - 1)]
    return {name: np.array(rows, np.int32).reshape(-1, 3) for name, rows in triangles.items()}


def _regions(labels: list[str], bones: np.ndarray, weights: np.ndarray, x: np.ndarray) -> np.ndarray:
    of_bone = np.full(len(labels), TORSO)
    for region, starts in _BONES_OF_REGION.items():
        of_bone[[label.startswith(starts) for label in labels]] = region
    share = np.stack([(weights * (of_bone[bones] == r)).sum(1) for r in (TORSO, HEAD, ARM_LEFT, LEG_LEFT)])
    region = np.array([TORSO, HEAD, ARM_LEFT, LEG_LEFT])[share.argmax(0)]
    return (region + ((region >= ARM_LEFT) & (x < 0))).astype(np.int32)


def _charts(points: np.ndarray, region: np.ndarray, joints: dict[str, np.ndarray]) -> np.ndarray:
    chart = points.copy()
    for side, arm, leg in (("L", ARM_LEFT, LEG_LEFT), ("R", ARM_RIGHT, LEG_RIGHT)):
        shoulder, elbow, wrist = (joints[f"{name}.{side}"] for name in ("upperarm01", "lowerarm01", "wrist"))
        rows = np.flatnonzero(region == arm)
        chart[rows] = _along([shoulder, elbow, wrist, wrist + (wrist - elbow)], points[rows], shoulder[2])
        hip, knee, ankle = (joints[f"{name}.{side}"] for name in ("upperleg01", "lowerleg01", "foot"))
        rows = np.flatnonzero(region == leg)
        z = points[rows, 2]
        for axis in (0, 1):
            chart[rows, axis] -= np.interp(z, [ankle[2], knee[2], hip[2]], [ankle[axis], knee[axis], hip[axis]])
    return chart.astype(np.float32)


def _along(line: list[np.ndarray], points: np.ndarray, top: float) -> np.ndarray:
    """Chart of a bent limb: offsets across the nearest of its straight parts, and top minus the length travelled."""
    best = np.full(len(points), np.inf)
    chart = np.zeros((len(points), 3))
    travelled = 0.0
    for start, end in pairwise(line):
        axis = (end - start) / np.linalg.norm(end - start)
        along = np.clip((points - start) @ axis, 0.0, np.linalg.norm(end - start))
        across = points - start - along[:, None] * axis
        front = np.array([0.0, 1.0, 0.0]) - axis[1] * axis
        front /= np.linalg.norm(front)
        nearer = np.linalg.norm(across, axis=1) < best
        best[nearer] = np.linalg.norm(across, axis=1)[nearer]
        local = np.stack([across @ np.cross(front, axis), across @ front, top - travelled - along], 1)
        chart[nearer] = local[nearer]
        travelled += float(np.linalg.norm(end - start))
    return chart


def load_body() -> Body:
    """Load anny's body; the first call on a machine builds and caches it (a minute or two, in ~/.cache/anny).

    Raises MissingLibrary when anny is not installed.
    """
    try:
        from anny import Anny
        from anny.models.model_data import TopologyConfig
        from anny.paths import get_anny_root_dir
    except ImportError as error:
        raise MissingLibrary("anny", "rendering people", "pip install anny==0.6.2") from error
    topology = TopologyConfig("makehuman", tongue=False, remove_unattached_vertices=False)
    model = Anny(rig="anny", topology=topology, skinning_method="lbs")
    rest = model(phenotype_kwargs=dict.fromkeys(PHENOTYPES, 0.5) | {"age": 0.67})
    canonical = rest["rest_vertices"][0].numpy().astype(np.float32)
    heads = rest["rest_bone_heads"][0].numpy().astype(np.float32)
    labels = list(model.bone_labels)
    joints = dict(zip(labels, heads, strict=True))
    weights = model.vertex_bone_weights.numpy().astype(np.float32)
    bones = model.vertex_bone_indices.numpy().astype(np.int32)
    region = _regions(labels, bones, weights, canonical[:, 0])
    faces = _helper_faces(get_anny_root_dir() / "data/mpfb2/3dobjs/base.obj")
    faces["skin"] = model.faces.numpy().astype(np.int32)
    return Body(model, faces, bones, weights, region, _charts(canonical, region, joints), canonical, joints)
