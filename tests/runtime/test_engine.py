"""The engine against the tiny network's arithmetic in float64, and against everything that may be wrong with it."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_engine

from dpm_edge import Engine
from dpm_edge.errors import EngineError, ImageError, MissingLibrary
from dpm_edge.files import sha256
from dpm_edge.manifest import BatchRange, Manifest
from dpm_edge.runtime.backends import openvino
from dpm_edge.runtime.folder import embed_files


def rewrite(folder: Path, **changes: Any) -> None:
    """Change the manifest as a build would have written it, hashes and seal included."""
    manifest = Manifest.read(folder)
    files = {name: sha256(folder / name) for name in manifest.files}
    dataclasses.replace(manifest, **{"files": files, **changes}).write(folder)


@pytest.mark.parametrize("count", [0, 1, 4, 8, 9, 21])
def test_features_masks_and_visibility_are_the_networks(engine: Engine, count: int) -> None:
    images = tiny_engine.people(count)
    got = engine.embed(images)
    feature, mask = tiny_engine.expected(images) if count else (np.zeros((0, 24)), np.zeros((0, 24)))
    np.testing.assert_allclose(got.features, feature, atol=2e-3)
    np.testing.assert_allclose(got.masks, mask, atol=2e-3)
    np.testing.assert_allclose(got.visibility, mask.mean(1) / 0.5, atol=2e-3)
    assert got.rows.tolist() == list(range(count)) and got.skipped == []
    assert got.features.dtype == got.masks.dtype == got.visibility.dtype == np.float32 and got.rows.dtype == np.int64


def test_one_array_of_equal_pictures_is_the_list_of_them(engine: Engine) -> None:
    batch = np.stack([np.ascontiguousarray(p[:40, :20]) for p in tiny_engine.people(3)])
    np.testing.assert_array_equal(engine.embed(batch).features, engine.embed(list(batch)).features)


def test_rgb_pictures_give_what_bgr_pictures_give(engine: Engine) -> None:
    images = tiny_engine.people(3)
    mirrored = [np.ascontiguousarray(i[:, :, ::-1]) for i in images]
    np.testing.assert_array_equal(engine.embed(mirrored, color="rgb").features, engine.embed(images).features)
    assert not np.allclose(engine.embed(mirrored).features, engine.embed(images).features, atol=1e-2)


def test_boxes_are_crops_and_unusable_ones_are_reported_by_row(engine: Engine) -> None:
    frame = np.random.default_rng(3).integers(0, 256, (120, 160, 3), np.uint8)
    nan = float("nan")
    boxes = [
        [10, 5, 50, 100],
        [nan, 0, 9, 9],
        [-20, -10, 30, 60],
        [500, 500, 600, 600],
        [30, 30, 30, 60],
        [100, 50, 900, 900],
    ]
    got = engine.embed(frame, np.array(boxes))
    by_hand = engine.embed([frame[5:100, 10:50], frame[0:60, 0:30], frame[50:120, 100:160]])
    np.testing.assert_array_equal(got.features, by_hand.features)
    assert got.rows.tolist() == [0, 2, 5]
    reasons = dict(got.skipped)
    assert sorted(reasons) == [1, 3, 4]
    assert "finite" in reasons[1] and "outside" in reasons[3] and "empty" in reasons[4]


def test_no_boxes_and_only_unusable_boxes_give_no_rows(engine: Engine) -> None:
    frame = np.zeros((50, 50, 3), np.uint8)
    assert engine.embed(frame, np.zeros((0, 4))).features.shape == (0, 24)
    assert engine.embed(frame, []).features.shape == (0, 24)
    only = engine.embed(frame, [[60, 60, 70, 70]])
    assert len(only) == 0 and [row for row, _ in only.skipped] == [0]


def test_low_end_of_the_batch_is_padded(engine_dir: Path) -> None:
    images = tiny_engine.people(9)
    rewrite(engine_dir, batch=BatchRange(low=4, best=4, high=4))
    with Engine.load(engine_dir) as engine:
        np.testing.assert_allclose(engine.embed(images).features, tiny_engine.expected(images)[0], atol=2e-3)


@pytest.mark.parametrize("what", [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5, 3), np.float32), "a.jpg"])
def test_what_is_no_picture_is_refused_by_row(engine: Engine, what: Any) -> None:
    with pytest.raises(ImageError, match="image 1"):
        engine.embed([np.zeros((5, 5, 3), np.uint8), what])


def test_a_single_picture_is_one_crop(engine: Engine) -> None:
    (image,) = tiny_engine.people(1)
    got = engine.embed(image)
    assert got.rows.tolist() == [0]
    np.testing.assert_array_equal(got.features, engine.embed([image]).features)


def test_picture_files_give_what_their_pictures_give(engine: Engine, tmp_path: Path) -> None:
    images = tiny_engine.people(2)
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, image in zip(paths, images):
        cv2.imwrite(str(path), image)
    alone = engine.embed(images).features
    files = engine.embed([paths[0], str(paths[1])])
    np.testing.assert_array_equal(files.features, alone)
    assert files.sources == [str(path) for path in paths]
    mixed = engine.embed([images[0], paths[1]])
    np.testing.assert_array_equal(mixed.features, alone)
    assert mixed.sources == ["", str(paths[1])]
    np.testing.assert_array_equal(engine.embed(paths[0]).features, alone[:1])
    boxed = engine.embed(paths[0], [[2, 3, 15, 30]])
    np.testing.assert_array_equal(boxed.features, engine.embed(images[0], [[2, 3, 15, 30]]).features)


FRAME = np.zeros((50, 40, 3), np.uint8)


@pytest.mark.parametrize(
    ("images", "boxes", "says"),
    [
        (None, None, "expected pictures .* got None"),
        (None, [[0, 0, 5, 5]], "expected one frame .* got None"),
        (7, None, "got a int"),
        (b"jpeg", None, "got a bytes"),
        (np.zeros((5, 5), np.uint8), None, r"expected pictures \(N, H, W, 3\)"),
        ("nothing.jpg", None, "image 0: expected a picture file, got nothing.jpg: No such file"),
        (np.zeros((2, 50, 40, 3), np.uint8), [[0, 0, 5, 5]], r"one frame .* got a ndarray \(2, 50, 40, 3\)"),
        (FRAME, [[1, 2, 3]], r"expected \(N, 4\) boxes in pixels, got \(1, 3\)"),
        (FRAME, [1, 2, 3, 4], r"got \(4,\)"),
        (FRAME, [[1, 2, 3], [1, 2, 3, 4]], r"expected \(N, 4\) boxes in pixels, got a list"),
        (FRAME, [["a", 1, 2, 3]], r"expected \(N, 4\) boxes in pixels, got a list"),
        (FRAME, [[0.1, 0.2, 0.5, 0.9], [0, 0, 1, 1]], "got fractions of the frame.* x by 40 and y by 50"),
    ],
)
def test_what_cannot_be_embedded_is_named(engine: Engine, images: Any, boxes: Any, says: str) -> None:
    with pytest.raises(ImageError, match=says):
        engine.embed(images, boxes)


def test_a_box_of_one_pixel_beside_others_is_a_box(engine: Engine) -> None:
    assert engine.embed(FRAME, [[0, 0, 1, 1], [2, 2, 30, 40]]).rows.tolist() == [0, 1]


def test_an_engine_and_what_it_gives_are_shown_in_one_line(engine: Engine) -> None:
    people = engine.embed(tiny_engine.people(3))
    assert repr(people) == "Embeddings(3 × 24, model tinytiny…)"
    assert repr(engine).startswith(f"Engine('tiny', {engine.manifest.backend} fp32, CPU, model tinytiny…")
    ticket = engine.submit(tiny_engine.people(1))
    ticket.result(60)
    assert repr(ticket) == "Ticket(done)"


def test_a_file_that_one_may_not_read_is_named(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = engine_dir / Manifest.read(engine_dir).engine

    def denied(read: Path) -> str:  # root may read every file, so that rights taken away would not be seen
        if read == path:
            raise PermissionError(13, "Permission denied")
        return sha256(read)

    monkeypatch.setattr("dpm_edge.manifest.sha256", denied)
    with pytest.raises(EngineError, match=rf"{re.escape(path.name)} cannot be read \(Permission denied\)"):
        Engine.load(engine_dir)


@pytest.mark.parametrize("name", ["yolo.onnx", "weights.safetensors"])
def test_a_model_that_is_no_engine_names_the_build(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"model")
    with pytest.raises(EngineError, match=rf"expected an engine directory.*got the file .*dpm-edge build .*{name} -o"):
        Engine.load(tmp_path / name)


def test_eight_threads_give_what_one_gives(engine: Engine) -> None:
    work = [tiny_engine.people(1 + seed % 11, seed) for seed in range(48)]
    serial = [engine.embed(images) for images in work]
    results = tiny_engine.embedded_by_eight_threads(engine, work)
    assert len(results) == len(work)
    for index, one in enumerate(serial):
        np.testing.assert_array_equal(results[index].features, one.features)
        np.testing.assert_array_equal(results[index].masks, one.masks)


def test_a_closed_engine_says_so(engine_dir: Path) -> None:
    with Engine.load(engine_dir) as engine:
        pass
    engine.close()
    with pytest.raises(EngineError, match="closed"):
        engine.embed(tiny_engine.people(1))


def test_truncated_engine_is_refused_before_it_is_opened(engine_dir: Path) -> None:
    path = engine_dir / Manifest.read(engine_dir).engine
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EngineError, match=rf"{re.escape(path.name)}.*sha256 differs.*dpm-edge build"):
        Engine.load(engine_dir)


def test_engine_that_was_damaged_before_it_was_hashed_names_the_library(engine_dir: Path) -> None:
    path = engine_dir / Manifest.read(engine_dir).engine
    path.write_bytes(path.read_bytes()[:300])
    rewrite(engine_dir)
    with pytest.raises(EngineError, match=r"refuses .*dpm-edge build"):
        Engine.load(engine_dir)


@pytest.mark.parametrize("missing", ["golden.npz", "model.onnx"])
def test_missing_file_is_named(engine_dir: Path, missing: str) -> None:
    (engine_dir / missing).unlink()
    with pytest.raises(EngineError, match=f"lacks {missing}"):
        Engine.load(engine_dir)


def test_no_engine_directory_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="dpm-edge build"):
        Engine.load(tmp_path / "nothing")


def test_engine_of_another_library_version_names_both(engine_dir: Path) -> None:
    manifest = Manifest.read(engine_dir)
    here = manifest.libraries[manifest.backend]
    rewrite(
        engine_dir,
        libraries={**manifest.libraries, manifest.backend: "1999.2.0"}
        if here[0] != "1"
        else {**manifest.libraries, manifest.backend: "0.9.0"},
    )
    with pytest.raises(
        EngineError, match=rf"built with {manifest.backend} (1999.2.0|0.9.0): expected that .*{re.escape(here)}"
    ):
        Engine.load(engine_dir)
    rewrite(engine_dir, libraries={**manifest.libraries, manifest.backend: here.split(".")[0] + ".99.7"})
    Engine.load(engine_dir).close()


def test_edited_manifest_is_refused(engine_dir: Path) -> None:
    path = engine_dir / "manifest.json"
    data = json.loads(path.read_text())
    data["spec"]["mask_mean"] = 0.9
    path.write_text(json.dumps(data))
    with pytest.raises(EngineError, match="edited"):
        Engine.load(engine_dir)


@pytest.mark.parametrize(
    "change",
    [{"color": "bgr"}, {"mean": (0.0, 0.0, 0.0)}, {"std": (1.0, 0.3, 0.1)}],
    ids=["swapped colours", "wrong mean", "wrong std"],
)
def test_golden_crop_catches_wrong_preprocessing(engine_dir: Path, change: dict[str, Any]) -> None:
    spec = tiny_engine.SPEC
    rewrite(engine_dir, spec=spec.replace(preprocessing=dataclasses.replace(spec.preprocessing, **change)))
    with pytest.raises(EngineError, match=r"golden crop: expected a cosine .*dpm-edge build"):
        Engine.load(engine_dir)


def test_golden_crop_catches_other_weights(engine_dir: Path) -> None:
    other = tiny_engine.write_engine(engine_dir.parent / "other", Manifest.read(engine_dir).backend, seed=5)
    (engine_dir / "golden.npz").write_bytes((other / "golden.npz").read_bytes())
    rewrite(engine_dir)
    with pytest.raises(EngineError, match="golden crop"):
        Engine.load(engine_dir)


def test_pickled_golden_crop_is_not_unpickled(engine_dir: Path) -> None:
    np.savez(engine_dir / "golden.npz", crop=np.array([{}], object), feature=np.zeros(24), mask=np.zeros(24))
    rewrite(engine_dir)
    with pytest.raises(EngineError, match=r"golden\.npz"):
        Engine.load(engine_dir)


def test_unknown_device_names_the_known_ones(engine_dir: Path) -> None:
    with pytest.raises(EngineError, match=r"CPU.*'TPU'"):
        Engine.load(engine_dir, device="TPU")


def test_missing_library_names_the_extra(engine_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpm_edge.env.version", lambda name: None)
    with pytest.raises(MissingLibrary, match=r"pip install 'dpm-edge\[engines\]'"):
        Engine.load(engine_dir)


@pytest.mark.parametrize(
    ("backend", "install"),
    [("tensorrt", r"'dpm-edge\[tensorrt\]'"), ("tensorrt-rtx", r"tensorrt-rtx-cu13 'dpm-edge\[gpu\]'")],
)
def test_tensorrt_engine_without_tensorrt_names_what_to_install(
    engine_dir: Path, backend: str, install: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite(engine_dir, backend=backend, device="NVIDIA Orin, sm_87")
    monkeypatch.setattr("dpm_edge.env.version", lambda name: None)
    with pytest.raises(MissingLibrary, match=f"pip install {install}"):
        Engine.load(engine_dir)


def test_output_that_is_not_finite_is_an_error(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    run = engine._backend.run

    def overflow(n: int, fill: Any, feature: Any, mask: Any) -> None:
        run(n, fill, feature, mask)
        feature[1] = np.nan

    monkeypatch.setattr(engine._backend, "run", overflow)
    with pytest.raises(EngineError, match=r"crops \[1\].*fp32"):
        engine.embed(tiny_engine.people(3))


@pytest.mark.parametrize("quiet", [True, False])
def test_files_are_embedded_where_there_is_no_stderr(
    engine: Engine, quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr", None)
    assert embed_files(engine, [tmp_path / "nothing.jpg"], quiet=quiet).skipped[0][0] == 0


def test_memory_is_released_before_a_larger_batch_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    released: list[int] = []
    with Engine.load(tiny_engine.write_engine(tmp_path / "engine", "openvino"), threads=1) as engine:
        monkeypatch.setattr(openvino, "release_memory", lambda compiled: released.append(1))
        for count, so_far in ((1, 0), (3, 1), (2, 1), (3, 1), (8, 2), (1, 2)):
            images = tiny_engine.people(count)
            np.testing.assert_allclose(engine.embed(images).features, tiny_engine.expected(images)[0], atol=2e-3)
            assert len(released) == so_far


@pytest.mark.slow
def test_rising_batch_sizes_leave_no_memory_behind(tmp_path: Path) -> None:
    """The repo's benchmark has the figure of a real network; this is the same question to a small one."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("this C library has no malloc_trim")
    folder = tiny_engine.write_engine(tmp_path / "engine", "openvino", batch=BatchRange(low=1, best=8, high=4096))
    script = """if True:
        import resource, sys
        import numpy as np
        from dpm_edge import Engine
        crops = [np.zeros((64, 64, 3), np.uint8)] * 4096
        with Engine.load(sys.argv[1], threads=1) as engine:
            for n in eval(sys.argv[2]):
                engine.embed(crops[:n])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    """

    def peak(sizes: str) -> float:
        command = [sys.executable, "-c", script, str(folder), sizes]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak("range(256, 4097, 256)") < 1.3 * peak("[4096, 4096]")
