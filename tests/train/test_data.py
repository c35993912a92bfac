"""Batches, pixels, augmentations."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from dpm_edge.errors import DataError, SpecError
from dpm_edge.images import preprocess, read_image
from dpm_edge.layouts import take
from dpm_edge.market import read_folder
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.spec import PRESETS, Preprocessing
from dpm_edge.train.augment import augment, flip, mix_styles, mixed_style
from dpm_edge.train.config import AugmentConfig
from dpm_edge.train.data import IdentitySampler, decode, to_input, visible_shares

STILL = {"flip": 0.0, "pad": 0, "erase": 0.0}


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_training_sees_what_serving_sees(market, color):
    pre = Preprocessing(height=96, width=48, color=color, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    folder = read_folder(market / "query")
    ours = to_input(decode(folder, pre, quiet=True).pixels, pre)
    theirs = preprocess([read_image(p) for p in folder.paths], pre)
    torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-5, atol=1e-5)


def test_an_unreadable_picture_is_left_out_and_named(market, tmp_path, capsys):
    folder = read_folder(Path(shutil.copytree(market / "query", tmp_path / "query")))
    folder.paths[1].write_bytes(b"")
    pictures = decode(folder, Preprocessing(height=32, width=16), quiet=True)
    names = [path.name for path in folder.paths]
    assert pictures.names == [names[0], *names[2:]]
    assert pictures.people.tolist() == [folder.people[0], *folder.people[2:]]
    assert pictures.pixels.shape == (len(names) - 1, 3, 32, 16)
    assert names[1] in capsys.readouterr().err


def test_no_picture_at_all_is_refused(market):
    folder = read_folder(market / "query")
    with pytest.raises(DataError, match="expected pictures to read, got none"):
        decode(take(folder, np.zeros(len(folder), bool)), Preprocessing(), quiet=True)


def test_visible_shares_come_from_the_labels(market, tmp_path):
    folder = read_folder(market / "query")
    table = tmp_path / "labels.csv"
    table.write_text("file,visible\n" + "".join(f"{p.name},0.{i + 10}\n" for i, p in enumerate(folder.paths)))
    assert visible_shares(folder, table).tolist() == [float(f"0.{i + 10}") for i in range(len(folder))]
    table.write_text("file,visible\n")
    with pytest.raises(DataError, match="24 lack one"):
        visible_shares(folder, table)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_visible_shares_are_read_in_every_encoding(encoding, market, tmp_path):
    folder = read_folder(market / "query")
    table = tmp_path / "labels.csv"
    table.write_text("file,visible\n" + "".join(f"{p.name},0.5\n" for p in folder.paths), encoding=encoding)
    assert visible_shares(folder, table).tolist() == [0.5] * len(folder)


@pytest.mark.parametrize("text", ["name,visible\na.jpg,1\n", "file,visible\na.jpg,much\n", "file,visible\na.jpg\n"])
def test_a_labels_file_that_does_not_say_what_is_visible_is_named(text, market, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(DataError, match="expected columns file and visible"):
        visible_shares(read_folder(market / "query"), table)


def test_batches_hold_p_people_with_k_pictures_and_all_people_come():
    labels = np.repeat(np.arange(10), [2, 3, 9, 4, 4, 4, 5, 6, 4, 7])
    sampler = IdentitySampler(labels, identities=4, pictures=4, seed=1)
    seen = set()
    for number in range(3):
        rows = sampler.epoch(number)
        assert rows.shape == (sampler.batches, 16)
        for batch in labels[rows]:
            people, counts = np.unique(batch, return_counts=True)
            assert len(people) == 4 and (counts == 4).all()
            seen |= set(people)
        for batch in rows:
            enough = [p for p in np.unique(labels[batch]) if (labels == p).sum() >= 4]
            assert all(len(set(batch[labels[batch] == p])) == 4 for p in enough)
    assert seen == set(range(10))
    assert (sampler.epoch(1) == IdentitySampler(labels, 4, 4, 1).epoch(1)).all()
    assert (sampler.epoch(1) != sampler.epoch(2)).any()


def test_too_few_people_for_a_batch_says_what_to_set():
    with pytest.raises(DataError, match=r"data\.identities=3"):
        IdentitySampler(np.repeat(np.arange(3), 4), 8, 4, 0)


def pictures(count=64):
    return torch.rand(count, 3, 64, 32, generator=torch.Generator().manual_seed(0)) * 255


def test_without_augmentation_nothing_changes():
    pixels = pictures(4)
    assert torch.equal(augment(pixels, AugmentConfig(**STILL), torch.Generator().manual_seed(0)), pixels)


def test_flip_turns_picture_and_mask_together():
    pixels, masks = pictures(), torch.rand(64, 4, 2) < 0.5
    turned, turned_masks = flip(pixels, masks, 0.5, torch.Generator().manual_seed(0))
    mirrored = [i for i in range(64) if torch.equal(turned[i], pixels[i].flip(2))]
    assert 15 < len(mirrored) < 50
    for i in range(64):
        wanted = (pixels[i].flip(2), masks[i].flip(1)) if i in mirrored else (pixels[i], masks[i])
        assert torch.equal(turned[i], wanted[0]) and torch.equal(turned_masks[i], wanted[1])


def test_shifts_are_whole_pixels_with_black_around():
    pixels = pictures(16)
    moved = augment(pixels, AugmentConfig(**{**STILL, "pad": 16}), torch.Generator().manual_seed(2))
    shifts = set()
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    for i in range(16):
        found = [
            (y, x)
            for y in range(9)
            for x in range(9)
            if torch.allclose(moved[i], padded[i, :, y : y + 64, x : x + 32], atol=1e-2)
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 8


def test_erasing_covers_one_box_of_the_published_size_in_about_half():
    pixels = torch.full((400, 3, 64, 32), 255.0)
    config = AugmentConfig(**{**STILL, "erase": 0.5})
    changed = (augment(pixels, config, torch.Generator().manual_seed(0)) != 255).any(1)
    erased = changed.flatten(1).any(1)
    assert 160 < erased.sum() < 240
    for box in changed[erased]:
        rows, columns = box.any(1).nonzero().flatten(), box.any(0).nonzero().flatten()
        tall, wide = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
        assert box.float().mean() > 0.9 * tall * wide / (64 * 32)  # full, but for noise that is 255
        assert tall * wide / (64 * 32) < 0.42


@pytest.mark.parametrize("field", ["colour", "grey", "blur", "noise", "scale"])
def test_each_augmentation_changes_pictures_within_their_range_and_follows_the_seed(field):
    config = AugmentConfig(**{**STILL, field: 8.0 if field == "noise" else 0.4})
    pixels = pictures(16)
    first, again, other = (augment(pixels, config, torch.Generator().manual_seed(s)) for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.min() >= 0 and first.max() <= 255.001
    assert not torch.equal(first, pixels)


def test_blur_lowers_the_resolution_by_the_factors_that_are_asked_for():
    pixels = pictures(24)
    config = AugmentConfig(**STILL, blur=1.0, coarser=(2.0, 4.0))
    done = augment(pixels, config, torch.Generator().manual_seed(0))
    numbers = []
    for before, after in zip(pixels, done):
        wanted = []
        for factor in (2, 4):  # OpenCV's area and bilinear resize, in place of torch's
            whole = before.permute(1, 2, 0).numpy()
            small = cv2.resize(whole, (32 // factor, 64 // factor), interpolation=cv2.INTER_AREA)
            wanted.append(torch.from_numpy(cv2.resize(small, (32, 64))).permute(2, 0, 1))
        near = [(after - w).abs().max() < 0.02 for w in wanted]
        assert sum(near) == 1
        numbers.append(near.index(True))
    assert 6 < sum(numbers) < 18


def test_levels_put_the_darkest_and_the_brightest_where_cameras_have_them():
    pixels = (pictures(32) - 127.5) * 0.2 + 120  # flat: 94 to 146
    done = augment(pixels, AugmentConfig(**STILL, levels=1.0), torch.Generator().manual_seed(0))
    grey = (done * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1).flatten(1)
    low, high = torch.quantile(grey, 0.02, dim=1), torch.quantile(grey, 0.98, dim=1)
    assert (low < 55).all() and (high > 130).all() and high.std() > 15
    kept = augment(pixels, AugmentConfig(**STILL, levels=0.5), torch.Generator().manual_seed(0))
    same = (kept - pixels).abs().amax((1, 2, 3)) < 1e-3
    assert 6 < same.sum() < 26


def test_sharpening_lifts_edges_and_leaves_flat_places():
    pixels = torch.full((64, 3, 64, 32), 100.0)
    pixels[:, :, 32:] = 150.0
    done = augment(pixels, AugmentConfig(**STILL, sharpen=1.5), torch.Generator().manual_seed(0))
    assert torch.equal(done[:, :, :31], pixels[:, :, :31]) and torch.equal(done[:, :, 33:], pixels[:, :, 33:])
    lifted = done[:, 0, 32, 0] - 150  # amount × a third of the step
    assert 20 < (lifted > 0.01).sum() < 44 and 15 < lifted.max() <= 25.01
    torch.testing.assert_close(100 - done[:, 0, 31, 0], lifted)


def test_grey_pictures_are_grey():
    grey = augment(pictures(8), AugmentConfig(**STILL, grey=1.0), torch.Generator().manual_seed(0))
    assert (grey.amax(1) - grey.amin(1)).max() < 1e-2


def test_a_mixed_style_lies_between_a_pictures_own_and_one_others_and_the_content_stays():
    torch.manual_seed(0)
    before = torch.randn(12, 5, 8, 4) * torch.rand(12, 5, 1, 1).add(0.5) + torch.randn(12, 5, 1, 1)
    after = mixed_style(before, 1.0)

    def style(x: torch.Tensor) -> np.ndarray:
        flat = x.double().flatten(2).numpy()
        return np.concatenate([flat.mean(2), flat.std(2, ddof=1)], axis=1)

    old, new, mixed = style(before), style(after), 0
    for k in range(12):
        found = []
        for j in range(12):  # own · old[k] + (1 − own) · old[j], one share for all channels
            way = old[k] - old[j]
            own = float(way @ (new[k] - old[j]) / (way @ way)) if j != k else 1.0
            if -1e-3 <= own <= 1.001 and np.abs(own * old[k] + (1 - own) * old[j] - new[k]).max() < 5e-3:
                found.append(own)
        assert found, k
        mixed += min(found) < 0.9
        mine, theirs = ((x[k] - x[k].mean((1, 2), True)) / x[k].std((1, 2), keepdim=True) for x in (before, after))
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-3)
    assert mixed >= 3
    assert torch.allclose(mixed_style(before, 0.0), before, atol=1e-5)


def test_styles_are_mixed_in_training_alone_and_need_a_convolutional_stem():
    net = checkpoint.load(Path("dpm-n"))
    net.backbone.conv1.freeze(3, fixed_statistics=True)
    images = torch.rand(6, 3, 64, 64) * torch.rand(6, 3, 1, 1) * 2 - 1
    stem = net.backbone.conv1
    plain = (stem.train()(images), stem.eval()(images))
    mix_styles(net, AugmentConfig(mix_style=1.0))
    torch.manual_seed(0)
    assert not torch.allclose(stem.train()(images), plain[0], atol=1e-3)
    torch.testing.assert_close(stem.eval()(images), plain[1])
    with pytest.raises(SpecError, match=r"expected a model with a convolutional stem for augment.mix_style=1"):
        mix_styles(DPM(PRESETS["dpm-t"]), AugmentConfig(mix_style=1.0))
