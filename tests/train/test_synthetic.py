"""Rendered people: the picture follows from its seed, its label from its pixels, and a stopped run goes on.

All but one of these use a stand-in body (a box and a head), so that they need neither anny nor its first build.
"""

from __future__ import annotations

import csv
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from tiny_wardrobe import write_wardrobe

from dpm_edge.errors import DataError, MissingLibrary
from dpm_edge.train.saliency.labels import label_saliency
from dpm_edge.train.synthetic import (
    camera,
    dataset,
    figure,
    layout,
    materials,
    person,
    picture,
    scene,
    street,
    third,
)
from dpm_edge.train.synthetic.__main__ import SAMPLES, main
from dpm_edge.train.synthetic.body import load_body
from dpm_edge.train.synthetic.dataset import Settings, plan, render
from dpm_edge.train.synthetic.solids import box, ellipsoid
from dpm_edge.train.synthetic.wardrobe import load_wardrobe

SHIPPED = Path(dataset.__file__).resolve().parents[2] / "dpm_edge" / "assets" / "samples"
TINY = Settings(people=3, views=4, test=1, occluded=0.5, query_occluded=1.0, height=64, width=32, seed=7)


def someone(seed: int, number: int) -> tuple[SimpleNamespace, SimpleNamespace]:
    """A stand-in for (Person, Figure): a trunk and a head in this person's colours; every pose is the same."""
    colors = np.random.default_rng([seed, 9, number]).uniform(0.05, 0.9, (2, 3))
    trunk, head = box((0, 0, 0.75), (0.25, 0.15, 0.75)), ellipsoid((0, 0, 1.68), (0.12, 0.12, 0.15))
    points = np.concatenate([trunk[0], head[0]])
    triangles = np.concatenate([trunk[1], head[1] + len(trunk[0])])
    owner = np.repeat(np.arange(2, dtype=np.int32), [len(trunk[1]), len(head[1])])
    table = np.stack([materials.material(color) for color in colors])
    stand_in = SimpleNamespace(
        triangles=triangles,
        cut=np.ones(len(points), np.float32),
        chart=points.copy(),
        owner=owner,
        table=table,
        uv=np.zeros((len(points), 2), np.float32),
        cut_out=np.full(len(triangles), -1, np.int32),
        pose=lambda body, rotations: points.copy(),
    )
    return SimpleNamespace(stride=0.4, slouch=0.0), stand_in


@pytest.fixture
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "_body", lambda: None)
    monkeypatch.setattr(dataset, "_someone", lambda seed, number, edition, wardrobe: someone(seed, number))
    monkeypatch.setattr(person, "draw_person", lambda seed, number: (seed, number))
    monkeypatch.setattr(figure, "dress", lambda body, who: someone(*who)[1])
    drawn = picture.draw_pose
    calm = SimpleNamespace(stride=0.4, slouch=0.0)
    monkeypatch.setattr(picture, "draw_pose", lambda rng, who: drawn(rng, calm))


