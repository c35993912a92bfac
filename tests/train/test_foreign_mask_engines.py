"""Checkpoints and engines of somebody else's network with masks and a map: they give what torch gives, and masked
searches use it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tiny_engine
import torch
from click.testing import CliRunner
from somebodys_network import GRID, imported

from dpm_edge import Engine, Gallery
from dpm_edge.build import build, portable
from dpm_edge.build.export import export
from dpm_edge.cli.commands import main
from dpm_edge.errors import CheckpointError, SpecError
from dpm_edge.images import preprocess
from dpm_edge.model import checkpoint
from dpm_edge.model.foreign_network import ForeignNetwork
from dpm_edge.sight import visibility_of_maps
from dpm_edge.spec import ModelSpec
from dpm_edge.train import foreign_mask

PEOPLE = tiny_engine.people(5)
FORMS = [("map", "all"), ("map", "seen"), ("tokens", "all"), ("picture", "all")]
FORMS += [pytest.param("osnet", "seen", marks=pytest.mark.slow)]  # type: ignore[list-item]
"""Network, and how it pools."""


def seeing(folder: Path, form: str, pool: str = "all", *, gates: bool = True) -> ForeignNetwork:
    """A network with a sight of random weights: masks and maps differ from picture to picture."""
    net = foreign_mask.with_sight(imported(folder, form), gates=gates, pool=pool)
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in foreign_mask.sight_of(net).parameters():
            tensor.normal_(std=tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.3)
    net.spec = net.spec.replace(mask_mean=0.5 if gates else 1.0)
    return net


@torch.inference_mode()
def in_torch(net: ForeignNetwork) -> list[np.ndarray]:
    """Features, masks and maps of PEOPLE."""
    return [one.numpy() for one in net(torch.from_numpy(preprocess(PEOPLE, net.spec.preprocessing)))]


@pytest.mark.parametrize(("form", "pool"), FORMS)
def test_a_checkpoint_and_an_engine_give_what_torch_gives(form: str, pool: str, tmp_path: Path) -> None:
    net = seeing(tmp_path, form, pool)
    feature, mask, seen = wanted = in_torch(net)
    assert np.ptp(mask, 0).mean() > 1e-3 and np.ptp(seen, 0).mean() > 1e-3, "pictures differ"
    path = checkpoint.save(net, tmp_path / "model")
    read = checkpoint.load_any(path)
    assert checkpoint.fingerprint(read) == checkpoint.fingerprint(net)
    assert all(np.array_equal(got, want) for got, want in zip(in_torch(read), wanted))  # type: ignore[arg-type]
    manifest = build(path, tmp_path / "engine", backend="openvino", progress=False)
    assert manifest.fingerprint == checkpoint.fingerprint(net) and manifest.outputs == ("feature", "mask", "visibility")
    with Engine.load(tmp_path / "engine") as engine:
        for rows in (slice(0, 1), slice(0, 5)):
            got = engine.embed(PEOPLE[rows])
            np.testing.assert_allclose(got.features, feature[rows], atol=1e-3)
            np.testing.assert_allclose(got.masks, mask[rows], atol=1e-3)
            np.testing.assert_allclose(got.visibility_map, seen[rows, 0], atol=1e-3)
            np.testing.assert_allclose(got.visibility, visibility_of_maps(seen[rows]), atol=1e-3)


def test_a_search_uses_the_masks_of_the_query(tmp_path: Path) -> None:
    net = seeing(tmp_path, "map")
    build(checkpoint.save(net, tmp_path / "model"), tmp_path / "engine", backend="onnxruntime", progress=False)
    with Engine.load(tmp_path / "engine") as engine:
        gallery = Gallery.for_engine(engine)
        gallery.add(engine.embed(PEOPLE), people=list("abcde"))
        found = gallery.search(engine.embed(PEOPLE[:3]), 5)
        assert gallery.search(engine.embed(PEOPLE[:3]), 5, min_visibility=0.01).found.all()
    feature, mask, _ = (one.astype(np.float64) for one in in_torch(net))
    for i in range(3):
        gated = feature[i] * mask[i]
        by_hand = [gated @ row / np.linalg.norm(mask[i] * row) for row in feature]  # features are of length 1
        np.testing.assert_allclose(found.similarity[i], sorted(by_hand, reverse=True), atol=1e-3)
    shown = CliRunner().invoke(main, ["inspect", str(tmp_path / "engine")])
    assert "another's network: masks and a map that it was taught" in shown.output


def test_without_gates_the_map_stays_and_the_mask_is_ones(tmp_path: Path) -> None:
    with_gates = seeing(tmp_path, "map", "seen")
    net = foreign_mask.without_gates(with_gates)
    feature, mask, seen = in_torch(net)
    for got, want in zip((feature, seen), in_torch(with_gates)[::2]):
        np.testing.assert_array_equal(got, want)
    assert (mask == 1).all() and net.spec.mask_mean == 1
    export(net, tmp_path / "net.onnx")
    read = portable.read(tmp_path / "net.onnx")
    assert [output.name for output in read.model.graph.output] == ["feature", "mask", "visibility"]
    build(tmp_path / "net.onnx", tmp_path / "engine", backend="onnxruntime", progress=False)
    with Engine.load(tmp_path / "engine") as engine:
        got = engine.embed(PEOPLE)
    np.testing.assert_allclose(got.features, feature, atol=1e-3)
    assert (got.masks == 1).all()


def test_a_torch_engine_has_the_masks(tmp_path: Path) -> None:
    net = seeing(tmp_path, "map", "seen")
    build(checkpoint.save(net, tmp_path / "model"), tmp_path / "engine", backend="torch", progress=False)
    with Engine.load(tmp_path / "engine") as engine:
        got = engine.embed(PEOPLE)
    np.testing.assert_allclose(got.masks, in_torch(net)[1], atol=2e-2)


def edited(path: Path, changes: dict) -> Path:
    """The checkpoint with other parts of its JSON."""
    card = json.loads(path.with_suffix(".json").read_text())
    for name, value in changes.items():
        card[name] = {**card[name], **value} if isinstance(value, dict) else value
    path.with_suffix(".json").write_text(json.dumps(card))
    return path


def test_a_checkpoint_whose_sight_was_edited_is_refused(tmp_path: Path) -> None:
    path = checkpoint.save(seeing(tmp_path, "map"), tmp_path / "model")
    for sight in (None, {"channels": 8}, {"channels": 24, "rows": 8, "gates": True, "pool": "none"}):
        with pytest.raises(CheckpointError, match=r"expected .*sight"):
            checkpoint.load_any(edited(path, {"network": {"sight": sight}}))


@pytest.mark.parametrize(
    "changes",
    [{"foreign_grid": None, "masks": False}, {"foreign_grid": [8, 0]}, {"visibility": "mask"}, {"masks": False}],
)
def test_a_spec_that_cannot_be_is_refused(changes: dict, tmp_path: Path) -> None:
    spec = seeing(tmp_path, "map").spec
    held = json.loads(json.dumps(spec.to_dict()))
    assert ModelSpec.from_dict(held) == spec and spec.grid == GRID
    with pytest.raises(SpecError, match="foreign_grid"):
        ModelSpec.from_dict({**held, **changes})
