"""Masks and a map for somebody else's network: where they are read, what is taught, and what stays as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from somebodys_network import CHANNELS, DIMENSION, GRID, imported, weights

from dpm_edge.errors import CheckpointError, DataError
from dpm_edge.layouts import read_dataset
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.model.foreign_sight import ForeignSight
from dpm_edge.model.imported.onnx_graph import OnnxGraph
from dpm_edge.model.imported.onnx_map import find_map
from dpm_edge.sight import visibility_of_maps
from dpm_edge.train import foreign_mask
from dpm_edge.train.data import Pictures, to_input
from dpm_edge.train.evaluate import rank_correlation
from dpm_edge.train.frozen_body import run_frozen_body
from dpm_edge.train.mask import Lesson, covered_exactly

LESSON = Lesson(pictures=144, epochs=25, batch=24, lr=1e-2)


def exact_maps(count: int) -> torch.Tensor:
    """What a teacher says: the toy world's people stand in the middle."""
    maps = torch.zeros(count, 2, 16, 8)
    maps[:, 0, 1:15, 2:6] = 1
    return maps


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> ForeignNetwork:
    return imported(tmp_path_factory.mktemp("theirs"))


@pytest.fixture(scope="module")
def taught(net: ForeignNetwork, train: Pictures) -> ForeignNetwork:
    return foreign_mask.teach(net, train, exact_maps(len(train)), LESSON, quiet=True)


def test_the_network_stays_as_it_was_and_gates_and_map_are_learned(net, taught, train) -> None:
    for name, value in net.state_dict().items():
        assert torch.equal(taught.state_dict()[name], value), name
    pixels = to_input(train.pixels[:20], net.spec.preprocessing)
    with torch.inference_mode():
        feature, mask, seen = taught(pixels)
        assert torch.equal(feature, net(pixels)[0])
    assert mask.std(0).mean() > 1e-3 and seen.shape == (20, 2, *GRID)
    assert seen[:, 0, 2:6, 1:3].mean() > 0.5 > 0.15 > seen[:, 0, :, ::3].mean(), "seen in the middle, not at the sides"
    assert taught.spec.masks and taught.spec.visibility == "map" and taught.spec.grid == GRID


def test_no_gate_is_open_or_closed_for_all_pictures(taught, train) -> None:
    """What all masks have in common says nothing of a picture: over the training pictures each gate's logits are near
    0 in the mean, beside how much they differ."""
    with torch.inference_mode():
        logits = torch.logit(taught(to_input(train.pixels, taught.spec.preprocessing))[1], eps=1e-6)
    assert (logits.mean(0).abs() < logits.std(0)).float().mean() > 0.9


@torch.inference_mode()
def test_visibility_follows_the_share_in_sight_under_new_covers(taught, train) -> None:
    made, under = covered_exactly(train.pixels, train.pixels, np.random.default_rng(5))
    true = visibility_of_maps(foreign_mask.shares_under(exact_maps(len(train)), under, GRID).numpy())
    said = visibility_of_maps(taught(to_input(made, taught.spec.preprocessing))[2].numpy())
    assert rank_correlation(said, true) > 0.15  # little was seen of random weights and 144 pictures; 0.3 here


def test_shares_under_boxes_are_counted_by_hand() -> None:
    maps = torch.zeros(1, 2, 4, 2)
    maps[0, 0] = 0.75
    maps[0, 1] = 0.25
    cover = torch.zeros(1, 32, 16, dtype=torch.bool)
    cover[:, :8] = True  # the first row of four
    cover[:, 8:12, :8] = True  # half a patch of the second
    shares = foreign_mask.shares_under(maps, cover, (4, 2))[0]
    np.testing.assert_allclose(shares[0, :3], [[0, 0], [0.375, 0.75], [0.75, 0.75]], atol=1e-6)
    np.testing.assert_allclose(shares.sum(0), np.ones((4, 2)), atol=1e-6)


def test_the_exact_cover_is_what_was_changed() -> None:
    pixels = torch.full((40, 3, 64, 32), 7, dtype=torch.uint8)
    made, under = covered_exactly(pixels, torch.full((2, 3, 64, 32), 200, dtype=torch.uint8), np.random.default_rng(0))
    changed = (made != pixels).any(1)
    assert not (changed & ~under).any() and (under & ~changed).float().mean() < 1e-4
    assert 0.1 < under.float().mean() < 0.5


