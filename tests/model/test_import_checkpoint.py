"""Other projects' checkpoints become ours: the same features as the network they came from, or one line of refusal."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import foreign_checkpoints as theirs
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import Tensor, nn

from dpm_edge.cli.commands import main
from dpm_edge.errors import CheckpointError
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.model.imported.osnet import OSNet
from dpm_edge.model.imported.read_checkpoint import read_checkpoint
from dpm_edge.model.network import DPM

IMAGES = torch.randn(2, 3, 256, 128, generator=torch.Generator().manual_seed(7))


def imported(family: str, state: dict[str, Tensor], tmp_path: Path, **options: object) -> DPM | ForeignNetwork:
    """What the command makes of a state dictionary, through a file and back."""
    torch.save(state, tmp_path / "theirs.pth")
    read = read_checkpoint(family, tmp_path / "theirs.pth", **options)  # type: ignore[arg-type]
    return checkpoint.load_any(checkpoint.save(read.net, tmp_path / "ours"))


@torch.no_grad()
def same_feature(net: DPM | ForeignNetwork, wanted: Tensor, images: Tensor = IMAGES) -> None:
    got = net(images)[0]
    assert torch.allclose(got, F.normalize(wanted, dim=1), atol=2e-6), (got - F.normalize(wanted, dim=1)).abs().max()


def osnet_state(size: str = "x0_25", instance_norm: bool = False) -> dict[str, Tensor]:
    """torchreid's OSNet, classifier and all; its names are checked against a published file (docs/integrations.md)."""
    net = theirs.randomise(OSNet(size=size, instance_norm=instance_norm, dimension=512))
    return {**net.state_dict(), "classifier.weight": torch.randn(9, 512), "classifier.bias": torch.randn(9)}


@pytest.mark.parametrize(("size", "instance_norm"), [("x0_25", False), ("x1_0", True)])
def test_an_osnet_keeps_its_size_dimension_and_preprocessing(size: str, instance_norm: bool, tmp_path: Path) -> None:
    net = imported("torchreid", osnet_state(size, instance_norm), tmp_path)
    assert net.spec.name == ("osnet_ibn_x1_0" if instance_norm else "osnet_x0_25")
    assert net.spec.dimension == 512 and net.spec.preprocessing.mean == (0.485, 0.456, 0.406)


def test_an_osnet_block_adds_four_gated_streams_of_growing_depth() -> None:
    """Against the sums of arXiv 1905.00953, equation 3, by hand: x̃ = Σ_t G(x_t) ⊙ x_t, the gate shared."""
    block = theirs.randomise(OSNet(size="x0_25", dimension=8)).conv2[1]
    x = torch.rand(2, 64, 6, 5)
    with torch.no_grad():
        narrow = block.conv1(x)
        total = torch.zeros_like(narrow)
        for branch in (nn.Sequential(block.conv2a), block.conv2b, block.conv2c, block.conv2d):
            stream = narrow
            for light in branch:
                assert light.conv2.groups == 16 and light.conv2.kernel_size == (3, 3)
                stream = F.relu(light.bn(light.conv2(light.conv1(stream))))
            means = stream.mean(3).mean(2)
            hidden = F.relu(F.linear(means, block.gate.fc1.weight.flatten(1), block.gate.fc1.bias))
            gate = torch.sigmoid(F.linear(hidden, block.gate.fc2.weight.flatten(1), block.gate.fc2.bias))
            total += gate[:, :, None, None] * stream
        wanted = F.relu(block.conv3.bn(block.conv3.conv(total)) + x)
        assert torch.allclose(block(x), wanted, atol=1e-5)
    assert [len(branch) for branch in (block.conv2b, block.conv2c, block.conv2d)] == [2, 3, 4]


@pytest.mark.parametrize(("ibn", "sbs"), [(False, False), (True, True)])
def test_fast_reid_gives_the_feature_of_torchvisions_network(ibn: bool, sbs: bool, tmp_path: Path) -> None:
    state, reference = theirs.fast_reid(ibn=ibn, sbs=sbs)
    net = imported("fast-reid", state, tmp_path)
    assert net.spec.name == ("sbs_r50_ibn" if sbs else "bot_r50")
    images = torch.randn(1, 3, 384 if sbs else 256, 128)
    assert net.spec.preprocessing.height == images.shape[2] and net.spec.preprocessing.interpolation == "bicubic"
    with torch.no_grad():
        same_feature(net, reference(images), images)


