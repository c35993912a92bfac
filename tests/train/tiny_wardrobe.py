"""A folder like makehuman-assets with one suit, one pair of shoes and one head of hair, of two triangles each."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

SUIT = """# a comment
name a_suit01
obj_file a_suit01.obj
x_scale 0 1 2.0
z_scale 0 2 2.0
y_scale 0 3 2.0
material a_suit01.mhmat
verts 0
{rows}

delete_verts
3 5 - 7 9
"""
MATERIAL = "name x\ndiffuseTexture {name}.png\n"
REST = np.array([[0, 0, 0], [0.4, 0, 0], [0, 0.2, 0], [0, 0, 0.1]], np.float32)
"""Four base vertices in anny's axes: x scale 2, MakeHuman's z (anny's -y) scale 1, y (anny's z) scale 0.5."""


def write_garment(folder: Path, name: str, heights: list[float], rows: str) -> None:
    """Two far triangles at the two heights, by three corners each."""
    folder.mkdir(parents=True)
    lines = [f"v {x} {height} 0" for height in heights for x in (0, 1, 2)]
    lines += [f"vt {x / 2} {y}" for y in (0.25, 0.75) for x in (0, 1, 1)]
    lines += ["f 1/1 2/2 3/3", "f 4/4 5/5 6/6"]
    (folder / f"{name}.obj").write_text("\n".join(lines) + "\n")
    (folder / f"{name}.mhclo").write_text(SUIT.replace("a_suit01", name).format(rows=rows))
    (folder / f"{name}.mhmat").write_text(MATERIAL.format(name=name))
    picture = np.full((4, 4, 4), 255, np.uint8)
    picture[:2] = (0, 0, 255, 255)  # the upper half is red
    cv2.imwrite(str(folder / f"{name}.png"), picture)


def write_wardrobe(folder: Path) -> Path:
    """Write the three garments below FOLDER/base; returns the folder."""
    rows = "\n".join(["0 1 2 0.5 0.25 0.25 1.0 2.0 3.0"] + ["1"] * 5)
    for room, name in (("clothes", "a_suit01"), ("clothes", "shoes01"), ("hair", "short01")):
        write_garment(folder / "base" / room / name, name, [5.0, -5.0], rows)
    return folder
