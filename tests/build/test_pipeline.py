"""Whole builds: what is in the directory, what is refused, and that nothing half-written is ever left."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dpm_edge import Engine
from dpm_edge.build import AccuracyBudget, build, candidate, portable
from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import (
    BuildRefused,
    CheckpointError,
    DataError,
    EmbeddingsError,
    ImageError,
    MissingLibrary,
    SpecError,
)
from dpm_edge.images import find_images, preprocess, read_image
from dpm_edge.manifest import Manifest, rebuild_advice
from dpm_edge.model import checkpoint
from dpm_edge.model.network import DPM


def quiet_build(model: Path, out: Path, **arguments) -> Manifest:
    return build(model, out, progress=False, **arguments)


@pytest.mark.parametrize(
    ("backend", "precision"),
    [
        ("openvino", "fp32"),
        ("openvino", "fp16"),
        ("openvino", "int8"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
    ],
)
def test_a_cpu_engine_is_whole_verified_and_answers_as_the_network_does(
    backend: str, precision: str, net: DPM, portable_path: Path, crops: Path, market: Path, tmp_path: Path
) -> None:
    manifest = quiet_build(
        portable_path,
        tmp_path / "engine",
        backend=backend,
        precision=precision,
        calibrate=crops,
        labelled=market,
        batch="1:2:4",
        budget=AccuracyBudget(cosine=0.99, map_points=50.0),
    )
    assert manifest == Manifest.read(tmp_path / "engine")
    assert (manifest.backend, manifest.precision, manifest.device) == (backend, precision, "CPU")
    assert manifest.spec == net.spec and manifest.fingerprint == checkpoint.fingerprint(net)
    assert set(manifest.files) | {"manifest.json"} == {p.name for p in (tmp_path / "engine").iterdir()}
    assert (tmp_path / "engine" / "model.onnx").read_bytes() == portable_path.read_bytes()
    assert backend in manifest.libraries and manifest.built["cpu"]
    found = manifest.verification
    assert found["passed"] and not found["forced"] and found["reference"].startswith("onnxruntime")
    assert found["cosine_mean"] > (0.99 if precision == "int8" else 0.99999)
    assert {"reference_map", "engine_map", "map_lost"} <= found["labelled"].keys()
    paths = find_images(crops)[:5]
    with Engine.load(tmp_path / "engine") as engine:
        got = engine.embed([read_image(p) for p in paths])
    import torch

    with torch.no_grad():
        feature, mask = net(torch.from_numpy(preprocess([read_image(p) for p in paths], net.spec.preprocessing)))
    assert (got.features * feature.numpy()).sum(1).min() > 0.98
    np.testing.assert_allclose(got.visibility, mask.numpy().mean(1) / 0.4, atol=0.05)


def test_from_a_checkpoint_the_reference_is_torch(checkpoint_path: Path, crops: Path, tmp_path: Path) -> None:
    manifest = quiet_build(checkpoint_path, tmp_path / "engine", calibrate=crops)
    assert manifest.verification["reference"].startswith("torch")
    again = quiet_build(tmp_path / "engine" / "model.onnx", tmp_path / "engine", calibrate=crops)
    assert again.fingerprint == manifest.fingerprint


def test_a_portable_onnx_builds_without_torch(portable_path: Path, crops: Path, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'triton', 'onnxscript'): sys.modules[name] = None\n"
        "from dpm_edge.build import build\n"
        f"build({str(portable_path)!r}, {str(tmp_path / 'engine')!r}, precision='int8', calibrate={str(crops)!r},"
        " force=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "", "status belongs on stderr"
    assert "calibrating" in done.stderr and (tmp_path / "engine" / "manifest.json").is_file()


def test_a_checkpoint_without_torch_says_what_to_install(checkpoint_path: Path, tmp_path: Path, crops: Path) -> None:
    program = (
        "import sys\nsys.modules['torch'] = None\n"
        "from dpm_edge.build import build\nfrom dpm_edge.errors import MissingLibrary\n"
        f"try: build({str(checkpoint_path)!r}, {str(tmp_path / 'e')!r}, calibrate={str(crops)!r})\n"
        "except MissingLibrary as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "expected torch" in done.stdout and "dpm-edge[build]" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"backend": "openvnio"}, "Did you mean 'openvino'"),
        ({"precision": "fp31"}, "expected a precision, got 'fp31'"),
        ({"backend": "onnxruntime", "precision": "fp16"}, r"a precision of onnxruntime \(fp32, int8\), got fp16"),
        ({"precision": "int8", "calibrate": None}, "--calibrate DIR"),
        ({"batch": "8:1:64"}, "that rise"),
        ({"batch": "many"}, "'many'"),
        ({"backend": "torch", "closed_set": "gallery"}, "closed-set logits, got torch"),
    ],
)
def test_contradictions_are_refused_first(arguments: dict, says: str, crops: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=says):
        quiet_build(tmp_path / "no such model.onnx", tmp_path / "engine", **({"calibrate": crops} | arguments))
    assert not any(tmp_path.iterdir())


def test_over_the_budget_is_refused_and_the_old_engine_stays(portable_path: Path, crops: Path, tmp_path: Path) -> None:
    out = tmp_path / "engine"
    first = quiet_build(portable_path, out, calibrate=crops)
    too_strict = {"precision": "int8", "calibrate": crops, "budget": AccuracyBudget(cosine=1.0)}
    with pytest.raises(BuildRefused, match=r"mean cosine of features of 1\.0 or more, got 0\.9\d+"):
        quiet_build(portable_path, out, **too_strict)
    assert [p.name for p in tmp_path.iterdir()] == ["engine"]
    assert Manifest.read(out) == first

    kept = quiet_build(portable_path, out, force=True, **too_strict)
    assert not kept.verification["passed"] and kept.verification["forced"]
    assert "of 1.0 or more" in kept.verification["over_budget"][0]
    Engine.load(out).close()


def test_ctrl_c_leaves_nothing(
    portable_path: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(candidate, "write_golden", interrupt)
    with pytest.raises(KeyboardInterrupt):
        quiet_build(portable_path, tmp_path / "engine", calibrate=crops)
    assert not any(tmp_path.iterdir())


def test_a_folder_of_something_else_is_never_replaced(portable_path: Path, crops: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(SpecError, match="Name another directory"):
        quiet_build(portable_path, tmp_path, calibrate=crops)
    with pytest.raises(SpecError, match="got the file"):
        quiet_build(portable_path, tmp_path / "thesis.tex", calibrate=crops)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_without_readable_crops_is_refused_and_a_small_one_is_shared_out(
    portable_path: Path, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, folder = tmp_path / "engine", tmp_path / "crops"
    with pytest.raises(ImageError, match="expected a folder of pictures"):
        quiet_build(portable_path, out, calibrate=folder)
    folder.mkdir()
    with pytest.raises(ImageError, match=r"got none\. Check the path"):
        quiet_build(portable_path, out, calibrate=folder)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 not a picture")
    with pytest.raises(SpecError, match="got no picture that can be read"):
        quiet_build(portable_path, out, calibrate=folder)
    for picture in find_images(crops)[:6]:
        shutil.copy(picture, folder)
    capsys.readouterr()
    manifest = quiet_build(portable_path, out, precision="int8", calibrate=folder, force=True)
    assert (manifest.verification["crops"], manifest.verification["calibration_crops"]) == (3, 3)
    assert "left out" in capsys.readouterr().err


def test_a_labelled_folder_of_another_layout_is_refused(portable_path: Path, crops: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="expected a data set in one of the layouts"):
        quiet_build(portable_path, tmp_path / "engine", calibrate=crops, labelled=crops)
    assert not any(tmp_path.iterdir())


def test_what_is_no_model_is_named(checkpoint_path: Path, crops: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        quiet_build(tmp_path / "nothing.onnx", tmp_path / "engine", calibrate=crops)
    with pytest.raises(CheckpointError, match="does not exist"):
        quiet_build(tmp_path / "nothing", tmp_path / "engine", calibrate=crops)
    (tmp_path / "model.pth").write_bytes(b"\x80\x04.")
    with pytest.raises(CheckpointError, match="is a pickle"):
        quiet_build(tmp_path / "model.pth", tmp_path / "engine", calibrate=crops)
    shutil.copy(checkpoint_path, tmp_path / "renamed.onnx")
    with pytest.raises(CheckpointError, match="expected an ONNX file"):
        quiet_build(tmp_path / "renamed.onnx", tmp_path / "engine", calibrate=crops)
    assert not (tmp_path / "engine").exists()


def test_bf16_on_a_cpu_without_it_says_so(portable_path: Path, crops: Path, tmp_path: Path) -> None:
    import openvino

    if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        manifest = quiet_build(portable_path, tmp_path / "engine", precision="bf16", calibrate=crops)
        assert manifest.precision == "bf16" and manifest.verification["passed"]
    else:
        with pytest.raises(SpecError, match="expected a CPU that computes bf16"):
            quiet_build(portable_path, tmp_path / "engine", precision="bf16", calibrate=crops)


def test_a_missing_engine_library_names_its_extra(
    portable_path: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingLibrary, match=r"openvino.*dpm-edge\[engines\]"):
        quiet_build(portable_path, tmp_path / "engine", calibrate=crops)
    assert not any(tmp_path.iterdir())


def test_a_model_that_is_not_there_is_named_before_torch_is(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nothing, which does not exist"):
        build(tmp_path / "nothing", tmp_path / "engine", progress=False)


def test_a_sites_statistics_lie_beside_the_engine(portable_path: Path, crops: Path, tmp_path: Path) -> None:
    spec, fingerprint = portable.read(portable_path).spec, portable.read(portable_path).fingerprint
    known = CameraStatistics(fingerprint=fingerprint, dimension=spec.dimension)
    known.add(np.eye(3, spec.dimension, dtype=np.float32), ["door", "door", "yard"])
    known.save(tmp_path / "site.json")
    manifest = quiet_build(
        portable_path, tmp_path / "engine", backend="onnxruntime", calibrate=crops, statistics=tmp_path / "site.json"
    )
    manifest.check_files(tmp_path / "engine")
    with Engine.load(tmp_path / "engine") as engine:
        assert engine.camera_statistics is not None and engine.camera_statistics.counts == {"door": 2, "yard": 1}
    advice = rebuild_advice(tmp_path / "engine")
    assert f"--statistics {tmp_path / 'engine' / 'cameras.json'}" in advice
    other = CameraStatistics(fingerprint="x" * 64, dimension=spec.dimension)
    other.save(tmp_path / "other.json")
    with pytest.raises(EmbeddingsError, match="expected camera statistics of model"):
        quiet_build(
            portable_path,
            tmp_path / "engine",
            backend="onnxruntime",
            calibrate=crops,
            statistics=tmp_path / "other.json",
        )
    Manifest.read(tmp_path / "engine").check_files(tmp_path / "engine")
