"""SPS and what reads it: losses, cache, preview sheet, statistics, explain."""

from __future__ import annotations

import json
import subprocess
import sys

import cv2
import numpy as np
import occlusion_statistics
import pytest
import torch
from toy_world import TINY

from dpm_edge.errors import DataError
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.train import explain, preview
from dpm_edge.train.preview import Example
from dpm_edge.train.saliency import learned, person_masks
from dpm_edge.train.transfer import Transfer

SPEC = TINY.replace(height=64, width_px=32)


def test_the_head_learns_but_its_tokens_do_not():
    torch.manual_seed(0)
    tokens = [torch.randn(2, 33, 48, requires_grad=True) for _ in range(4)]
    head = learned.SaliencyHead(48, 4)
    found = head(tokens)
    assert found.shape == (2, 32) and ((found > 0) & (found < 1)).all()
    found.sum().backward()
    assert all(t.grad is None for t in tokens) and head.score.weight.grad.abs().sum() > 0


def test_kept_and_discarded_patches_reach_the_saliency_with_opposite_signs(small):
    torch.manual_seed(0)
    net = DPM(SPEC, classes=5)
    images, labels = torch.randn(8, 3, 64, 32), torch.arange(8) // 2
    s = torch.full((8, 32), 0.4, requires_grad=True)
    whole, kept, rest = (net.forward_train(images, patch_scale=x) for x in (None, s, 1 - s))
    terms = learned.saliency_losses(whole, kept, rest, s, labels, small.saliency)
    assert terms["usage"].item() == pytest.approx(50 * 0.1**2, rel=1e-4)
    wanted = (whole.logits.softmax(1) * rest.logits.softmax(1)).sum(1).mean() * 0.1
    torch.testing.assert_close(terms["overlap"], wanted)
    for name in ("kept", "overlap"):
        assert torch.autograd.grad(terms[name], s, retain_graph=True)[0].abs().sum() > 0
    assert torch.autograd.grad(terms["whole"], s, allow_unused=True, retain_graph=True)[0] is None


def test_masks_come_from_the_cache_and_only_for_the_same_pictures(train, small, tmp_path):
    first = person_masks.person_masks(small, train, tmp_path, tmp_path, torch.device("cpu"), quiet=True)
    assert first.shape == (len(train), 8, 4) and first.dtype == torch.bool
    stamp = (tmp_path / "saliency.safetensors").stat().st_mtime_ns
    assert torch.equal(
        first, person_masks.person_masks(small, train, tmp_path, tmp_path, torch.device("cpu"), quiet=True)
    )
    assert (tmp_path / "saliency.safetensors").stat().st_mtime_ns == stamp
    again = learned.saliency_of(*learned.load_saliency_model(tmp_path / "saliency-model"), train.pixels)
    kept, source = person_masks.load_saliency(tmp_path / "saliency.safetensors", train, (8, 4))
    assert source == "learned"
    torch.testing.assert_close(again, kept, atol=1e-3, rtol=0)
    from dataclasses import replace

    with pytest.raises(DataError, match="of others"):
        person_masks.load_saliency(tmp_path / "saliency.safetensors", replace(train, names=train.names[::-1]), (8, 4))


def test_a_stopped_saliency_run_goes_on_as_if_it_had_not_been(train, small, tmp_path, monkeypatch):
    small.saliency.epochs, small.saliency.identities = 2, 10
    cpu = torch.device("cpu")
    whole = person_masks.person_masks(small, train, tmp_path, tmp_path / "whole", cpu, quiet=True)
    keep = learned.state.save

    def stop(path, values):
        keep(path, values)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(learned.state, "save", stop)
        person_masks.person_masks(small, train, tmp_path, tmp_path / "part", cpu, quiet=True)
    assert (tmp_path / "part" / learned.RESUME).is_file()
    assert torch.equal(whole, person_masks.person_masks(small, train, tmp_path, tmp_path / "part", cpu, quiet=True))
    (a, _), (b, _) = (
        person_masks.load_saliency(tmp_path / d / "saliency.safetensors", train, (8, 4)) for d in ("whole", "part")
    )
    assert torch.equal(a, b) and not (tmp_path / "part" / learned.RESUME).exists()


