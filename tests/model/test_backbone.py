"""The backbone against open_clip's VisionTransformer on the same random weights, and what open_clip has not."""

from __future__ import annotations

import pytest
import torch

from dpm_edge.errors import SpecError
from dpm_edge.model.backbone import Backbone, QuickGELU

SIZES = {
    "small": {"width": 96, "layers": 4, "heads": 3, "height": 96, "image_width": 64, "joint": 40},
    "ViT-B-16": {"width": 768, "layers": 12, "heads": 12, "height": 256, "image_width": 128, "joint": 512},
}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "quick_gelu"), [("small", False), ("small", True), ("ViT-B-16", True)])
def test_equals_open_clip(size: str, quick_gelu: bool, open_clip_transformer) -> None:
    s = SIZES[size]
    theirs = open_clip_transformer.VisionTransformer(
        image_size=(s["height"], s["image_width"]),
        patch_size=16,
        width=s["width"],
        layers=s["layers"],
        heads=s["heads"],
        mlp_ratio=4.0,
        output_dim=s["joint"],
        act_layer=open_clip_transformer.QuickGELU if quick_gelu else torch.nn.GELU,
    ).eval()
    grid = (s["height"] // 16, s["image_width"] // 16)
    ours = Backbone(
        width=s["width"],
        layers=s["layers"],
        heads=s["heads"],
        patch=16,
        stride=16,
        grid=grid,
        joint_dim=s["joint"],
        quick_gelu=quick_gelu,
    ).eval()
    state = {name: torch.randn_like(v) * 0.05 for name, v in theirs.state_dict().items()}
    theirs.load_state_dict(state)
    ours.load_state_dict(state)

    seen: list[torch.Tensor] = []
    for block in theirs.transformer.resblocks:
        block.register_forward_hook(lambda module, args, output: seen.append(output))
    images = torch.randn(2, 3, s["height"], s["image_width"])
    with torch.no_grad():
        expected = theirs(images)
        got = ours(images, blocks=range(1, s["layers"] + 1))
    assert len(got.tokens) == len(seen) == s["layers"]
    for number, (a, b) in enumerate(zip(got.tokens, seen), start=1):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4, msg=lambda m, n=number: f"block {n}: {m}")
    torch.testing.assert_close(got.joint, expected, rtol=1e-4, atol=1e-4)


def small(**changes) -> Backbone:
    arguments = {"width": 32, "layers": 2, "heads": 2, "patch": 8, "stride": 8, "grid": (4, 3), "joint_dim": 16}
    return Backbone(**(arguments | changes)).eval()


def test_cls_attention_is_what_the_last_softmax_reads() -> None:
    """softmax over the cls key's logit and ours must give torch's own attention weights."""
    net = small()
    images = torch.randn(3, 3, 32, 24)
    last = net.transformer.resblocks[-1]
    inputs: list[torch.Tensor] = []
    last.ln_1.register_forward_hook(lambda module, args, output: inputs.append(output))
    logits = net(images, with_cls_attention=True).cls_attention
    oracle = torch.nn.MultiheadAttention(32, 2, batch_first=True)
    oracle.load_state_dict(last.attn.state_dict())
    _, weights = oracle(inputs[0], inputs[0], inputs[0], need_weights=True, average_attn_weights=False)
    patches = weights[:, :, 0, 1:]
    assert logits.shape == (3, 2, 12)
    torch.testing.assert_close(logits.softmax(-1), patches / patches.sum(-1, keepdim=True))


def test_overlapping_patches_are_the_windows_at_that_stride() -> None:
    net = small(stride=5, grid=((32 - 8) // 5 + 1, (24 - 8) // 5 + 1))
    image = torch.randn(1, 3, 32, 24)
    embedded = net.conv1(image)
    by_hand = torch.einsum("oikl,ikl->o", net.conv1.weight, image[0, :, 5:13, 10:18])
    assert embedded.shape[2:] == (5, 4)
    torch.testing.assert_close(embedded[0, :, 1, 2], by_hand)
    assert net(image).cls.shape == (1, 32)


def test_camera_embedding_is_added_to_every_token() -> None:
    net = small(cameras=3, camera_scale=2.0)
    net.ln_pre = torch.nn.Identity()
    images, cameras = torch.randn(2, 3, 32, 24), torch.tensor([2, 0])
    shift = net.embed(images, cameras)[0] - net.embed(images)[0]
    wanted = 2.0 * net.camera_embedding[cameras]
    torch.testing.assert_close(shift, wanted.unsqueeze(1).expand_as(shift), rtol=0, atol=1e-5)


def test_camera_indices_without_a_camera_embedding_are_refused() -> None:
    with pytest.raises(SpecError, match="cameras is 0"):
        small()(torch.randn(1, 3, 32, 24), cameras=torch.tensor([0]))


def test_patch_scale_zero_hides_the_patch() -> None:
    net, images, scale = small(), torch.randn(1, 3, 32, 24), torch.ones(1, 12)
    scale[0, 4] = 0
    hidden = images.clone()
    hidden[:, :, 8:16, 8:16] = 0  # patch 4 of a grid 3 wide is row 1, column 1; conv1 has no bias
    torch.testing.assert_close(net(images, patch_scale=scale).cls, net(hidden).cls)


def test_stochastic_depth_keeps_the_mean_and_only_acts_in_training() -> None:
    net = Backbone(width=8, layers=3, heads=2, patch=8, stride=8, grid=(4, 3), joint_dim=0, drop_path_rate=0.5)
    first, second, third = net.kept_branches(20000)
    assert first is None and second.shape == third.shape == (2, 20000, 1, 1)
    for kept, rate in ((second, 0.25), (third, 0.5)):
        assert sorted(kept.unique().tolist()) == [0.0, pytest.approx(1 / (1 - rate))]
        assert kept.mean((1, 2, 3)).tolist() == pytest.approx([1.0, 1.0], abs=0.04)
    assert not torch.equal(third[0], third[1])
    assert net.eval().kept_branches(4) == [None] * 3 and "drop_rates" not in net.state_dict()


def test_a_skipped_branch_adds_nothing_and_a_kept_one_is_scaled_up() -> None:
    block = small().transformer.resblocks[0]
    x = torch.randn(3, 5, block.ln_1.normalized_shape[0])
    attended = block.attn(block.ln_1(x))[0]
    factors = torch.tensor([[0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]).view(2, 3, 1, 1)
    y = block(x, kept=factors)[0]
    torch.testing.assert_close(y[0], x[0])
    torch.testing.assert_close(y[1], (x + 2 * attended)[1])
    torch.testing.assert_close(y[2], (x + 2 * block.mlp(block.ln_2(x)))[2])


def test_quick_gelu() -> None:
    x = torch.tensor([-1.0, 0.0, 2.0])
    torch.testing.assert_close(QuickGELU()(x), torch.tensor([-0.15420423, 0.0, 1.93565])[:3], rtol=1e-4, atol=1e-4)
