"""CLIP weights from a file of open_clip's or OpenAI's layout into the backbone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dpm_edge.errors import CheckpointError
from dpm_edge.model.backbone import Backbone
from dpm_edge.model.clip_weights import load_clip, resize_positions


def backbone(**changes) -> Backbone:
    arguments = {"width": 32, "layers": 2, "heads": 2, "patch": 16, "stride": 16, "grid": (8, 4), "joint_dim": 24}
    return Backbone(**(arguments | changes))


@pytest.fixture
def clip(open_clip_transformer) -> dict[str, torch.Tensor]:
    """A small CLIP's state dict as open_clip writes it: `visual.` and the text tower's beside it; a 7×7 grid."""
    visual = open_clip_transformer.VisionTransformer(
        image_size=112, patch_size=16, width=32, layers=2, heads=2, mlp_ratio=4.0, output_dim=24
    )
    state = {f"visual.{name}": torch.randn_like(v) for name, v in visual.state_dict().items()}
    return state | {"token_embedding.weight": torch.randn(9, 24), "logit_scale": torch.tensor(4.6)}


@pytest.mark.parametrize("layout", ["safetensors", "state dict", "training checkpoint", "half precision"])
def test_every_layout_loads(layout: str, clip: dict, tmp_path: Path) -> None:
    path = tmp_path / ("clip.safetensors" if layout == "safetensors" else "clip.pt")
    if layout == "safetensors":
        save_file(clip, path)
    elif layout == "state dict":
        torch.save(clip, path)
    elif layout == "half precision":
        torch.save({k: v.half() for k, v in clip.items()}, path)
    else:
        torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in clip.items()}}, path)
    net = backbone(cameras=2)
    cameras = net.camera_embedding.detach().clone()
    load_clip(net, path)
    tolerance = {"rtol": 1e-3, "atol": 1e-3} if layout == "half precision" else {"rtol": 0, "atol": 0}
    for name, tensor in net.state_dict().items():
        assert tensor.dtype == torch.float32
        if name not in ("positional_embedding", "camera_embedding"):
            torch.testing.assert_close(tensor, clip[f"visual.{name}"], **tolerance)
    assert net.positional_embedding.shape == (33, 32)
    torch.testing.assert_close(net.positional_embedding[0], clip["visual.positional_embedding"][0], **tolerance)
    assert torch.equal(net.camera_embedding, cameras)


def bilinear(square: np.ndarray, height: int, width: int) -> np.ndarray:
    """Half-pixel-centred bilinear resize, written from its definition."""
    out = np.empty((height, width))
    side = len(square)
    for y in range(height):
        for x in range(width):
            sy = min(max((y + 0.5) * side / height - 0.5, 0), side - 1)
            sx = min(max((x + 0.5) * side / width - 0.5, 0), side - 1)
            y0, x0 = int(sy), int(sx)
            y1, x1 = min(y0 + 1, side - 1), min(x0 + 1, side - 1)
            top = square[y0, x0] * (1 - sx + x0) + square[y0, x1] * (sx - x0)
            low = square[y1, x0] * (1 - sx + x0) + square[y1, x1] * (sx - x0)
            out[y, x] = top * (1 - sy + y0) + low * (sy - y0)
    return out


def test_resize_positions_is_bilinear_and_keeps_the_cls_row() -> None:
    table = torch.randn(1 + 49, 3)
    got = resize_positions(table, (10, 4))
    assert got.shape == (41, 3) and torch.equal(got[0], table[0])
    for channel in range(3):
        expected = bilinear(table[1:, channel].double().numpy().reshape(7, 7), 10, 4)
        np.testing.assert_allclose(got[1:, channel].numpy().reshape(10, 4), expected, atol=1e-5)
    assert torch.equal(resize_positions(table, (7, 7)), table)
    with pytest.raises(CheckpointError, match="square"):
        resize_positions(torch.randn(12, 3), (4, 4))


def test_torchscript_archive_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "ViT-B-16.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(path))
    with pytest.raises(CheckpointError, match=r"TorchScript archive.*save_file"):
        load_clip(backbone(), path)


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


def test_code_in_a_pickle_never_runs(tmp_path: Path) -> None:
    torch.save({"visual.proj": Bomb(tmp_path / "proof")}, tmp_path / "clip.pt")
    with pytest.raises(CheckpointError, match="may run code"):
        load_clip(backbone(), tmp_path / "clip.pt")
    assert not (tmp_path / "proof").exists()


def test_files_that_do_not_fit(clip: dict, tmp_path: Path) -> None:
    path = tmp_path / "clip.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_clip(backbone(), path)
    save_file({k: v for k, v in clip.items() if not k.startswith("visual.")}, path)
    with pytest.raises(CheckpointError, match=r"no tensor named visual\.…"):
        load_clip(backbone(), path)
    save_file(clip, path)
    with pytest.raises(CheckpointError, match=r"proj: expected \(32, 512\), got \(32, 24\)"):
        load_clip(backbone(joint_dim=512), path)
    del clip["visual.transformer.resblocks.1.ln_2.weight"]
    save_file(clip, path)
    with pytest.raises(CheckpointError, match=r"transformer\.resblocks\.1\.ln_2\.weight is missing"):
        load_clip(backbone(), path)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="cut short"):
        load_clip(backbone(), path)