def pictures(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*.jpg"))}


def labels(root: Path) -> list[dict[str, str]]:
    with (root / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("kind", scene.KINDS)
def test_visible_share_is_what_the_occluder_leaves_of_the_silhouette(
    kind: str, stand_ins: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against a count of the finished pictures: pixels that change with the person's colour, with and without cover."""
    monkeypatch.setattr(picture, "SUPERSAMPLE", 1)
    monkeypatch.setattr(picture.c, "develop", lambda rng, seen_by, image: image.copy())
    seen_by = camera.draw_camera(3, 1)

    def shoot(occluder: str, seed: int) -> tuple[int, float]:
        shots = []
        for grey in (0.0, 0.9):
            who, body = someone(0, 1)
            body.table = np.stack([materials.material([grey] * 3, gloss=0.0)] * 2)
            shots.append(
                picture.take(
                    None,
                    (who, body),
                    seen_by,
                    np.random.default_rng(seed),
                    size=(128, 64),
                    site=3,
                    occluder=occluder,
                    other=someone(0, 2) if occluder == "passer-by" else None,
                )
            )
        changed = np.abs(shots[0].image - shots[1].image).max(2) > 0
        return int(changed.sum()), shots[0].visible

    covered = 0
    for seed in range(12):
        whole, share = shoot("", seed)
        assert share == 1.0 and whole > 500
        left, share = shoot(kind, seed)
        assert share == pytest.approx(left / whole, abs=1e-9)
        covered += 0.05 < share < 0.95
    assert covered, f"none of 12 pictures has the person partly behind a {kind}"


def test_the_same_seed_gives_the_same_bytes_whatever_the_order(stand_ins: None, tmp_path: Path) -> None:
    render(TINY, tmp_path / "a", workers=1, quiet=True)
    for name in ("bounding_box_train", "query", "bounding_box_test", "labels"):
        (tmp_path / "b" / name).mkdir(parents=True)
    for number in (3, 1, 2):
        dataset.render_person(TINY, number, tmp_path / "b")
    one, other = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert len(one) == TINY.people * TINY.views
    assert one == other
    render(replace(TINY, seed=8), tmp_path / "c", workers=1, quiet=True)
    changed = pictures(tmp_path / "c")
    assert not set(one.values()) & set(changed.values())


def test_a_stopped_run_goes_on_and_redraws_what_is_torn(stand_ins: None, tmp_path: Path) -> None:
    render(TINY, tmp_path, workers=1, quiet=True)
    before, listed = pictures(tmp_path), labels(tmp_path)
    torn, gone = (next(tmp_path.glob(f"*/{number}_*.jpg")) for number in ("0001", "0003"))
    torn.write_bytes(torn.read_bytes()[:-40])
    gone.unlink()
    kept = next((tmp_path / "bounding_box_train").glob("0002_*"))
    drawn_at = kept.stat().st_mtime_ns
    (tmp_path / "labels.csv").unlink()
    render(TINY, tmp_path, workers=1, quiet=True)
    assert pictures(tmp_path) == before
    assert labels(tmp_path) == listed
    assert kept.stat().st_mtime_ns == drawn_at


def test_a_set_without_masks_gets_them_and_keeps_its_pictures(stand_ins: None, tmp_path: Path) -> None:
    render(TINY, tmp_path, workers=1, quiet=True)
    stamps = {name: (tmp_path / name).stat().st_mtime_ns for name in pictures(tmp_path)}
    masks = {row["file"]: layout.mask_of(tmp_path, row["file"]).read_bytes() for row in labels(tmp_path)}
    shutil.rmtree(tmp_path / "masks")
    with pytest.raises(DataError, match="other settings"):
        render(replace(TINY, seed=8), tmp_path, workers=1, quiet=True)
    render(TINY, tmp_path, workers=1, quiet=True)
    assert {file: layout.mask_of(tmp_path, file).read_bytes() for file in masks} == masks
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in pictures(tmp_path)} == stamps


def test_a_mask_is_where_the_person_is_drawn(stand_ins: None, tmp_path: Path) -> None:
    """The stand-in's own figure, drawn with and without something in front: the mask loses what the share says."""
    render(replace(TINY, occluded=0.5), tmp_path, workers=1, quiet=True)
    shares = []
    for row in labels(tmp_path):
        mask = cv2.imread(str(layout.mask_of(tmp_path, row["file"])), cv2.IMREAD_GRAYSCALE)
        assert mask.shape == (64, 32) and set(np.unique(mask)) <= {0, 255}
        shares.append((float(row["visible"]), float((mask > 0).mean())))
    whole = [covered for visible, covered in shares if visible == 1]
    hidden = [covered for visible, covered in shares if visible < 0.7]
    assert min(whole) > 0.05 and hidden and np.mean(hidden) < np.mean(whole)


def test_labels_are_the_share_of_each_patch_that_shows_the_person(stand_ins: None, tmp_path: Path) -> None:
    render(TINY, tmp_path, workers=1, quiet=True)
    names = [Path(row["file"]).name for row in labels(tmp_path) if row["file"].startswith("bounding_box_train")]
    held = SimpleNamespace(names=names)
    found = label_saliency(tmp_path, held, (8, 4))
    assert found.shape == (len(names), 8, 4)
    for name, share in zip(names, found.numpy()):
        mask = cv2.imread(str(tmp_path / "masks" / "bounding_box_train" / name.replace("jpg", "png")), 0) > 0
        np.testing.assert_allclose(share, mask.reshape(8, 8, 4, 8).mean((1, 3)), atol=1e-6)
    layout.mask_of(tmp_path, f"bounding_box_train/{names[1]}").unlink()
    with pytest.raises(DataError, match=names[1]):
        label_saliency(tmp_path, held, (8, 4))
    shutil.rmtree(tmp_path / "masks")
    with pytest.raises(DataError, match="expected a rendered set's masks"):
        label_saliency(tmp_path, held, (8, 4))


def test_folders_names_and_labels_agree(stand_ins: None, tmp_path: Path) -> None:
    counts = render(TINY, tmp_path, workers=1, quiet=True)
    rows = labels(tmp_path)
    assert {row["file"] for row in rows} == set(pictures(tmp_path))
    assert sum(counts.values()) == len(rows) == 12
    for row in rows:
        folder, name = row["file"].split("/")
        assert name.startswith(f"{int(row['person']):04d}_c{row['camera']}s1_")
        assert (folder == "bounding_box_train") == (int(row["person"]) < 3)
        assert (row["occluder"] == "none") == (float(row["visible"]) == 1.0)
        assert cv2.imread(str(tmp_path / row["file"])).shape == (64, 32, 3)
        if folder == "query":
            assert row["occluder"] != "none", "query_occluded=1.0"
            cameras = {r["camera"] for r in rows if r["person"] == row["person"] and r["file"].startswith("bounding")}
            assert cameras - {row["camera"]}, "a query has somebody of its own in the gallery from another camera"


def test_a_plan_takes_the_cameras_in_turn_and_one_query_from_each() -> None:
    settings = Settings(people=10, views=16, test=4, seed=3)
    for number in range(1, 11):
        rows = list(plan(settings, number))
        assert [view for _, view, _, _ in rows] == list(range(16))
        assert sorted(k for _, _, k, _ in rows[:6]) == list(range(camera.CAMERAS))
        assert all(k == rows[view % 6][2] for _, view, k, _ in rows)
        assert {folder == "query" for folder, *_, query in rows if query} <= {True}
        queries = [k for folder, _, k, query in rows if folder == "query" and query]
        if number <= 6:
            assert {folder for folder, *_ in rows} == {"bounding_box_train"} and not queries
        else:
            assert {folder for folder, *_ in rows} == {"query", "bounding_box_test"}
            assert sorted(queries) == list(range(camera.CAMERAS))
            seen = {k for folder, _, k, _ in rows if folder == "bounding_box_test"}
            assert all(seen - {k} for k in queries), "a query needs a match from another camera"


def test_a_backdrop_follows_from_seed_camera_and_number() -> None:
    first = scene.backdrop(3, 1, 0).copy()
    scene.backdrop.cache_clear()
    np.testing.assert_array_equal(scene.backdrop(3, 1, 0), first)
    assert first.dtype == np.float32 and np.isfinite(first).all() and first.min() >= 0
    for other in ((4, 1, 0), (3, 2, 0), (3, 1, 1)):
        assert np.abs(scene.backdrop(*other) - first).mean() > 0.01


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"people": 0}, "0 people"),
        ({"views": 1}, "1 views"),
        ({"people": 5, "test": 6}, "6 of them for testing"),
        ({"height": 16}, "16×128"),
        ({"quality": 0}, "quality 0"),
        ({"seed": -1}, "seed -1"),
        ({"occluded": 1.5}, "1.5"),
        ({"edition": 4}, "edition 1, 2 or 3, got 6 and 4"),
        ({"edition": 3}, "got edition 3 and wardrobe none"),
        ({"edition": 2, "wardrobe": "clothes"}, "got edition 2 and wardrobe clothes"),
    ],
)
def test_wrong_settings_are_refused_with_what_came(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        Settings(**wrong)


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--people", "0"]) == 1
    assert "0 people" in capsys.readouterr().err
    assert main(["--out", str(tmp_path), "--samples", "--people", "3"]) == 1
    assert "people cannot be given" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_anny_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anny", None)
    with pytest.raises(MissingLibrary, match=r"pip install anny==0\.6\.2"):
        load_body()


def test_sample_people_are_in_no_training_set() -> None:
    usual = Settings()
    numbers = range(SAMPLES.first, SAMPLES.first + SAMPLES.people)
    assert SAMPLES.seed != usual.seed
    assert not set(numbers) & set(range(usual.first, usual.first + usual.people))
    assert {folder for n in numbers for folder, *_ in plan(SAMPLES, n)} == {"query", "bounding_box_test"}


@pytest.mark.slow
def test_with_anny_workers_change_nothing_and_a_shipped_sample_is_drawn_again(tmp_path: Path) -> None:
    """anny's first build on a machine takes a minute or two, so both tests that need it are in this file."""
    pytest.importorskip("anny", reason="the body model is not installed")
    small = Settings(people=2, views=2, test=0, height=64, width=32, seed=5)
    render(small, tmp_path / "one", workers=1, quiet=True)
    render(small, tmp_path / "two", workers=2, quiet=True)
    assert len(pictures(tmp_path / "one")) == 4
    assert pictures(tmp_path / "one") == pictures(tmp_path / "two")

    for folder in ("query", "bounding_box_test", "labels"):
        (tmp_path / "shipped" / folder).mkdir(parents=True)
    assert dataset.render_person(SAMPLES, SAMPLES.first, tmp_path / "shipped") == SAMPLES.views
    for name, data in pictures(tmp_path / "shipped").items():
        shipped = cv2.imread(str(SHIPPED / name)).astype(np.float32)
        again = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).astype(np.float32)
        # Another CPU may round a pixel differently; another person, pose or place differs by tens of levels.
        assert np.abs(shipped - again).mean() < 1.0, name