def test_the_person_is_what_reaches_the_threshold_or_the_most_salient_share(small):
    draw = torch.Generator().manual_seed(0)
    s = 0.3 + 0.02 * torch.randn(50, 8, 4, generator=draw)  # as SPS is after a short training: near `usage` everywhere
    small.saliency.threshold = 0.5
    assert not person_masks.person_region(s, small.saliency, "learned").any()
    small.saliency.threshold, small.saliency.usage = 0.0, 0.25
    found = person_masks.person_region(s, small.saliency, "learned")
    assert found.sum() == 400 and s[found].min() >= s[~found].max()


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_a_learned_file_in_a_recipe_of_segmentation_keeps_the_most_salient_patches(
    train, small, tmp_path, capsys, threshold
):
    """After a short training saliency is near `usage` everywhere: segmentation's half would keep nobody."""
    learned_before = 0.3 + 0.02 * torch.randn(len(train), 8, 4, generator=torch.Generator().manual_seed(0))
    file = tmp_path / "saliency.safetensors"
    person_masks.save_saliency(file, learned_before, train, "learned")
    small.saliency.source, small.saliency.threshold, small.saliency.masks = "segmentation", threshold, str(file)
    found = person_masks.person_masks(small, train, tmp_path, tmp_path, torch.device("cpu"))
    assert float(found.float().mean()) == pytest.approx(small.saliency.usage, abs=0.01)
    assert "source 'learned', not 'segmentation'" in capsys.readouterr().err


def test_a_saliency_file_that_does_not_say_its_source_is_refused(train, tmp_path):
    file = tmp_path / "saliency.safetensors"
    person_masks.save_saliency(file, torch.rand(len(train), 8, 4), train, "somebody")
    with pytest.raises(DataError, match="says its source"):
        person_masks.load_saliency(file, train, (8, 4))


def test_an_unknown_source_and_a_set_without_masks_are_refused(market, train, small, tmp_path):
    from dpm_edge.errors import SpecError

    small.saliency.source = "label"
    with pytest.raises(SpecError, match="labels"):
        person_masks.person_masks(small, train, market, tmp_path, torch.device("cpu"), quiet=True)
    small.saliency.source = "labels"
    with pytest.raises(DataError, match="without masks/"):
        person_masks.person_masks(small, train, market, tmp_path, torch.device("cpu"), quiet=True)


def test_masks_of_a_rendered_set_come_from_its_labels(train, small, tmp_path):
    small.saliency.source = "labels"
    folder = tmp_path / "set" / "masks" / "bounding_box_train"
    folder.mkdir(parents=True)
    for number, name in enumerate(train.names):
        mask = np.zeros((128, 64), np.uint8)
        mask[: 16 * (number % 8 + 1), 16:] = 255
        cv2.imwrite(str(folder / name.replace(".jpg", ".png")), mask)
    masks = person_masks.person_masks(small, train, tmp_path / "set", tmp_path, torch.device("cpu"), quiet=True)
    for number, mask in enumerate(masks):
        wanted = torch.zeros(8, 4, dtype=torch.bool)
        wanted[: number % 8 + 1, 1:] = True
        assert torch.equal(mask, wanted)
    assert not (tmp_path / person_masks.SOURCES["learned"]).exists()


def test_saliency_is_learned_from_the_first_people_alone(train, small, tmp_path, monkeypatch):
    small.saliency.identities = 8
    seen: set[int] = set()
    wanted = learned.saliency_losses
    monkeypatch.setattr(learned, "saliency_losses", lambda *a: (seen.update(a[4].tolist()), wanted(*a))[1])
    net, _ = learned.train_saliency(small, train, torch.device("cpu"), tmp_path, quiet=True)
    assert seen == set(range(8)) and len(net.prototypes) == 8


