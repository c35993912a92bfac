"""The second edition of rendered people: look-alikes, cloth, cameras, boxes, and masks of what is hidden."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from test_synthetic import stand_ins  # noqa: F401 (a fixture)

from dpm_edge.train.synthetic import dataset, layout, materials, second
from dpm_edge.train.synthetic.camera import View, draw_camera
from dpm_edge.train.synthetic.dataset import Settings, plan, render
from dpm_edge.train.synthetic.person import Person, draw_person

TINY = Settings(people=2, views=6, test=0, occluded=1.0, height=64, width=32, seed=7, edition=2, cameras=20)


def looks(person: Person) -> dict[str, tuple]:
    """What one sees of a person, part by part."""
    layers = {one.name: (one.low, one.high, *one.look.tolist()) for one in person.layers}
    bottoms = tuple(layers.get(name) for name in ("skirt", "tights", "trousers"))
    tops = tuple(layers.get(name) for name in ("top", "jacket", "coat"))
    hair = (person.hair, person.hat, *person.hair_look.tolist())
    return {"bottom": bottoms, "top": tops, "shoes": layers["shoes"], "hair": hair, "bag": (person.bag,)}


def test_the_same_number_is_the_same_person() -> None:
    assert looks(second.draw_person_2(3, 17)) == looks(second.draw_person_2(3, 17))
    assert looks(second.draw_person_2(3, 17)) != looks(second.draw_person_2(4, 17))


def test_half_of_the_groups_look_alike_but_for_a_few_parts() -> None:
    alike = 0
    for group in range(40):
        people = [looks(second.draw_person_2(5, second.GROUP * group + k)) for k in range(second.GROUP)]
        shared = [sum(people[0][part] == one[part] for part in one) for one in people[1:]]
        alike += min(shared) >= 3  # at most two of five parts differ
        for one in people[1:]:
            assert one != people[0] or min(shared) >= 3
    assert 10 <= alike <= 30


def test_colours_fill_a_space_where_the_first_edition_has_nineteen() -> None:
    def hues(draw) -> int:
        tops = [next(one for one in draw(9, n).layers if one.name == "top").look[:3] for n in range(120)]
        pixels = (np.stack(tops)[None] ** (1 / 2.2) * 255).astype(np.uint8)
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)[0]
        vivid = hsv[hsv[:, 1] > 80]
        return len(set((vivid[:, 0] // 6).tolist()))

    assert hues(second.draw_person_2) > hues(draw_person)


@pytest.mark.parametrize("pattern", [materials.CAMOUFLAGE, materials.PLAID, materials.PRINT, materials.MELANGE])
def test_a_cloth_has_more_than_one_tone_and_stays_between_its_colours(pattern: int) -> None:
    row = materials.material([0.1, 0.2, 0.3], [0.8, 0.7, 0.6], pattern, 12.0, 0.5, 0.4, radius=0.13)
    shares = [materials._mix(row, u, v) for u in np.linspace(-0.4, 0.4, 40) for v in np.linspace(0.1, 0.6, 40)]
    assert min(shares) >= 0 and max(shares) <= 1.3
    assert len({round(one, 1) for one in shares}) >= 2


def test_cameras_differ_more_than_in_the_first_edition() -> None:
    def spread(draw) -> float:
        return float(np.std([draw(1, n).gain for n in range(60)]))

    assert spread(second.draw_camera_2) > 1.5 * spread(draw_camera)


def test_boxes_are_loose_shifted_and_sometimes_cut() -> None:
    view = View(8.0, 3.0, 100.0, -0.32, -0.64)  # a crop of 128×64 pixels: 1.28 by 0.64 on the plane at unit depth
    made = [second.detector_box(np.random.default_rng(n), view, 128, 64) for n in range(400)]
    bottoms = np.array([one.top + 128 / one.scale for one in made])
    assert 0.08 < (bottoms < 0.64 - 0.1).mean() < 0.25  # feet cut off
    heights = np.array([128 / one.scale for one in made]) / 1.28
    assert heights.min() > 0.55 and heights.max() < 1.4
    assert np.median(heights) == pytest.approx(1.0, abs=0.1)


def test_sending_keeps_the_size_and_takes_detail_away() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (160, 80, 3), np.uint8)
    sent = [second.transmit(np.random.default_rng(n), picture) for n in range(40)]
    assert {one.shape for one in sent} == {(160, 80, 3)}
    detail = [float(cv2.Laplacian(one.astype(np.float32), cv2.CV_32F).std()) for one in sent]
    assert min(detail) < 0.2 * max(detail)


@pytest.mark.usefixtures("stand_ins")
def test_masks_tell_what_is_hidden_and_agree_with_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second, "draw_person_2", lambda seed, n: (seed, n))
    render(TINY, tmp_path, workers=1, quiet=True)
    hidden = 0
    for row in dataset._read(tmp_path / "labels.csv"):
        mask = cv2.imread(str(layout.mask_of(tmp_path, row[0])), cv2.IMREAD_GRAYSCALE)
        assert set(np.unique(mask)) <= {0, layout.HIDDEN, layout.SEEN}
        share = (mask == layout.SEEN).sum() / max((mask >= layout.HIDDEN).sum(), 1)
        assert share == pytest.approx(float(row[4]), abs=0.12)
        hidden += int((mask == layout.HIDDEN).sum() > 0)
    assert hidden >= 9  # of 12, all with something in front


def test_a_person_is_seen_by_other_cameras_in_every_view() -> None:
    cameras = [number for _, _, number, _ in plan(TINY, 1)]
    assert len(set(cameras)) == TINY.views and max(cameras) < 20
