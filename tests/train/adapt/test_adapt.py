"""Adaptation: memory and evidence by hand, the rounds on a toy world, resuming, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("sklearn", reason="the extra train is not installed")

import toy_world as toy

from dpm_edge import Embeddings, Gallery
from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import CheckpointError, DataError
from dpm_edge.evaluation import market_scores
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.train.adapt import command, evidence, rounds
from dpm_edge.train.adapt.check import read_check, score
from dpm_edge.train.adapt.contrast import ClusterMemory
from dpm_edge.train.adapt.covers import PassersBy
from dpm_edge.train.adapt.crops import read_crops
from dpm_edge.train.adapt.rounds import Plan
from dpm_edge.train.evaluate import embed, maps_of

SMALL = Plan(
    rounds=2, minutes=10, people=4, pictures=2, passes=0.5, passers_by=0.0, neighbours=6, query_neighbours=2, least=2,
    eps=0.5,
)  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CAMERA/TRACK/*.jpg: 30 people, three cameras, three pictures a track."""
    root, draw = tmp_path_factory.mktemp("site"), np.random.default_rng(0)
    for number in range(30):
        for camera in range(3):
            folder = root / f"camera-{camera}" / f"track-{number:02d}"
            folder.mkdir(parents=True)
            for shot in range(3):
                cv2.imwrite(str(folder / f"{shot}.jpg"), toy.person(number, camera, draw))
    return root


@pytest.fixture(scope="module")
def net() -> DPM:
    torch.manual_seed(0)
    return DPM(toy.TINY.replace(height=64, width_px=32)).eval()


def test_average_precision_is_one_over_the_rank() -> None:
    first = np.eye(3)
    second = np.array([[1.0, 0, 0], [0, 0.6, 0.8], [0, 0.8, 0.6]])
    # the first finds its own; of the others, each other's glimpse is nearer than its own
    np.testing.assert_allclose(evidence.average_precision(first, second), [1.0, 0.5, 0.5])


def test_a_track_is_cut_into_its_first_and_last_third() -> None:
    tracks = np.array([7] * 6 + [3] * 2)
    ((first, second),) = evidence.glimpses(tracks)
    assert first.tolist() == [0, 1] and second.tolist() == [4, 5]


@pytest.mark.parametrize(("noise", "worse", "sure"), [(3.0, True, False), (0.0, False, True)])
def test_evidence_tells_better_from_worse(noise: float, worse: bool, sure: bool) -> None:
    draw = np.random.default_rng(0)
    clean = draw.normal(size=(60, 16))

    def pair(amount: float) -> tuple[np.ndarray, np.ndarray]:
        both = [clean + amount * draw.normal(size=clean.shape) for _ in range(2)]
        return tuple(one / np.linalg.norm(one, axis=1, keepdims=True) for one in both)  # type: ignore[return-value]

    found = evidence.compare(pair(1.0), pair(noise), np.arange(60) % 3, kind="tracks", seed=0)
    assert found is not None and (found.worse, found.sure) == (worse, sure)
    assert found.low <= found.gain <= found.high


def test_too_few_tracks_are_no_evidence() -> None:
    one = np.eye(evidence.LEAST_TRACKS - 1)
    assert evidence.compare((one, one), (one, one), np.arange(len(one)), kind="tracks", seed=0) is None


