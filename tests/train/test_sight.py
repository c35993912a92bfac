"""Losses on exact masks, covered features and a teacher: hand-worked cases; and a toy run with all of them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dpm_edge import spec
from dpm_edge.errors import DataError, SpecError
from dpm_edge.layouts import read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.train import sight
from dpm_edge.train.config import LossConfig, override
from dpm_edge.train.criterion import Criterion, Targets
from dpm_edge.train.data import to_input
from dpm_edge.train.loop import batch_of, fit
from dpm_edge.train.recipes import recipe
from dpm_edge.train.run import prepare
from dpm_edge.train.saliency.labels import label_saliency, pixel_shares
from dpm_edge.train.start import model_spec, network

SEEING = spec.ModelSpec(
    name="seeing",
    width=48,
    heads=3,
    layers=2,
    mask_blocks=(1, 2),
    joint_dim=0,
    hmg="lite",
    stem="lite0",
    visibility="map",
    preprocessing=spec.Preprocessing(height=64, width=64),
)
WORDS = [
    "model.preset=seeing",
    "model.stem=",
    "model.height=64",
    "model.width=64",
    "data.identities=8",
    "schedule.minutes=0",
    "schedule.epochs=2",
    "evaluate.every=2",
    "evaluate.occlusion=false",
    "log_every=1",
    "device=cpu",
]


@pytest.fixture(autouse=True)
def seeing_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spec.PRESETS, "seeing", SEEING)


@pytest.fixture(scope="session")
def masked_market(market: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world with masks: the upper half of each person seen, the lower half hidden."""
    root = tmp_path_factory.mktemp("masked") / "market"
    root.mkdir()
    for part in ("bounding_box_train", "query", "bounding_box_test"):
        (root / part).symlink_to(market / part)
    (root / "masks" / "bounding_box_train").mkdir(parents=True)
    mask = np.zeros((128, 64), np.uint8)
    mask[16:64, 16:48], mask[64:112, 16:48] = 255, 100
    for path in (root / "bounding_box_train").glob("*.jpg"):
        cv2.imwrite(str((root / "masks" / "bounding_box_train" / path.name).with_suffix(".png")), mask)
    return root


def test_visibility_loss_is_the_mean_entropy_and_the_error_of_the_share() -> None:
    # p: seen ½ everywhere, hidden ½ everywhere: entropy ln 2 each, and a visibility of ½ where it is 1
    shares = torch.zeros(1, 2, 4, 4)
    shares[:, 0] = 1
    got = sight.visibility_loss(torch.zeros(1, 2, 4, 4), shares)
    assert float(got) == pytest.approx(math.log(2) + 0.5, abs=1e-5)


def test_visibility_of_a_picture_without_a_person_does_not_count() -> None:
    got = sight.visibility_loss(torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
    assert float(got) == pytest.approx(math.log(2), abs=1e-5)


def test_pull_is_the_angle_to_the_mean_of_the_uncovered() -> None:
    features = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0], [0.0, 1.0], [1.0, 0.0]], requires_grad=True)
    labels = torch.tensor([0, 0, 0, 1, 1])
    covered = torch.tensor([False, False, True, True, True])  # person 1 has none uncovered
    loss = sight.pull(features, labels, covered)
    assert float(loss.detach()) == pytest.approx(1 - math.cos(math.pi / 4), abs=1e-6)
    loss.backward()
    assert features.grad is not None
    assert features.grad[[0, 1, 3, 4]].abs().max() == 0 and features.grad[2].abs().max() > 0


def test_pull_without_covered_pictures_is_zero() -> None:
    got = sight.pull(torch.randn(4, 8), torch.tensor([0, 0, 1, 1]), torch.zeros(4, dtype=torch.bool))
    assert float(got) == 0