def test_preview_writes_a_sheet(market, small, tmp_path, capsys):
    from toy_world import SMALL

    words = ["market_tiny", *SMALL, "transfer.rolled=0", "transfer.unrolled=0", "transfer.smallest=0"]
    assert preview.main([*words, "--data", str(market), "--out", str(tmp_path / "sheet.jpg")]) == 0
    image = cv2.imread(str(tmp_path / "sheet.jpg"))
    assert image.shape[1] == 4 * (5 * 64 + 8) and "stand in another's scene" in capsys.readouterr().out


def test_what_spt_took_away_is_the_persons_region_outside_the_donors():
    masks = torch.zeros(2, 2, 2, dtype=torch.bool)
    masks[0] = torch.tensor([[True, False], [True, False]])
    masks[1] = torch.tensor([[False, True], [False, False]])
    done = Transfer(torch.zeros(2, 3, 4, 4), torch.tensor([1, 1]), torch.tensor([1, 0]), torch.tensor([1.0, 0.0]))
    _, regions = occlusion_statistics.transferred([Example(torch.zeros(2, 3, 4, 4), masks, done)])
    wanted = torch.zeros(4, 4, dtype=torch.bool)
    wanted[2:, 2:] = True  # the lower right cell: the rolled person is there, the donor's person is not
    assert torch.equal(regions[0], wanted) and not regions[1].any()


def test_measures_of_a_box():
    pixels = torch.zeros(1, 3, 20, 10)
    regions = torch.zeros(1, 20, 10, dtype=torch.bool)
    regions[0, 10:, :5] = True
    found = occlusion_statistics.measures(pixels, regions)
    assert found["size"][0] == pytest.approx(0.25) and found["contrast"][0] == 0
    assert found["row"][0] == pytest.approx(14.5 / 19) and found["column"][0] == pytest.approx(2 / 9)
    noisy = torch.randn(1, 3, 20, 10, generator=torch.Generator().manual_seed(0)) * 40 + 120
    assert occlusion_statistics.measures(noisy, regions)["contrast"][0] > 15


def test_divergence_is_zero_for_equal_samples_and_grows_with_distance():
    draw = np.random.default_rng(0)
    a, b, c = draw.normal(0.3, 0.05, 500), draw.normal(0.4, 0.05, 500), draw.normal(0.7, 0.05, 500)
    assert occlusion_statistics.divergence(a, a, "size") == 0
    near, far = (occlusion_statistics.divergence(a, other, "size") for other in (b, c))
    assert 0 < near < far


def test_explain_shows_queries_and_counts_ranks_as_the_protocol_does(market, tmp_path, capsys):
    torch.manual_seed(0)
    net = DPM(SPEC)
    checkpoint.save(net, tmp_path / "net")
    head = learned.SaliencyHead(48, 4)
    learned.save_saliency_model(tmp_path / "sps", net, head)
    words = [str(tmp_path / "net"), str(market), "-o", str(tmp_path / "out"), "--queries", "3", "--share", "0.3"]
    assert explain.main([*words, "--saliency", str(tmp_path / "sps")]) == 0
    rows = json.loads((tmp_path / "out" / "explain.json").read_text())
    assert len(rows) == 3 and all(len(r["most_closed"]) == explain.CLOSED for r in rows)
    assert all(abs(r["rank_plain"] - r["rank_masked"]) <= 2 for r in rows)  # a mask of 0.5 everywhere
    assert len(list((tmp_path / "out").glob("*.jpg"))) == 3
    assert "first true match" in capsys.readouterr().out


def test_first_match_leaves_out_the_same_camera():
    from dpm_edge.train.data import Pictures

    def made(people, cameras):
        none = torch.zeros(len(people), 3, 1, 1, dtype=torch.uint8)
        return Pictures(none, torch.tensor(people), torch.tensor(cameras), [""] * len(people))

    similarity = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.4, 0.5]])
    ranks = explain.first_match(similarity, made([1, 7], [1, 1]), made([1, -1, 2, 1, 3], [1, 2, 2, 2, 2]))
    assert ranks == [2, None]


def test_training_needs_none_of_the_renderers_libraries():
    code = "import sys; sys.modules.update(numba=None, anny=None); import dpm_edge.train.run, dpm_edge.train.preview"
    subprocess.run([sys.executable, "-c", code], check=True)