def test_the_command_adapts_and_reports(site: Path, net: DPM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(net, tmp_path / "base")
    monkeypatch.setattr(command, "HELD_OUT", 0.3)
    result = command.run(tmp_path / "base", site, tmp_path / "out", SMALL, force=True, quiet=True)
    assert result["written"] and len(result["rounds"]) == 2 and result["evidence"]["kind"] == "tracks"
    adapted = checkpoint.load(tmp_path / "out" / "adapted")
    assert checkpoint.fingerprint(adapted) != checkpoint.fingerprint(net)
    assert "adapted without labels" in adapted.spec.weights.recipe
    known = CameraStatistics.load(tmp_path / "out" / "cameras.json")
    assert known.fingerprint == checkpoint.fingerprint(adapted) and len(known.counts) == 3
    assert json.loads((tmp_path / "out" / "adapt.json").read_text())["evidence"] == result["evidence"]


def test_a_stopped_adaptation_ends_like_one_that_was_not_stopped(site: Path, net: DPM, tmp_path: Path) -> None:
    crops = read_crops(site, net.spec.preprocessing, quiet=True)
    whole, _ = rounds.adapt(net, crops, SMALL, tmp_path / "whole", quiet=True)
    stopped = dataclasses.replace(SMALL, minutes=1e-9)  # ends after its first round
    rounds.adapt(net, crops, stopped, tmp_path / "parts", quiet=True)
    torch.manual_seed(123)
    resumed, history = rounds.adapt(net, crops, SMALL, tmp_path / "parts", quiet=True)
    assert [row["lr"] for row in history] == pytest.approx([SMALL.lr, SMALL.lr * 0.55])
    assert checkpoint.fingerprint(resumed) == checkpoint.fingerprint(whole)


@pytest.mark.parametrize(
    ("done", "seconds", "planned"), [(0, 0.0, 12), (1, 600.0, 6), (2, 1000.0, 8), (3, 100.0, 12), (6, 3700.0, 7)]
)
def test_the_rate_falls_over_the_rounds_that_there_is_time_for(
    net: DPM, done: int, seconds: float, planned: int
) -> None:
    """By hand: 12 rounds wanted, 60 minutes; a round that has begun is ended."""
    plan = Plan(rounds=12, minutes=60)
    assert rounds.planned_rounds(rounds.State(net, None, net, round=done, seconds=seconds), plan) == planned


def test_a_convolutional_stem_keeps_its_lower_stages_and_all_statistics(site: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DPM(toy.TINY.replace(height=64, width_px=64, stem="lite0", visibility="map")).eval()
    crops = read_crops(site, net.spec.preprocessing, quiet=True)
    adapted, _ = rounds.adapt(net, crops, dataclasses.replace(SMALL, rounds=1), tmp_path, quiet=True)
    stem, first = (model.backbone.conv1 for model in (adapted, net))
    assert torch.equal(stem.first.weight, first.first.weight)
    assert torch.equal(stem.blocks[-1].bn2.running_var, first.blocks[-1].bn2.running_var)
    assert not torch.equal(stem.blocks[-1].project.weight, first.blocks[-1].project.weight)


def test_the_map_of_what_is_seen_stays(site: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = DPM(toy.TINY.replace(height=64, width_px=64, visibility="map")).eval()
    assert net.backbone.visibility is not None
    torch.nn.init.normal_(net.backbone.visibility.out.weight, std=3.0)
    crops = read_crops(site, net.spec.preprocessing, quiet=True)
    before = maps_of(net, crops.pictures.pixels)
    moved = {}
    for kept in (0.0, 5.0):
        plan = dataclasses.replace(SMALL, lr=5e-3, passes=2.0, map_kept=kept)
        adapted, _ = rounds.adapt(net, crops, plan, tmp_path / f"{kept}", quiet=True)
        moved[kept] = float((maps_of(adapted, crops.pictures.pixels) - before).abs().mean())
    print(moved)
    assert moved[5.0] < 0.7 * moved[0.0], moved


def test_a_step_is_computed_where_the_network_is(site: Path, net: DPM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device "meta" stands for a GPU: it refuses whatever meets a tensor of the CPU, and computes nothing."""
    crops = read_crops(site, net.spec.preprocessing, quiet=True)
    monkeypatch.setattr(torch, "autocast", lambda *device, **settings: contextlib.nullcontext())
    with torch.device("meta"):
        there, first = (DPM(net.spec.replace(visibility="map")) for _ in range(2))
        width = there.forward_train(torch.zeros(2, 3, 64, 32)).f.shape[1]
        means = torch.zeros(3, width)
    labels = torch.arange(len(crops)) // 9
    memory = ClusterMemory(torch.zeros(len(crops), width), labels, momentum=0.1, temperature=0.05)
    memory.vectors = memory.vectors.to("meta")
    known = rounds.Round(labels, torch.zeros(len(crops), width), means, None)
    batch = known.batch(crops, torch.arange(16), SMALL, np.random.default_rng(0))
    loss, feature = rounds._loss(there, first.eval(), batch, memory, SMALL)
    loss.backward()
    assert {loss.device.type, feature.device.type} == {"meta"}
    for name in (field.name for field in dataclasses.fields(batch)):
        stays = dataclasses.replace(batch, **{name: torch.empty_like(getattr(batch, name), device="cpu")})
        with pytest.raises(RuntimeError, match="device"):
            rounds._loss(there, first, stays, memory, SMALL)


def test_people_of_the_site_stand_in_front(
    site: Path, net: DPM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = read_crops(site, net.spec.preprocessing, quiet=True)
    people = PassersBy(crops.pictures.pixels, torch.arange(8), torch.full((8, 16, 8), 255, dtype=torch.uint8))
    given, cover = [], rounds.cover_crops
    monkeypatch.setattr(rounds, "find_passers_by", lambda pictures, seed, quiet: people)
    monkeypatch.setattr(rounds, "cover_crops", lambda *a: given.append(a[3:]) or cover(*a))
    one = dataclasses.replace(SMALL, rounds=1)
    rounds.adapt(net, crops, one, tmp_path / "without", quiet=True)
    assert given and all(found is None for _, _, found in given)
    given.clear()
    rounds.adapt(net, crops, dataclasses.replace(one, passers_by=0.4), tmp_path / "with", quiet=True)
    assert given and all(part == (SMALL.shapes, 0.4, people) for part in given)


def test_covered_pictures_are_drawn_to_their_own_feature(site: Path, net: DPM) -> None:
    """The loss grows by the weight times the mean of 1 − cos over the covered pictures, in float64 with numpy."""
    crops = read_crops(site, net.spec.preprocessing, quiet=True)
    draw, rows = np.random.default_rng(0), torch.arange(0, 96, 6)
    centred = F.normalize(
        torch.randn(len(crops), net.spec.dimension, generator=torch.Generator().manual_seed(0)), dim=1
    )
    labels = torch.arange(len(crops)) // 9
    known = rounds.Round(labels, centred, 0.01 * torch.ones(3, net.spec.dimension), None)
    batch = known.batch(crops, rows, SMALL, draw)
    assert 0 < batch.covered.sum() < len(rows)
    memory = ClusterMemory(centred, labels, momentum=0.1, temperature=0.05)
    loss = {}
    for own in (0.0, 2.5):
        made, feature = rounds._loss(net, net, batch, memory, dataclasses.replace(SMALL, own=own))
        loss[own] = float(made.detach())
    cosines = (feature.double().numpy() * centred[rows].double().numpy()).sum(1)
    wanted = 2.5 * np.mean(1 - cosines[batch.covered.numpy()])
    assert loss[2.5] - loss[0.0] == pytest.approx(wanted, rel=1e-4)


def test_another_plan_does_not_resume(site: Path, net: DPM, tmp_path: Path) -> None:
    crops = read_crops(site, net.spec.preprocessing, quiet=True)
    rounds.adapt(net, crops, dataclasses.replace(SMALL, rounds=1), tmp_path, quiet=True)
    with pytest.raises(CheckpointError, match="other settings"):
        rounds.adapt(net, crops, SMALL, tmp_path, quiet=True)


def test_a_model_that_got_worse_is_not_written(
    site: Path, net: DPM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(net, tmp_path / "base")
    worse = evidence.Evidence(
        kind="tracks", pairs=30, before=50, after=20, gain=-30, low=-40, high=-20, across_before=0, across_after=0
    )
    monkeypatch.setattr(command, "judge", lambda *arguments, quiet: worse)
    with pytest.raises(DataError, match="worse on held-out crops"):
        command.run(tmp_path / "base", site, tmp_path / "out", SMALL, quiet=True)
    assert not list((tmp_path / "out").glob("adapted.*"))
    assert json.loads((tmp_path / "out" / "adapt.json").read_text())["written"] is False


def test_check_scores_are_those_of_a_gallery_that_centres(net: DPM, tmp_path: Path) -> None:
    query, gallery = read_check(toy.make_market(tmp_path / "market"), net.spec.preprocessing, quiet=True)
    said = score(net, query, gallery)
    sides = [embed(net, side.pixels) for side in (query, gallery)]
    q, g = (
        Embeddings(
            features=f.numpy(),
            masks=m.numpy(),
            visibility=np.ones(len(f), np.float32),
            rows=np.arange(len(f)),
            fingerprint="f",
        )
        for f, m in sides
    )
    kept = Gallery("f", g.dimension, dtype="float32")
    kept.add(g, people=[str(int(p)) for p in gallery.people], cameras=[str(int(c)) for c in gallery.cameras])
    asked = [str(int(c)) for c in query.cameras]
    for space, centre in (("not centred", False), ("centred", True)):
        found = kept.search(q, len(g), centre=centre, query_cameras=asked)
        similarity = np.full((len(q), len(g)), -2.0)
        np.put_along_axis(similarity, found.rows, found.similarity, 1)
        labels = (side.numpy() for side in (query.people, query.cameras, gallery.people, gallery.cameras))
        assert said[space]["whole"]["plain"]["mAP"] == pytest.approx(
            market_scores(similarity, *labels).as_dict()["mAP"], abs=0.02
        )


def test_both_models_are_scored_on_labelled_pictures(site: Path, net: DPM, tmp_path: Path) -> None:
    checkpoint.save(net, tmp_path / "base")
    check = toy.make_market(tmp_path / "market")
    result = command.run(tmp_path / "base", site, tmp_path / "out", SMALL, check=check, force=True, quiet=True)
    query, gallery = read_check(check, net.spec.preprocessing, quiet=True)
    assert result["check"]["before"] == score(net, query, gallery)
    assert result["check"]["after"] == score(checkpoint.load(tmp_path / "out" / "adapted"), query, gallery)


def test_a_model_that_is_worse_on_labelled_pictures_is_not_written(
    site: Path, net: DPM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(net, tmp_path / "base")
    check = toy.make_market(tmp_path / "market")
    told = iter([60.0, 40.0])
    monkeypatch.setattr(command, "judge", lambda *arguments, quiet: None)
    monkeypatch.setattr(command, "score", lambda *_: {"centred": {"whole": {"plain": {"mAP": next(told)}}}})
    with pytest.raises(DataError, match=r"centred mAP 60\.0 before, 40\.0 after"):
        command.run(tmp_path / "base", site, tmp_path / "out", SMALL, check=check, quiet=True)
    assert not list((tmp_path / "out").glob("adapted.*"))


def test_pictures_of_nobody_are_refused(net: DPM, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for camera in range(2):
        (tmp_path / f"c{camera}").mkdir()
        for i in range(120):
            cv2.imwrite(str(tmp_path / f"c{camera}" / f"{i}.png"), draw.integers(0, 255, (64, 32, 3), np.uint8))
    crops = read_crops(tmp_path, net.spec.preprocessing, quiet=True)
    with pytest.raises(DataError, match="expected 16 groups of crops"):
        rounds.adapt(net, crops, Plan(rounds=1, least=8, eps=0.2), tmp_path / "out", quiet=True)


def test_crops_of_one_camera_are_refused(net: DPM, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    (tmp_path / "gate").mkdir()
    for i in range(210):
        cv2.imwrite(str(tmp_path / "gate" / f"{i}.jpg"), toy.person(i % 30, 0, draw))
    with pytest.raises(DataError, match="got 210 crops of 1"):
        read_crops(tmp_path, net.spec.preprocessing, quiet=True)


def copies(root: Path, people: int, times: int) -> Path:
    """Pictures of people before two cameras, each written several times."""
    draw = np.random.default_rng(0)
    for camera in range(2):
        (root / f"c{camera}").mkdir(parents=True)
        for number in range(people):
            for copy in range(times):
                if not copy:
                    picture = toy.person(number, camera, draw)
                cv2.imwrite(str(root / f"c{camera}" / f"{number}-{copy}.png"), picture)
    return root


def test_copies_of_a_few_crops_are_refused(net: DPM, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 200 different crops below .*, got 60: the other 240"):
        read_crops(copies(tmp_path / "crops", 30, 5), net.spec.preprocessing, quiet=True)


def test_copies_are_left_out(net: DPM, tmp_path: Path) -> None:
    crops = read_crops(copies(tmp_path / "crops", 110, 2), net.spec.preprocessing, quiet=True)
    assert len(crops) == 220 and all(name.endswith("-0.png") for name in crops.pictures.names)


def test_crops_of_few_people_do_no_harm(net: DPM, tmp_path: Path) -> None:
    """Ten people: fewer than a batch's sixteen groups are found, and nothing is learned from them."""
    draw = np.random.default_rng(0)
    for number in range(10):
        for camera in range(2):
            folder = tmp_path / "crops" / f"c{camera}" / f"t{number}"
            folder.mkdir(parents=True)
            for shot in range(12):
                cv2.imwrite(str(folder / f"{shot:02d}.jpg"), toy.person(number, camera, draw))
    checkpoint.save(net, tmp_path / "base")
    before = (tmp_path / "base.safetensors").read_bytes()
    with pytest.raises(DataError, match="expected 16 groups of crops that look like one person each"):
        command.run(tmp_path / "base", tmp_path / "crops", tmp_path / "out", Plan(rounds=1), quiet=True)
    assert (tmp_path / "base.safetensors").read_bytes() == before and not list((tmp_path / "out").glob("adapted.*"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["a.jpg"], "expected CAMERA"),
        (["c1/a.jpg"], "got 1 crops of 1"),
        (["c1/t/x/a.jpg"], "expected CAMERA"),
    ],
)
def test_another_layout_is_refused(net: DPM, tmp_path: Path, files: list[str], message: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((8, 4, 3), np.uint8))
    with pytest.raises(DataError, match=message):
        read_crops(tmp_path, net.spec.preprocessing, quiet=True)


def rounds_of(folder: Path, net: DPM, out: Path, answers: list[tuple[str, str, bool]]) -> np.ndarray:
    """The clusters of a folder's crops under these answers, with thresholds that join everything."""
    crops = dataclasses.replace(read_crops(folder, net.spec.preprocessing, quiet=True), answers=tuple(answers))
    plan = dataclasses.replace(SMALL, eps=0.999, people=1, neighbours=60)
    return np.stack([rounds.pseudo_labels(net, crops, plan)[0], crops.tracks])


def test_tracks_that_share_a_frame_and_tracks_answered_different_are_in_two_clusters(net: DPM, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    for camera in range(2):
        for number in range(12):
            folder = tmp_path / f"c{camera}" / f"track-{number:02d}"
            folder.mkdir(parents=True)
            for shot in range(9):  # every track starts where the one before it has its third crop left
                cv2.imwrite(str(folder / f"frame-{6 * number + shot:07d}.jpg"), toy.person(number, camera, draw))
    labels, tracks = rounds_of(tmp_path, net, tmp_path / "out", [("c0/track-00", "c1/track-05", False)])
    of = {int(track): int(labels[tracks == track][0]) for track in np.unique(tracks)}
    for camera in range(2):
        for number in range(11):
            a, b = of[12 * camera + number], of[12 * camera + number + 1]
            assert a != b or a == -1
    assert of[0] != of[12 + 5] or of[0] == -1
    assert max(of.values()) >= 1
    joined, _ = rounds_of(tmp_path, net, tmp_path / "out", [("c0/track-00", "c1/track-05", True)])
    assert len(set(joined[np.isin(tracks, [0, 17])].tolist())) == 1


def test_answers_about_other_crops_are_refused(site: Path, net: DPM, tmp_path: Path) -> None:
    checkpoint.save(net, tmp_path / "base")
    (tmp_path / "labels.csv").write_text("one,other,answer\nx/1,y/2,same\n")
    with pytest.raises(DataError, match=r"expected tracks of the crops in .*, such as camera-0/track-00, got x/1"):
        command.run(tmp_path / "base", site, tmp_path / "out", SMALL, labels=tmp_path / "labels.csv", quiet=True)


def test_answers_join_the_adaptation_and_its_report(site: Path, net: DPM, tmp_path: Path) -> None:
    checkpoint.save(net, tmp_path / "base")
    (tmp_path / "labels.csv").write_text("track,person\ncamera-0/track-00,anna\ncamera-1/track-00,anna\n")
    labels = tmp_path / "labels.csv"
    plan = dataclasses.replace(SMALL, rounds=1)
    result = command.run(tmp_path / "base", site, tmp_path / "out", plan, labels=labels, force=True, quiet=True)
    assert result["answers"] == 1 and result["pairs of tracks seen together"] == 0