def test_distil_is_zero_for_the_teachers_angles_whatever_the_space() -> None:
    taught = torch.nn.functional.normalize(torch.randn(6, 5), dim=1)
    turned = torch.cat([torch.zeros(6, 3), 4 * taught.flip(1)], 1)
    assert float(sight.distil(turned, taught)) == pytest.approx(0, abs=1e-10)
    apart = torch.eye(2)
    assert float(sight.distil(torch.ones(2, 3), apart)) == pytest.approx(1.0, abs=1e-6)


def test_shares_of_pixels_are_those_of_the_masks(masked_market: Path) -> None:
    config = override(recipe("rendered_nano"), WORDS)
    run = prepare(config, masked_market, masked_market.parent / "out", quiet=True)
    assert run.shares is not None and run.shares.shape == (len(run.train), 2, 64, 64)
    seen, whole = (run.shares[:, k].float().mean() / 255 for k in (0, 1))
    assert float(seen) == pytest.approx(0.1875, abs=1e-3) and float(whole) == pytest.approx(0.375, abs=1e-3)
    # saliency asks who is seen: what is hidden is none of it
    assert float(label_saliency(masked_market, run.train, (4, 4)).mean()) == pytest.approx(0.1875, abs=1e-3)
    assert float(pixel_shares(masked_market, run.train, (8, 4))[:, 0].float().mean() / 255) == pytest.approx(
        0.1875, abs=0.01
    )


def test_a_batch_hides_what_the_masks_and_the_covering_hide(masked_market: Path) -> None:
    config = override(recipe("rendered_nano"), [*WORDS, "augment.scale=0", "augment.pad=0", "covering.probability=0.5"])
    run = prepare(config, masked_market, masked_market.parent / "out2", quiet=True)
    rows = torch.from_numpy(run.sampler.epoch(0))[0]
    inputs, targets, _ = batch_of(run, rows)
    assert inputs.shape == (32, 3, 64, 64) and targets.covered is not None and targets.shares is not None
    total = targets.shares.sum((1, 2, 3)) / 16
    torch.testing.assert_close(total, torch.full((32,), 0.375), atol=0.01, rtol=0)  # nobody vanishes: seen or hidden
    seen = targets.shares[:, 0].sum((1, 2)) / 16
    torch.testing.assert_close(
        seen[~targets.covered], torch.full_like(seen[~targets.covered], 0.1875), atol=0.01, rtol=0
    )
    assert (seen[targets.covered] < 0.15).any()


@pytest.mark.slow
def test_a_run_learns_the_map_and_its_checkpoint_keeps_it(masked_market: Path, tmp_path: Path) -> None:
    words = [*WORDS, "schedule.epochs=8", "evaluate.every=8", "optimiser.frozen_stages=0", "optimiser.ema=0"]
    run = prepare(override(recipe("rendered_nano"), words), masked_market, tmp_path, quiet=True)
    fit(run)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    logged = [line["visibility"] for line in lines if line["kind"] == "step"]
    assert logged[-1] < 0.92 * logged[0]
    assert checkpoint.load(tmp_path / "last").spec.visibility == "map"


def test_a_teacher_is_followed_on_the_same_pictures(masked_market: Path, tmp_path: Path) -> None:
    checkpoint.save(DPM(SEEING).eval(), tmp_path / "teacher")
    words = [*WORDS, "loss.distil=1", f"loss.teacher={tmp_path / 'teacher'}"]
    run = prepare(override(recipe("rendered_nano"), words), masked_market, tmp_path / "run", quiet=True)
    assert run.taught is not None and run.taught.shape == (len(run.train), 48)
    torch.testing.assert_close(run.taught.norm(dim=1), torch.ones(len(run.train)))


