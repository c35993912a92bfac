"""Garments that hang on a body: MakeHuman's files are read as they are written, and people wear them whole."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tiny_wardrobe import REST, write_wardrobe

from dpm_edge.errors import DataError
from dpm_edge.train.synthetic import materials, third
from dpm_edge.train.synthetic.wardrobe import Wardrobe, load_wardrobe


@pytest.fixture
def assets(tmp_path: Path) -> Path:
    return write_wardrobe(tmp_path)


def test_a_vertex_is_held_by_three_with_an_offset_scaled_by_the_body(assets: Path) -> None:
    top = load_wardrobe(assets).garments["top"][0]
    points = top.points(REST)
    # x: 0.25·0.4 + 1 dm · 2 (0.4 m over 2 dm); MakeHuman's y is anny's z: 2 dm · 0.5; its z is anny's -y: 3 dm · 1
    np.testing.assert_allclose(points[0], [0.25 * 0.4 + 0.2, 0.25 * 0.2 - 0.3, 0.1], atol=1e-6)
    np.testing.assert_allclose(points[1], REST[1])  # a row of one number: on that vertex


def test_a_suit_comes_as_its_top_and_its_bottom_with_the_skin_that_it_hides(assets: Path) -> None:
    garments = load_wardrobe(assets).garments
    assert {kind: [one.name for one in some] for kind, some in garments.items()} == {
        "top": ["a_suit01"], "bottom": ["a_suit01"], "shoes": ["shoes01"], "hair": ["short01"],
    }  # fmt: skip
    top, bottom = garments["top"][0], garments["bottom"][0]
    assert len(top.triangles) == len(bottom.triangles) == 1
    assert np.flatnonzero(top.hides).tolist() == [3, 5, 6, 7, 9]
    assert garments["hair"][0].cut_out and not top.cut_out
    np.testing.assert_allclose(top.uv[:, 1], 0.75)  # a file's v counts from below


def test_mean_luminance_is_that_of_the_part_of_the_texture_that_it_wears(assets: Path) -> None:
    garments = load_wardrobe(assets).garments
    assert garments["top"][0].light == pytest.approx(1.0)  # the white half
    assert garments["bottom"][0].light == pytest.approx(0.2126)  # the red half


def test_weights_are_those_of_the_vertices_that_hold_it(assets: Path) -> None:
    top = load_wardrobe(assets).garments["top"][0]
    body = SimpleNamespace(
        bones=np.array([[0, 1], [1, 2], [2, 0], [0, 1]], np.int32),
        weights=np.array([[1, 0], [0.5, 0.5], [1, 0], [1, 0]], np.float32),
    )
    bones, weights = top.skinning(body)  # type: ignore[arg-type]
    # vertex 0: half of bone 0, a quarter × (half bone 1, half bone 2), a quarter of bone 2
    assert bones[0].tolist() == [0, 2]
    np.testing.assert_allclose(weights[0], np.array([0.5, 0.375]) / 0.875, rtol=1e-6)


def test_what_is_no_wardrobe_is_said(assets: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected clothes and hair below .*got no top"):
        load_wardrobe(tmp_path / "nothing")
    pointer = assets / "base/clothes/a_suit01/a_suit01.png"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    load_wardrobe.cache_clear()
    with pytest.raises(DataError, match="git lfs pull"):
        load_wardrobe(assets)


@pytest.fixture
def wardrobe(assets: Path) -> Wardrobe:
    load_wardrobe.cache_clear()
    return load_wardrobe(assets)


def test_the_same_number_is_the_same_person(wardrobe: Wardrobe) -> None:
    first, again = (third.draw_person_3(wardrobe, 3, 41) for _ in range(2))
    assert [w.garment.name for w in first.worn] == [w.garment.name for w in again.worn]
    for one, other in zip(first.worn, again.worn, strict=True):
        np.testing.assert_array_equal(one.look, other.look)
    others = [third.draw_person_3(wardrobe, 3, n) for n in range(60)]
    tops = {tuple(w.look[:3]) for p in others for w in p.worn if w.garment.kind == "top"}
    assert len(tops) > 30


def test_look_alikes_share_all_but_one_or_two_parts(wardrobe: Wardrobe) -> None:
    """Half of the groups of four; their tops or bottoms have the same colours where neither part differs."""
    alike = 0
    for group in range(40):
        people = [third.draw_person_3(wardrobe, 3, 4 * group + i) for i in range(4)]
        looks = [{w.garment.kind: tuple(w.look) for w in p.worn} for p in people]
        same = [sum(looks[0].get(kind) == look.get(kind) for kind in ("top", "bottom", "shoes")) for look in looks[1:]]
        alike += min(same) >= 1
    assert 10 <= alike <= 30


def test_every_look_names_the_texture_of_its_garment(wardrobe: Wardrobe) -> None:
    for number in range(30):
        for worn in third.draw_person_3(wardrobe, 5, number).worn:
            assert worn.look[materials.FIELDS.index("texture")] == worn.garment.texture
            assert worn.look[materials.FIELDS.index("light")] == pytest.approx(worn.garment.light)