def test_fast_reids_pixel_mean_of_older_files_becomes_the_preprocessing(tmp_path: Path) -> None:
    state, _ = theirs.fast_reid(ibn=False, sbs=False)
    state |= {
        "pixel_mean": torch.tensor([51.0, 102.0, 153.0]).view(1, 3, 1, 1),
        "pixel_std": torch.full((1, 3, 1, 1), 51.0),
    }
    pre = imported("fast-reid", state, tmp_path).spec.preprocessing
    assert pre.mean == pytest.approx((0.2, 0.4, 0.6)) and pre.std == pytest.approx((0.2,) * 3)


def test_clip_reid_becomes_ours_and_gives_open_clips_features(tmp_path: Path) -> None:
    state, reference = theirs.clip_reid()
    net = imported("clip-reid", state, tmp_path)
    assert isinstance(net, DPM) and net.spec.quick_gelu and net.spec.stride == 16
    with torch.no_grad():
        joint, _ = reference(IMAGES)
        cls = net.backbone(IMAGES).cls
        assert torch.allclose(net.backbone(IMAGES).joint, joint, atol=1e-5)
        same_feature(net, torch.cat([cls, joint], 1))
    assert net.prototypes is not None and len(net.prototypes) == theirs.CLASSES


def test_a_network_without_masks_of_its_own_starts_with_the_plain_metric(tmp_path: Path) -> None:
    net = imported("clip-reid", theirs.clip_reid()[0], tmp_path)
    with torch.no_grad():
        mask = net(IMAGES)[1]
    assert torch.equal(mask, torch.full_like(mask, 0.5)) and net.spec.mask_mean == 0.5


@pytest.mark.parametrize("stride", [16, 12])
def test_transreid_gives_timms_feature_with_the_mean_of_its_cameras(stride: int, tmp_path: Path) -> None:
    reference, cameras = theirs.imagenet_vit(stride), torch.randn(theirs.CAMERAS, 1, theirs.WIDTH)
    net = imported("transreid", theirs.transreid_state(reference, cameras), tmp_path)
    assert isinstance(net, DPM) and net.spec.stride == stride and net.spec.encoder == "imagenet"
    with torch.no_grad():
        reference.pos_embed += 3.0 * cameras.mean(0)
        same_feature(net, reference.forward_features(IMAGES)[:, 0])


def test_transreids_jigsaw_parts_are_kept(tmp_path: Path) -> None:
    reference = theirs.imagenet_vit(12)
    parts, state = theirs.jigsaw(reference), theirs.transreid_state(reference)
    state |= {f"{name}.{key}": value for name, net in parts.items() for key, value in net.state_dict().items()}
    net = imported("transreid", state, tmp_path)
    assert isinstance(net, ForeignNetwork) and net.spec.dimension == 5 * theirs.WIDTH
    with torch.no_grad():
        same_feature(net, theirs.jigsaw_feature(reference, parts, IMAGES))


def test_dpm_keeps_its_masks(tmp_path: Path) -> None:
    reference, (head, linear) = theirs.imagenet_vit(11), theirs.mask_head()
    state = theirs.transreid_state(reference)
    for place, block in enumerate(head):
        state |= {f"base.ConvLayer.{place}.{key}": value for key, value in block.state_dict().items()}
    state |= {f"base.attfc.{key}": value for key, value in linear.state_dict().items()}
    net = imported("dpm", state, tmp_path)
    with torch.no_grad():
        tokens = reference.get_intermediate_layers(IMAGES, n=[1, 3, 9, 11], norm=False, return_prefix_tokens=False)
        grid = torch.cat([t.transpose(1, 2).unflatten(2, (22, 11)) for t in tokens], 1)
        wanted = torch.sigmoid(linear(head(grid).flatten(1)))
        got = net(IMAGES)[1]
        same_feature(net, reference.forward_features(IMAGES)[:, 0])
    assert wanted.std() > 0.05 and torch.allclose(got, wanted, atol=1e-4)


def test_a_foreign_checkpoint_says_so_where_masks_are_needed(tmp_path: Path) -> None:
    imported("torchreid", osnet_state(), tmp_path)
    with pytest.raises(CheckpointError, match=r"expected a network of ours, got .* an imported osnet"):
        checkpoint.load(tmp_path / "ours")


def test_another_network_in_the_json_is_noticed(tmp_path: Path) -> None:
    imported("torchreid", osnet_state(), tmp_path)
    card = tmp_path / "ours.json"
    text = json.loads(card.read_text())
    for network, message in (
        ({"kind": "osnett"}, "known network"),
        ({"kind": "osnet", "size": "x9"}, "arguments of osnet"),
    ):
        card.write_text(json.dumps({**text, "network": network}))
        with pytest.raises(CheckpointError, match=message):
            checkpoint.load_any(tmp_path / "ours")


