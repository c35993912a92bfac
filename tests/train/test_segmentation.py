"""People segmented by the network that ships: held to the visible shares that the renderer wrote down."""

from __future__ import annotations

import csv
from importlib.resources import files

import cv2
import numpy as np
import pytest
import torch

from dpm_edge.errors import MissingLibrary
from dpm_edge.train.saliency import person_masks, segmentation


class Held:
    """What is read of Pictures."""

    def __init__(self, pixels):
        self.pixels = pixels

    def __len__(self):
        return len(self.pixels)


@pytest.fixture(scope="module")
def samples():
    """(24, 3, 128, 64) uint8 RGB of shipped rendered people, and the share of each that is visible."""
    folder = files("dpm_edge") / "assets" / "samples"
    with (folder / "labels.csv").open(encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["visible"]))
    chosen = rows[:12] + rows[-12:]
    images = [cv2.cvtColor(cv2.imread(str(folder / row["file"])), cv2.COLOR_BGR2RGB) for row in chosen]
    pixels = np.stack([cv2.resize(image, (64, 128), interpolation=cv2.INTER_AREA) for image in images])
    visible = np.array([float(row["visible"]) for row in chosen])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), visible


def test_hidden_people_take_less_of_the_picture(samples):
    pixels, visible = samples
    found = segmentation.segmented_saliency(Held(pixels), (8, 4), quiet=True)
    assert found.shape == (24, 8, 4) and float(found.min()) >= 0 and float(found.max()) <= 1
    area = found.mean((1, 2)).numpy()
    assert visible[:12].max() < 0.8 < visible[12:].min()
    assert area[12:].mean() > 1.3 * area[:12].mean()
    assert found[12:, :, 1:3].mean() > 2 * found[12:, :, [0, 3]].mean()  # whole people stand in the middle
    turned = segmentation.segmented_saliency(Held(pixels[12:].flip(3)), (8, 4), quiet=True)
    assert (turned.flip(2) - found[12:]).abs().mean() < 0.1


def test_masks_are_kept_and_read_again(market, train, small, tmp_path, monkeypatch):
    small.saliency.source, small.saliency.threshold = "segmentation", 0.0
    cpu = torch.device("cpu")
    first = person_masks.person_masks(small, train, market, tmp_path, cpu, quiet=True)
    shares, _ = person_masks.load_saliency(tmp_path / person_masks.SOURCES["segmentation"], train, (8, 4))
    assert torch.equal(first, shares >= 0.5)
    monkeypatch.setattr(segmentation, "segmenter", lambda: pytest.fail("segmented again"))
    assert torch.equal(first, person_masks.person_masks(small, train, market, tmp_path, cpu, quiet=True))


def test_an_old_opencv_is_named(monkeypatch):
    monkeypatch.delattr(cv2.dnn, "readNetFromTFLite")
    with pytest.raises(MissingLibrary, match="opencv-python"):
        segmentation.segmenter()
