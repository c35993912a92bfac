"""The map of what is seen: the share in sight by hand-worked cases, and what it does to a network's tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch

from dpm_edge.build import portable
from dpm_edge.build.export import export
from dpm_edge.errors import SpecError
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.model.visibility import StripePooling, share_in_sight
from dpm_edge.spec import PRESETS, ModelSpec


@pytest.fixture
def seeing(tiny: ModelSpec) -> DPM:
    net = DPM(replace(tiny, visibility="map")).eval()
    assert net.backbone.visibility is not None
    torch.nn.init.normal_(net.backbone.visibility.out.weight, std=0.5)
    return net


def test_share_in_sight_is_seen_over_seen_and_hidden() -> None:
    seen = torch.tensor([[[1.0, 0.5], [0.0, 0.0]], [[1.0, 1.0], [1.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
    hidden = torch.tensor([[[0.0, 0.5], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    torch.testing.assert_close(share_in_sight(seen, hidden), torch.tensor([0.5, 1.0, 0.0]))


def test_network_gives_the_map_in_0_to_1(seeing: DPM) -> None:
    feature, mask, seen = seeing(torch.randn(2, 3, 64, 64))
    assert feature.shape == mask.shape == (2, 48)
    assert seen.shape == (2, 2, 4, 4)
    assert ((seen > 0) & (seen < 1)).all()


def test_feature_does_not_depend_on_a_patch_that_shows_nobody(seeing: DPM) -> None:
    images = torch.randn(1, 3, 64, 64)
    other = images.clone()
    other[:, :, :16, :16] = torch.randn(3, 16, 16)
    backbone = seeing.backbone
    closed = torch.full((1, 2, 4, 4), 30.0)
    closed[:, 0, 0, 0] = -30.0
    assert backbone.visibility is not None
    backbone.visibility.forward = lambda grid: closed
    with torch.no_grad():
        torch.testing.assert_close(seeing(other)[0], seeing(images)[0])
        closed[:, 0, 0, 0] = 30.0
        assert (seeing(other)[0] - seeing(images)[0]).abs().max() > 1e-3


def test_identification_does_not_bend_the_map(seeing: DPM) -> None:
    seeing.train().forward_train(torch.randn(2, 3, 64, 64)).f.sum().backward()
    assert seeing.backbone.visibility is not None
    assert all(p.grad is None for p in seeing.backbone.visibility.parameters())


@pytest.mark.slow
def test_exported_graph_gives_the_same_map(seeing: DPM, tmp_path) -> None:
    export(seeing, tmp_path / "model.onnx")
    read = portable.read(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(read.model.SerializeToString(), providers=["CPUExecutionProvider"])
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = seeing(images)
    for got, want in zip(session.run(["feature", "mask", "visibility"], {"images": images.numpy()}), expected):
        np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


@pytest.mark.slow
def test_graph_without_the_map_gives_the_same_features(seeing: DPM, tmp_path) -> None:
    export(seeing, tmp_path / "model.onnx")
    whole = portable.read(tmp_path / "model.onnx").model
    left = portable.without_map(whole)
    assert [o.name for o in left.graph.output] == ["feature", "mask"]
    images = np.random.default_rng(0).normal(size=(2, 3, 64, 64)).astype(np.float32)
    feature = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(
            ["feature"], {"images": images}
        )[0]
        for m in (whole, left)
    ]
    np.testing.assert_array_equal(*feature)


def test_edge_preset_survives_a_checkpoint(tmp_path) -> None:
    net = DPM(PRESETS["dpm-n"]).eval()
    checkpoint.save(net, tmp_path / "n")
    again = checkpoint.load(tmp_path / "n")
    images = torch.randn(1, 3, 192, 96)
    with torch.no_grad():
        for got, want in zip(again(images), net(images)):
            torch.testing.assert_close(got, want)


def test_spec_without_the_new_fields_is_written_as_before(tiny: ModelSpec) -> None:
    assert not {"stem", "instance_norm", "visibility"} & set(tiny.to_dict())
    assert ModelSpec.from_dict(tiny.to_dict()) == tiny


def test_spec_with_them_survives_json() -> None:
    spec = PRESETS["dpm-n"]
    assert {"stem", "visibility"} <= set(spec.to_dict())
    assert ModelSpec.from_dict(spec.to_dict()) == spec


def test_spec_refuses_an_unknown_visibility(tiny: ModelSpec) -> None:
    with pytest.raises(SpecError, match=r"expected visibility mask or map, got 'maps'.*map"):
        replace(tiny, visibility="maps")


def test_spec_refuses_a_stem_of_another_stride(tiny: ModelSpec) -> None:
    with pytest.raises(SpecError, match="expected patch and stride both 16 or both 8 for stem 'lite0', got 16 and 12"):
        replace(tiny, stem="lite0", stride=12)


def test_shipped_checkpoint_keeps_its_fingerprint() -> None:
    net = checkpoint.load("dpm-t")  # load compares the fingerprint of the file with that of the network
    assert net.backbone.visibility is None
    assert len(net(torch.zeros(1, 3, 256, 128))) == 2


def test_stripes_are_weighted_means_of_their_rows() -> None:
    pooling = StripePooling(12, 4)
    torch.nn.init.normal_(pooling.centre)
    grid, seen = torch.randn(2, 12, 8, 4), torch.rand(2, 8, 4)
    expected = torch.zeros(2, 12)
    for image in range(2):
        for k in range(4):
            shares, rows = seen[image, 2 * k : 2 * k + 2], grid[image, :, 2 * k : 2 * k + 2]
            apart = rows - pooling.centre[k].view(-1, 1, 1)
            mean = (apart * shares).sum((1, 2)) / (shares.sum() + StripePooling.weight)
            expected[image, 3 * k : 3 * k + 3] = mean @ pooling.project[k]
    torch.testing.assert_close(pooling(grid, seen), expected, atol=1e-5, rtol=1e-5)


def test_a_stripe_that_shows_nobody_adds_nothing() -> None:
    seen = torch.ones(1, 8, 4)
    seen[:, 2:4] = 0
    pooled = StripePooling(12, 4)(torch.randn(1, 12, 8, 4), seen)[0]
    assert (pooled[3:6] == 0).all() and (pooled[:3] != 0).all()


@pytest.mark.slow
def test_a_striped_network_exports_and_survives_a_checkpoint(tiny: ModelSpec, tmp_path) -> None:
    net = DPM(replace(tiny, visibility="map", stripes=4)).eval()
    checkpoint.save(net, tmp_path / "net")
    export(checkpoint.load(tmp_path / "net"), tmp_path / "model.onnx")
    graph = portable.read(tmp_path / "model.onnx").model.SerializeToString()
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        wanted = net(images)[0]
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(["feature"], {"images": images.numpy()})[0], wanted.numpy(), atol=1e-5)


def test_spec_refuses_stripes_that_do_not_divide_the_grid(tiny: ModelSpec) -> None:
    with pytest.raises(SpecError, match="expected visibility 'map' and stripes that divide the grid's 4 rows"):
        replace(tiny, visibility="map", stripes=3)
