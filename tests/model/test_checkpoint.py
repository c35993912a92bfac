"""Checkpoints: what is saved comes back, and nothing damaged, foreign or pickled is let in."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dpm_edge.errors import CheckpointError
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM
from dpm_edge.spec import ModelSpec


@pytest.fixture
def saved(tiny: ModelSpec, tmp_path: Path) -> Path:
    return checkpoint.save(DPM(tiny, classes=4), tmp_path / "v0.1")


def edit_weights(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_card(path: Path, change) -> None:
    card = json.loads(path.with_suffix(".json").read_text())
    change(card)
    path.with_suffix(".json").write_text(json.dumps(card))


def test_round_trip_is_bit_for_bit(tiny: ModelSpec, tmp_path: Path) -> None:
    net = DPM(tiny.replace(mask_mean=0.37), classes=4)
    path = checkpoint.save(net, tmp_path / "deep" / "v0.1")
    assert path.name == "v0.1.safetensors"
    for name in (path, path.with_suffix(".json"), path.parent / "v0.1", path.parent):
        loaded = checkpoint.load(name)
        assert loaded.spec == net.spec and not loaded.training
        assert all(torch.equal(a, b) for a, b in zip(loaded.state_dict().values(), net.state_dict().values()))


def test_half_a_checkpoint_is_rounded_once(tiny: ModelSpec, tmp_path: Path) -> None:
    net = DPM(tiny)
    net.neck.running_var *= 1e6  # beyond float16: statistics are not rounded
    whole = checkpoint.save(net, tmp_path / "whole")
    half = checkpoint.save(net, tmp_path / "half", half=True)
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    loaded = checkpoint.load(half)
    for name, tensor in checkpoint.load(whole).state_dict().items():
        wanted = tensor.half().to(tensor.dtype) if name in dict(net.named_parameters()) else tensor
        assert torch.equal(loaded.state_dict()[name], wanted), name


def test_fingerprint_names_what_an_engine_computes(tiny: ModelSpec) -> None:
    before = tiny.replace(neck="before")
    net = DPM(before, classes=4)
    first = checkpoint.fingerprint(net)
    net.spec = before.replace(name="renamed", mask_mean=0.9)
    with torch.no_grad():
        net.prototypes += 1
        net.neck.weight += 1
        net.backbone.proj += 1
    assert checkpoint.fingerprint(net) == first, "nothing that an engine computes has changed"
    with torch.no_grad():
        net.mask_generator.bn2.running_var += 1e-3
    assert checkpoint.fingerprint(net) != first
    after = DPM(tiny)
    second = checkpoint.fingerprint(after)
    with torch.no_grad():
        after.neck.weight += 1
    assert checkpoint.fingerprint(after) != second, "retrieval after the neck computes with it"
    other = DPM(tiny)
    other.spec = tiny.replace(quick_gelu=True)
    assert checkpoint.fingerprint(other) != checkpoint.fingerprint(DPM(tiny))


def test_missing_unknown_and_resized_tensors_are_named(saved: Path) -> None:
    def change(tensors: dict) -> None:
        del tensors["backbone.ln_post.bias"]
        tensors["backbone.ln_extra"] = torch.zeros(1)
        tensors["mask_generator.linear.weight"] = torch.zeros(48, 24)

    edit_weights(saved, change)
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(saved)
    for part in ("backbone.ln_post.bias is missing", "backbone.ln_extra is unknown", "expected (48, 48), got (48, 24)"):
        assert part in str(error.value)


def test_checkpoint_of_another_size_names_the_tensor(saved: Path) -> None:
    edit_card(saved, lambda card: card["model"].update(width=96))
    with pytest.raises(CheckpointError, match=r"backbone.class_embedding: expected \(96,\), got \(48,\).*more"):
        checkpoint.load(saved)


def test_nan_is_named(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors["backbone.conv1.weight"].view(-1)[7].fill_(float("nan")))
    with pytest.raises(CheckpointError, match=r"backbone\.conv1\.weight holds NaN"):
        checkpoint.load(saved)


def test_weights_and_json_of_different_networks_are_refused(saved: Path) -> None:
    edit_weights(saved, lambda tensors: tensors["backbone.conv1.weight"].mul_(1.01))
    with pytest.raises(CheckpointError, match="do not belong together"):
        checkpoint.load(saved)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(saved: Path, keep: int) -> None:
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        checkpoint.load(saved)


class Bomb:
    """Unpickling this writes a file: proof that somebody unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self):
        return open, (self.target, "w")


@pytest.mark.parametrize("writer", ["pickle", "torch.save", "torch.save legacy"])
@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_pickle_is_refused_unopened(writer: str, name: str, tmp_path: Path) -> None:
    path, proof = tmp_path / name, tmp_path / "proof"
    if writer == "pickle":
        path.write_bytes(pickle.dumps(Bomb(proof)))
    else:
        torch.save(Bomb(proof), path, _use_new_zipfile_serialization=writer == "torch.save")
    path.with_suffix(".json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a pickle"):
        checkpoint.load(path)
    assert not proof.exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "expected a checkpoint's JSON"),
        ('{"format": 1}', "fields format, model, classes, fingerprint"),
    ],
)
def test_damaged_json(saved: Path, text: str, says: str) -> None:
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(CheckpointError, match=says):
        checkpoint.load(saved)


def test_newer_format_and_unknown_field(saved: Path) -> None:
    edit_card(saved, lambda card: card.update(format=99))
    with pytest.raises(CheckpointError, match="format 99"):
        checkpoint.load(saved)
    edit_card(saved, lambda card: (card.update(format=1), card["model"].update(stirde=16)))
    with pytest.raises(CheckpointError, match=r"'stirde'.*stride"):
        checkpoint.load(saved)


def test_missing_files(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        checkpoint.load(tmp_path / "nothing")
    checkpoint.save(checkpoint.load(saved), tmp_path / "second")
    with pytest.raises(CheckpointError, match=r"holds 2 \.safetensors"):
        checkpoint.load(tmp_path)
    saved.with_suffix(".json").unlink()
    with pytest.raises(CheckpointError, match="says what the network is"):
        checkpoint.load(saved)