@pytest.mark.parametrize(
    ("form", "wanted"),
    [("map", (CHANNELS, GRID, False)), ("tokens", (CHANNELS, GRID, True)), ("picture", None)],
)
def test_the_last_feature_map_of_a_graph_is_found(form: str, wanted: tuple | None, tmp_path: Path) -> None:
    net = imported(tmp_path, form)
    assert isinstance(net.body, OnnxGraph)
    found = find_map(net.body, net.spec.preprocessing)
    assert (None if found is None else (found.channels, found.grid, found.tokens)) == wanted


@torch.inference_mode()
def test_tokens_and_a_map_of_them_are_the_same_places(tmp_path: Path) -> None:
    net = foreign_mask.with_sight(imported(tmp_path, "tokens"), gates=True, pool="all")
    pictures = torch.randn(2, 3, 64, 32)
    patches = pictures.unfold(2, 8, 8).unfold(3, 8, 8)  # (B, 3, h, w, 8, 8)
    wanted = torch.tanh(torch.einsum("bihwkl,cikl->bchw", patches, torch.from_numpy(weights()["first"])))
    np.testing.assert_allclose(net.look(pictures)[2], wanted, atol=1e-5)


@torch.inference_mode()
def test_pool_seen_weighs_the_places_by_what_the_map_says(net: ForeignNetwork) -> None:
    """The feature from the map by hand: weights of seen + 0.2 with a mean of 1, their mean over places, the product."""
    torch.manual_seed(0)
    seeing = foreign_mask.with_sight(net, gates=False, pool="seen")
    torch.nn.init.normal_(foreign_mask.sight_of(seeing).visibility.out.weight)  # type: ignore[arg-type]
    pictures = torch.randn(5, 3, 64, 32)
    feature, mask, said = (one.numpy() for one in seeing(pictures))
    grid = seeing.look(pictures)[2].numpy()
    weight = said[:, :1] + 0.2
    weight = weight / weight.mean((2, 3), keepdims=True)
    wanted = (grid * weight).mean((2, 3)) @ weights()["last"]
    np.testing.assert_allclose(feature, wanted / np.linalg.norm(wanted, axis=1, keepdims=True), atol=1e-5)
    assert np.ptp(weight) > 0.1 and (mask == 1).all()


@pytest.mark.parametrize("form", ["tokens", "picture"])
def test_pool_seen_without_a_map_of_convolutions_is_refused(form: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="feature map of convolutions for --pool seen, got 'theirs'"):
        foreign_mask.with_sight(imported(tmp_path, form), gates=True, pool="seen")


@pytest.mark.parametrize(
    ("form", "pool"),
    [("map", "all"), ("map", "seen"), ("picture", "all"), pytest.param("osnet", "seen", marks=pytest.mark.slow)],
)
def test_a_body_that_is_held_still_computes_the_same_in_openvino(form: str, pool: str, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    seeing = foreign_mask.with_sight(imported(tmp_path, form), gates=True, pool=pool)
    pictures = torch.randn(4, 3, 64, 32)
    with torch.inference_mode():
        wanted = [one.clone() for one in seeing(pictures)]
        run_frozen_body(seeing)
        assert seeing.run_body is not None
        for got, want in zip(seeing(pictures), wanted):
            np.testing.assert_allclose(got, want, atol=1e-4)


def test_a_network_is_taught_anew_from_where_it_was_taught_before(net, taught) -> None:
    again = foreign_mask.plain(taught)
    assert not again.spec.masks and again.spec.foreign_grid is None and "sight" not in again.network
    assert checkpoint.fingerprint(again) == checkpoint.fingerprint(net)


def test_one_person_teaches_nothing(net, train) -> None:
    alone = train.take(np.flatnonzero(train.labels() == 0))
    with pytest.raises(DataError, match="expected two people or more"):
        foreign_mask.teach(net, alone, exact_maps(len(alone)), LESSON, quiet=True)


def test_the_teacher_reads_the_same_pictures(market: Path) -> None:
    query = read_dataset(market).query
    names = [path.name for path in query.paths]
    maps = foreign_mask.teacher_maps(query, names, quiet=True)
    assert len(maps) == len(names) and maps.shape[1] == 2 and maps.min() >= 0 and maps.max() <= 1
    with pytest.raises(DataError, match="the same pictures"):
        foreign_mask.teacher_maps(query, names[1:], quiet=True)


@pytest.mark.parametrize("arguments", [{"pool": "some"}, {"pool": "seen", "picture": True}])
def test_a_sight_that_cannot_be_is_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match="pool"):
        ForeignSight(channels=8, rows=4, dimension=DIMENSION, gates=True, **arguments)