@pytest.mark.slow
def test_people_of_the_third_edition_are_rendered_in_what_the_folder_holds(tmp_path: Path) -> None:
    pytest.importorskip("anny", reason="anny (0.6.2) is not installed")
    assets = write_wardrobe(tmp_path / "assets")
    settings = Settings(
        people=2, views=3, test=0, occluded=0.0, height=96, width=48, seed=7, edition=3, wardrobe=str(assets)
    )
    for name in ("one", "two"):
        render(settings, tmp_path / name, workers=1, quiet=True)
    shots = sorted((tmp_path / "one/bounding_box_train").iterdir())
    assert len(shots) == 6
    assert all(shot.read_bytes() == (tmp_path / "two/bounding_box_train" / shot.name).read_bytes() for shot in shots)
    person = third.draw_person_3(load_wardrobe(assets), 7, 1)
    body = load_body()
    figure = third.dress_3(body, person)
    top = next(worn for worn in person.worn if worn.garment.kind == "top")
    rest, _ = body.rest(person.phenotype)
    for point in top.garment.points(rest):  # the garment's vertices are among the figure's
        assert np.linalg.norm(figure.rest - point, axis=1).min() < 1e-6
    hair = next(worn for worn in person.worn if worn.garment.kind == "hair")
    assert set(figure.cut_out.tolist()) == {-1, hair.garment.texture}


@pytest.mark.slow
@pytest.mark.parametrize("edition", [1, 3])
def test_a_street_is_two_videos_with_people_in_them(
    edition: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("anny", reason="the body model is not installed")
    monkeypatch.setattr(street, "SECONDS", 3)
    monkeypatch.setattr(street, "WALKS", [street.Walk(1, "door", 0.0, 3.0, 420, True)])
    more = ["--wardrobe", str(write_wardrobe(tmp_path / "assets"))] if edition == 3 else []
    assert street.main(["--out", str(tmp_path / "out"), *more]) == 0
    moved = {}
    for name in ("door", "yard"):
        video = cv2.VideoCapture(str(tmp_path / f"out/{name}.mp4"))
        frames = [video.read()[1].astype(np.float32) for _ in range(3 * street.RATE)]
        moved[name] = float(np.abs(frames[12] - frames[2]).mean())
    assert moved["door"] > 3 * moved["yard"], moved  # somebody walks past the door alone