def test_own_is_the_angle_to_the_teachers_feature_of_the_same_picture(masked_market: Path, tmp_path: Path) -> None:
    """Of a network that is its own teacher, in evaluation mode, uncovered: none. Covered: 1 − cos, by hand."""
    net = DPM(SEEING).eval()
    checkpoint.save(net, tmp_path / "teacher")
    words = [*WORDS, "loss.own=3", f"loss.teacher={tmp_path / 'teacher'}"]
    run = prepare(override(recipe("rendered_nano"), words), masked_market, tmp_path / "run", quiet=True)
    rows = torch.arange(8)
    out = net.forward_train(to_input(run.train.pixels[rows], net.spec.preprocessing))
    assert run.taught is not None
    net.prototypes = DPM(SEEING, classes=8).prototypes
    with_logits = dataclasses.replace(out, logits=torch.zeros(8, 8))
    criterion = Criterion(LossConfig(own=3.0, masked=False, triplet=0.0, hem=0.0))
    same = criterion(with_logits, net, Targets(rows, taught=run.taught[rows]), 0.0)
    assert float(same["own"].detach()) == pytest.approx(0.0, abs=1e-5)
    others = torch.nn.functional.normalize(torch.randn(8, 48, generator=torch.Generator().manual_seed(0)), dim=1)
    apart = criterion(with_logits, net, Targets(rows, taught=others), 0.0)
    unit = (out.neck if net.spec.neck == "after" else out.f).detach().double().numpy()
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    wanted = 3 * np.mean(1 - (unit * others.double().numpy()).sum(1))
    assert float(apart["own"].detach()) == pytest.approx(wanted, rel=1e-4)


def test_a_resumed_run_takes_the_teachers_features_from_its_folder(
    masked_market: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(DPM(SEEING).eval(), tmp_path / "teacher")
    people = read_dataset(masked_market, "market", train=True).train
    names = [path.name for path in people.paths]
    ask = (str(tmp_path / "teacher"), people, names, tmp_path / sight.TAUGHT, True)
    first = sight.teach(*ask)
    calls = []
    asked = sight.embed
    monkeypatch.setattr(sight, "embed", lambda *given: calls.append(1) or asked(*given))
    assert torch.equal(sight.teach(*ask), first) and not calls
    torch.manual_seed(5)
    checkpoint.save(DPM(SEEING).eval(), tmp_path / "teacher")
    assert not torch.equal(sight.teach(*ask), first) and calls == [1]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["saliency.source=learned"], "expected saliency.source=labels with covering"),
        (["transfer.probability=0.5"], "expected transfer.probability=0 with covering"),
        (["augment.blur=0.5", "augment.coarser=2,0"], "expected factors of 1 or more .* got 2,0"),
        (["augment.blur=0.5", "augment.coarser=,"], "got none. Give some, such as"),
        (["loss.distil=1"], "expected loss.teacher=CHECKPOINT"),
        (["loss.own=1"], "expected loss.teacher=CHECKPOINT"),
        (["loss.own=1", "loss.teacher=dpm-t"], "with features of 48 dimensions for loss.own"),
    ],
)
def test_refuses_what_cannot_go_together(masked_market: Path, tmp_path: Path, words: list[str], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        prepare(override(recipe("rendered_nano"), [*WORDS, *words]), masked_market, tmp_path, quiet=True)


def test_refuses_a_set_without_masks(market: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected masks in"):
        prepare(override(recipe("rendered_nano"), WORDS), market, tmp_path, quiet=True)


def test_refuses_frozen_stages_without_a_stem(masked_market: Path, tmp_path: Path) -> None:
    words = [*WORDS, "model.preset=tiny", "model.stride=8", "loss.visibility=0", "covering.probability=0"]
    with pytest.raises(SpecError, match="expected a model with a convolutional stem"):
        prepare(override(recipe("rendered_nano"), words), masked_market, tmp_path, quiet=True)


def test_first_weights_are_for_a_convolutional_stem() -> None:
    config = override(recipe("rendered_nano"), ["model.preset=dpm-t", "model.height=128", "model.width=64"])
    with pytest.raises(SpecError, match=r"expected a preset with a convolutional stem for model.stem, got 'dpm-t'"):
        network(config.model, 4, 1, 0)


def test_recipe_describes_the_edge_preset() -> None:
    found = model_spec(recipe("rendered_nano").model)
    assert (found.stem, found.visibility, found.grid) == ("lite0-deep", "map", (12, 6))
