"""The whole network: what an engine gets, what training gets, and the two sides of alternating optimisation."""

from __future__ import annotations

import pytest
import torch

from dpm_edge.model.network import DPM
from dpm_edge.spec import PRESETS, ModelSpec


def images(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 64, 64)


@pytest.mark.parametrize("hmg", ["paper", "lite"])
@pytest.mark.parametrize("stride", [16, 12, 11])
def test_shapes_at_every_stride(tiny: ModelSpec, hmg: str, stride: int) -> None:
    net = DPM(tiny.replace(hmg=hmg, stride=stride), classes=7)
    out = net.forward_train(images())
    patches = net.spec.grid[0] * net.spec.grid[1]
    assert out.f.shape == out.neck.shape == out.mask.shape == (2, 48)
    assert out.joint.shape == (2, 32)
    assert out.cls_attention.shape == (2, 3, patches)
    assert [t.shape for t in out.tokens] == [(2, 1 + patches, 48)] * 2
    assert out.logits.shape == (2, 7)
    feature, mask = net.eval()(images())
    assert feature.shape == mask.shape == (2, 48)


def test_forward_and_forward_train_agree(tiny: ModelSpec) -> None:
    net, x = DPM(tiny, classes=3).eval(), images()
    feature, mask = net(x)
    out = net.forward_train(x)
    torch.testing.assert_close(feature, out.f / out.f.norm(dim=1, keepdim=True))
    torch.testing.assert_close(mask, out.mask)
    torch.testing.assert_close(out.logits, out.neck @ net.prototypes.T)


def test_concat_appends_the_joint_vector_and_keeps_a_constant_mask_plain(tiny: ModelSpec) -> None:
    net, x = DPM(tiny.replace(feature="concat")).eval(), images()
    feature, mask = net(x)
    out = net.forward_train(x)
    both = torch.cat([out.f, out.joint], 1)
    assert feature.shape == mask.shape == (2, 80) == (2, net.spec.dimension)
    torch.testing.assert_close(feature, both / both.norm(dim=1, keepdim=True))
    torch.testing.assert_close(mask[:, 48:], out.mask.mean(1, keepdim=True).expand(-1, 32))


def test_the_two_sides_of_the_optimisation_share_nothing_and_miss_nothing(tiny: ModelSpec) -> None:
    net = DPM(tiny, classes=5)
    mask_side = {id(p) for p in net.mask_generator_parameters()}
    other_side = {id(p) for p in net.other_parameters()}
    assert not mask_side & other_side
    assert mask_side | other_side == {id(p) for p in net.parameters() if p.requires_grad}
    assert mask_side == {id(p) for p in net.mask_generator.parameters()}
    assert not net.neck.bias.requires_grad and (net.neck.bias == 0).all()


def test_neck_standardises_in_training(tiny: ModelSpec) -> None:
    out = DPM(tiny).train().forward_train(images(16))
    torch.testing.assert_close(out.neck.mean(0), torch.zeros(48), atol=1e-5, rtol=0)
    f = out.f.double()
    expected = (f - f.mean(0)) / (f.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(out.neck.double(), expected, atol=1e-4, rtol=1e-4)


def test_bf16_autocast_stays_close_and_outputs_float32(tiny: ModelSpec) -> None:
    net, x = DPM(tiny, classes=3).eval(), images()
    with torch.no_grad():
        feature, mask = net(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low_feature, low_mask = net(x)
            out = net.forward_train(x)
    assert low_feature.dtype == low_mask.dtype == out.neck.dtype == out.logits.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(feature, low_feature).min() > 0.999
    torch.testing.assert_close(mask, low_mask, atol=0.01, rtol=0)


@pytest.mark.parametrize("preset", ["dpm-s", "dpm-t"])
def test_presets_build_and_run(preset: str) -> None:
    spec = PRESETS[preset]
    feature, mask = DPM(spec).eval()(torch.randn(1, 3, spec.preprocessing.height, spec.preprocessing.width))
    assert feature.shape == mask.shape == (1, spec.dimension)
    assert feature.norm().item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("neck", ["before", "after"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("feature", ["cls", "concat"])
def test_a_network_in_half_precision_gives_float32s_features(
    tiny: ModelSpec, neck: str, dtype: torch.dtype, feature: str
) -> None:
    torch.manual_seed(0)
    net = DPM(tiny.replace(neck=neck, feature=feature)).eval()
    with torch.no_grad():
        net.mask_generator.linear.weight.normal_(std=0.1)
        x = images()
        wanted = net(x)
        with torch.autocast("cpu", dtype):
            mixed = net(x)
        half = net.to(dtype)(x.to(dtype))
    for found in (mixed, half):
        for came, expected in zip(found, wanted):
            assert came.dtype == torch.float32
            assert (came - expected).norm() / expected.norm() < (4e-2 if dtype == torch.bfloat16 else 1e-2)
