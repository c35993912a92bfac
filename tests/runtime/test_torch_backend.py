"""Backend torch, on this machine's CPU: the network's own numbers through the engine's interface; no CUDA here."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_engine

torch = pytest.importorskip("torch", reason="torch is not installed (extra [build])")
sys.path.insert(0, str(Path(__file__).parents[1] / "build"))

from tiny_network import network  # noqa: E402

from dpm_edge import Embeddings, Engine, Gallery, env  # noqa: E402
from dpm_edge.errors import EngineError  # noqa: E402
from dpm_edge.files import sha256  # noqa: E402
from dpm_edge.images import preprocess  # noqa: E402
from dpm_edge.manifest import BatchRange, Manifest  # noqa: E402
from dpm_edge.model import checkpoint  # noqa: E402
from dpm_edge.model.network import DPM  # noqa: E402
from dpm_edge.model.serving import FusedMaskGenerator, for_serving  # noqa: E402

FRAME = np.random.default_rng(3).integers(0, 256, (120, 160, 3), np.uint8)
BOXES = [[10, 5, 50, 100], [7, 7, 7, 9], [-20.5, -10, 30, 60], [100, 50, 900, 900]]
COSINE = {"fp32": 1 - 1e-6, "fp16": 0.9999, "bf16": 0.999}


def exact(net: DPM, images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Feature and mask in float64, by the network alone."""
    with torch.no_grad():
        batch = torch.from_numpy(preprocess(images, net.spec.preprocessing)).double()
        feature, mask = network().double().eval()(batch)
    return feature.numpy(), mask.numpy()


def engine_folder(folder: Path, precision: str) -> Path:
    """An engine directory as the build leaves it."""
    net = network()
    folder.mkdir()
    checkpoint.save(net, folder / "model")
    (crop,) = tiny_engine.people(1, seed=99)
    feature, mask = exact(net, [crop])
    np.savez(folder / "golden.npz", crop=crop, feature=feature[0].astype(np.float32), mask=mask[0].astype(np.float32))
    Manifest(
        spec=net.spec,
        fingerprint=checkpoint.fingerprint(net),
        backend="torch",
        precision=precision,
        batch=BatchRange(low=1, best=4, high=8),
        engine="model.safetensors",
        files={p.name: sha256(p) for p in sorted(folder.iterdir())},
        device="CPU",
        libraries=env.versions(),
        verification={"golden_cosine": 0.99},
    ).write(folder)
    return folder


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_features_and_masks_are_the_networks(tmp_path: Path, precision: str) -> None:
    images = tiny_engine.people(11)
    with Engine.load(engine_folder(tmp_path / "engine", precision)) as engine:
        got = engine.embed(images)
    feature, mask = exact(network(), images)
    assert ((got.features * feature).sum(1) > COSINE[precision]).all()
    np.testing.assert_allclose(got.masks, mask, atol=1e-5 if precision == "fp32" else 2e-2)
    np.testing.assert_allclose(np.linalg.norm(got.features, axis=1), 1, atol=1e-5)


def test_boxes_of_a_frame_are_crops_of_it(tmp_path: Path) -> None:
    """The kernel's reference resizes within one grey level of OpenCV."""
    with Engine.load(engine_folder(tmp_path / "engine", "fp32")) as engine:
        got = engine.embed(FRAME, BOXES)
        by_hand = engine.embed([FRAME[5:100, 10:50], FRAME[0:60, 0:30], FRAME[50:120, 100:160]])
        assert ((got.features * by_hand.features).sum(1) > 0.9999).all()
        assert got.rows.tolist() == [0, 2, 3] and [row for row, _ in got.skipped] == [1]
        assert engine.embed(FRAME, []).features.shape == (0, 48)
        ticket = engine.submit(FRAME, BOXES)
        np.testing.assert_array_equal(ticket.result(60).features, got.features)


def test_a_search_behind_the_network_finds_what_float64_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows lie where the network runs, by the kernels' own reference on a CPU."""
    from dpm_edge.kernels.masked_distance.resident import Resident

    monkeypatch.setattr("dpm_edge.gallery.search.on_gpu.rows_on_gpu", lambda device: Resident("cpu"))
    targets = np.random.default_rng(0).standard_normal((300, 48)).astype(np.float32)
    with Engine.load(engine_folder(tmp_path / "engine", "fp32")) as engine:
        gallery = Gallery.for_engine(engine, device="cuda")
        rows = Embeddings(
            features=targets, masks=np.ones_like(targets), visibility=np.ones(300, np.float32), rows=np.arange(300),
            fingerprint=engine.fingerprint,
        )  # fmt: skip
        gallery.add(rows, people=[f"p{i}" for i in range(300)])
        enqueued, enqueue = [], Resident.enqueue
        monkeypatch.setattr(Resident, "topk", lambda *_, **__: pytest.fail("candidates were searched for twice"))
        monkeypatch.setattr(Resident, "enqueue", lambda *given: (enqueued.append(1), enqueue(*given)))
        people, got = engine.search(FRAME, BOXES, gallery, 7)
    assert enqueued
    q, m, t = (x.astype(np.float64) for x in (people.features, people.masks, targets))
    t /= np.linalg.norm(t, axis=1, keepdims=True)
    wanted = ((q * m) @ t.T) / np.sqrt((m * m) @ (t * t).T)
    order = np.argsort(-wanted, axis=1)[:, :7]
    assert got.people.tolist() == [[f"p{i}" for i in row] for row in order]
    np.testing.assert_allclose(got.similarity, np.take_along_axis(wanted, order, 1), atol=1e-5)


def test_what_the_cpu_has_not_is_said(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "engine", "fp32")
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match=r"expected GPU, got 0 GPUs.*device='CPU'"):
        Engine.load(folder, device="GPU")
    with Engine.load(folder, device="CPU") as engine, pytest.raises(EngineError, match="expected no stream"):
        engine.embed(FRAME, BOXES, stream=0)


def test_a_damaged_checkpoint_names_the_rebuild(tmp_path: Path) -> None:
    folder = engine_folder(tmp_path / "engine", "bf16")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])
    manifest = Manifest.read(folder)
    dataclasses.replace(manifest, files={name: sha256(folder / name) for name in manifest.files}).write(folder)
    with pytest.raises(EngineError, match=r"damaged or cut short.*dpm-edge build .*--backend torch --precision bf16"):
        Engine.load(folder)


@pytest.mark.parametrize("hmg", ["paper", "lite"])
@pytest.mark.parametrize("batch", [1, 5])
def test_the_fused_mask_generator_is_the_trained_one(hmg: str, batch: int) -> None:
    """Folded and packed, through the kernels' own reference on a CPU; both sizes of batch take another packing."""
    net = network(hmg=hmg, layers=4, mask_blocks=(1, 2, 3, 4))
    images = torch.rand(batch, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        got = FusedMaskGenerator(net.mask_generator, torch.float32)(net.backbone(images, blocks=(1, 2, 3, 4)).tokens)
        wanted = net.double()(images.double())[1]
    torch.testing.assert_close(got, wanted.float(), atol=2e-5, rtol=1e-4)


def test_a_network_whose_head_the_kernels_do_not_take_keeps_its_own() -> None:
    served = for_serving(network(), torch.float32, torch.device("cpu"), fused=True)
    assert not isinstance(served.mask_generator, FusedMaskGenerator), "two mask blocks"
    assert all(not p.requires_grad for p in served.parameters())