class Bomb:
    """Unpickling it would run a command."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.proof}",)


def _nan(state: dict) -> dict:
    state["conv3.0.conv1.conv.weight"].view(-1)[3] = float("nan")
    return state


BAD = {
    "NaN weights": (_nan, "expected finite weights in .*got NaN or infinity in conv3.0.conv1.conv.weight"),
    "another size": (lambda s: {**s, "fc.0.weight": torch.zeros(512, 99)}, r"fc.0.weight: expected \(512, 128\), got"),
    "a tensor too few": (lambda s: {k: v for k, v in s.items() if k != "conv5.bn.bias"}, "conv5.bn.bias is missing"),
    "a tensor too many": (lambda s: {**s, "head.weight": torch.zeros(3)}, "head.weight is unknown"),
    "another network": (lambda s: {"conv1.weight": torch.zeros(64, 3, 7, 7)}, "expected an OSNet with conv1.conv"),
    "no tensors": (lambda s: {"epoch": 3}, "expected named tensors in .* got none"),
    "no dictionary": (lambda s: [1, 2], "expected a dictionary of named tensors in .* got a list"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_checkpoint_is_one_line_and_nothing_is_written(case: str, tmp_path: Path) -> None:
    change, message = BAD[case]
    torch.save(change(osnet_state()), tmp_path / "theirs.pt")
    refused(tmp_path, message)


def test_a_truncated_file_is_one_line_and_nothing_is_written(tmp_path: Path) -> None:
    torch.save(osnet_state(), tmp_path / "theirs.pt")
    whole = (tmp_path / "theirs.pt").read_bytes()
    (tmp_path / "theirs.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, "expected a whole file of weights, got .* damaged, cut short")


def test_code_in_a_checkpoint_is_named_and_never_runs(tmp_path: Path) -> None:
    torch.save({**osnet_state(), "bomb": Bomb(tmp_path / "proof")}, tmp_path / "theirs.pt")
    refused(tmp_path, "got a pickle with (os|posix).system, which may run code; it was not opened")
    assert not (tmp_path / "proof").exists()


def refused(tmp_path: Path, message: str) -> None:
    """The command ends with one line that matches, and leaves nothing behind."""
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["import", "torchreid", str(tmp_path / "theirs.pt"), "-o", str(out / "x")])
    line = result.stderr.strip()
    assert result.exit_code == 1 and "\n" not in line, line
    assert re.search(message, line), line
    assert not out.exists()


def test_numbers_beside_the_weights_do_not_hinder(tmp_path: Path) -> None:
    """torchreid keeps Rank-1, as NumPy gives it, beside the state dictionary; wrappers put module. before each name."""
    state = {f"module.{name}": value for name, value in osnet_state().items()}
    held = {"state_dict": state, "epoch": 60, "rank1": np.float64(0.7), "loss": np.float32(0.1)}
    net = imported("torchreid", held, tmp_path)  # type: ignore[arg-type]
    assert net.spec.name == "osnet_x0_25"


def test_safetensors_are_read_alike(tmp_path: Path) -> None:
    state = {name: value.contiguous() for name, value in osnet_state().items()}
    save_file(state, tmp_path / "theirs.safetensors")
    torch.save(state, tmp_path / "theirs.pth")
    first, second = (read_checkpoint("torchreid", tmp_path / name).net for name in ("theirs.safetensors", "theirs.pth"))
    with torch.no_grad():
        assert torch.equal(first(IMAGES)[0], second(IMAGES)[0])


def test_solider_gives_the_feature_of_torchvisions_swin(tmp_path: Path) -> None:
    """256×256 pixels: every stage's map is filled up to whole windows."""
    state, reference = theirs.solider()
    net = imported("solider", state, tmp_path, size=(256, 256))
    assert isinstance(net, ForeignNetwork) and net.network["depths"] == [2, 2, 2, 2]
    images = torch.randn(1, 3, 256, 256)
    with torch.no_grad():
        same_feature(net, reference(images), images)


def test_an_input_that_the_network_cannot_halve_is_refused(tmp_path: Path) -> None:
    torch.save(theirs.solider()[0], tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match="input 250x128, which does not divide by 32"):
        read_checkpoint("solider", tmp_path / "theirs.pth", size=(250, 128))


def test_a_position_table_of_another_input_asks_for_the_size(tmp_path: Path) -> None:
    state = theirs.transreid_state(theirs.imagenet_vit(height=288))
    torch.save(state, tmp_path / "theirs.pth")
    with pytest.raises(CheckpointError, match=r"got one of 144 places .* Say the input's size with --input"):
        read_checkpoint("transreid", tmp_path / "theirs.pth")
    assert read_checkpoint("transreid", tmp_path / "theirs.pth", size=(288, 128)).net.spec.grid == (18, 8)
