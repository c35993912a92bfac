"""DeepStream's configurations: parsed again, and their formula computed beside our preprocessing."""

from __future__ import annotations

import configparser
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import tiny_engine
import yaml

from dpm_edge.build import portable
from dpm_edge.errors import ExportError
from dpm_edge.interop.deepstream import export, normalisation, put_block
from dpm_edge.manifest import BatchRange, GpuCard, Manifest
from dpm_edge.spec import ModelSpec, Preprocessing

STD = (0.25, 0.25, 0.25)
SPEC = dataclasses.replace(
    tiny_engine.SPEC,
    preprocessing=Preprocessing(height=64, width=64, mean=(0.4, 0.45, 0.5), std=STD, interpolation="bilinear"),
)
SAMPLE = """%YAML:1.0
BaseConfig:
  minDetectorConfidence: 0.1
ReID:
  reidType: 2 # a comment
  useVPICropScaler: 1
  batchSize: 100
  keepAspc: 1
  tltModelKey: "nvidia_tao"
  modelEngineFile: "/opt/other.engine"
TargetManagement:
  maxTargetsPerStream: 150
"""


def engine_of(folder: Path, spec: ModelSpec = SPEC, backend: str = "onnxruntime", **changes: Any) -> Path:
    """The tiny network, its model.onnx a real portable one with metadata."""
    import onnx

    from dpm_edge.files import sha256

    tiny_engine.write_engine(folder, backend, spec=spec)
    model = onnx.load(folder / "model.onnx")
    portable.write(model, folder / "model.onnx", spec, tiny_engine.FINGERPRINT)
    manifest = Manifest.read(folder)
    files = {**manifest.files, "model.onnx": sha256(folder / "model.onnx")}
    dataclasses.replace(manifest, files=files, **changes).write(folder)
    return folder


def ini(path: Path) -> dict[str, str]:
    """The [property] group of an nvinfer file."""
    parser = configparser.ConfigParser()
    parser.read(path)
    return dict(parser["property"])


def by_hand(pixel: np.ndarray, scale: float, offsets: list[float], color: int) -> np.ndarray:
    """DeepStream's documented formula on a BGR pixel: y = scale · (x − offset), channels in the network's order."""
    x = pixel[::-1] if color == 0 else pixel
    return scale * (x.astype(np.float64) - np.array(offsets))


@pytest.mark.parametrize("color", ["rgb", "bgr"])
def test_both_configurations_give_the_networks_input_for_a_pixel(tmp_path: Path, color: str) -> None:
    from dpm_edge.images import preprocess

    pre = dataclasses.replace(SPEC.preprocessing, color=color)
    export(tmp_path / "ds", engine_of(tmp_path / "engine", dataclasses.replace(SPEC, preprocessing=pre)))
    reid = yaml.safe_load((tmp_path / "ds" / "tracker.yml").read_text())["ReID"]
    sgie = ini(tmp_path / "ds" / "sgie.txt")
    pixel = np.array([7, 130, 255], np.uint8)  # BGR
    wanted = preprocess([np.tile(pixel, (80, 40, 1))], pre)[0, :, 0, 0]
    tracker = by_hand(pixel, reid["netScaleFactor"], reid["offsets"], reid["colorFormat"])
    offsets = [float(one) for one in sgie["offsets"].split(";")]
    second = by_hand(pixel, float(sgie["net-scale-factor"]), offsets, int(sgie["model-color-format"]))
    np.testing.assert_allclose(tracker, wanted, rtol=0, atol=1e-6)
    np.testing.assert_allclose(second, wanted, rtol=0, atol=1e-6)
    assert abs(wanted).max() > 1, "a pixel on which a mistake would show"


def test_shipped_normalisation_is_the_well_known_pair() -> None:
    numbers = normalisation(Preprocessing())
    assert numbers.scale == pytest.approx(1 / 127.5) and numbers.offsets == (127.5, 127.5, 127.5) and numbers.color == 0


def test_channels_of_different_std_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one scale for all channels"):
        export(tmp_path / "ds", engine_of(tmp_path / "engine", tiny_engine.SPEC))
    assert not (tmp_path / "ds").exists()


def test_sizes_outputs_and_batches(tmp_path: Path) -> None:
    profiles = (BatchRange(low=1, best=1, high=4), BatchRange(low=5, best=8, high=16))
    engine = engine_of(tmp_path / "engine", backend="tensorrt", profiles=profiles, batch=BatchRange.whole(profiles))
    export(tmp_path / "ds", engine, person_class=2)
    reid = yaml.safe_load((tmp_path / "ds" / "tracker.yml").read_text())["ReID"]
    assert (reid["inferDims"], reid["reidFeatureSize"], reid["batchSize"]) == ([3, 64, 64], 24, 16)
    assert (reid["outputReidTensor"], reid["keepAspc"], reid["inputOrder"], reid["networkMode"]) == (1, 0, 0, 0)
    assert Path(reid["onnxFile"]) == tmp_path / "ds" / "reid-feature.onnx" and Path(reid["onnxFile"]).is_file()
    sgie = ini(tmp_path / "ds" / "sgie.txt")
    assert sgie["output-tensor-meta"] == "1" and sgie["process-mode"] == "2" and sgie["network-type"] == "100"
    assert sgie["output-blob-names"] == "feature;mask" and sgie["operate-on-class-ids"] == "2"
    assert sgie["model-engine-file"] == "reid.plan" and (tmp_path / "ds" / "reid.plan").is_file()
    assert sgie["batch-size"] == "4", "nvinfer takes a plan's first profile"
    assert sgie["infer-dims"] == "3;64;64" and sgie["maintain-aspect-ratio"] == "0"


def test_a_plan_that_calls_our_plugin_is_left_to_nvinfer_to_build(tmp_path: Path) -> None:
    card = GpuCard(name="Orin", compute_capability="8.7", tensorrt="10.3.0", plugin="ab")
    export(tmp_path / "ds", engine_of(tmp_path / "engine", backend="tensorrt", gpu=card))
    assert ini(tmp_path / "ds" / "sgie.txt")["model-engine-file"] == "reid.onnx_b8_gpu0_fp32.engine"
    assert not (tmp_path / "ds" / "reid.plan").exists()


def test_the_trackers_network_is_the_feature_alone(tmp_path: Path) -> None:
    export(tmp_path / "ds", engine_of(tmp_path / "engine"))
    images = np.random.default_rng(3).standard_normal((3, 3, 64, 64)).astype(np.float32)
    sessions = {
        name: onnxruntime.InferenceSession(tmp_path / "ds" / name) for name in ("reid.onnx", "reid-feature.onnx")
    }
    assert [o.name for o in sessions["reid.onnx"].get_outputs()] == ["feature", "mask"]
    assert [o.name for o in sessions["reid-feature.onnx"].get_outputs()] == ["feature"]
    both = [session.run(["feature"], {"images": images})[0] for session in sessions.values()]
    np.testing.assert_array_equal(*both)


def test_our_block_replaces_the_samples_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "sample.yml").write_text(SAMPLE)
    export(tmp_path / "ds", engine_of(tmp_path / "engine"), tracker=tmp_path / "sample.yml")
    text = (tmp_path / "ds" / "tracker.yml").read_text()
    assert text.startswith("%YAML:1.0\n"), "DeepStream's own first line stays"
    config = yaml.safe_load(text.partition("\n")[2])
    assert config["BaseConfig"] == {"minDetectorConfidence": 0.1}
    assert config["TargetManagement"] == {"maxTargetsPerStream": 150}
    reid = config["ReID"]
    assert reid["reidType"] == 2 and reid["useVPICropScaler"] == 1
    assert reid["batchSize"] == 8 and reid["keepAspc"] == 0 and "tltModelKey" not in reid
    assert "/opt/other.engine" not in text


@pytest.mark.parametrize(("sample", "kind"), [("ReID:\n  reidType: 0\n", 2), ("BaseConfig:\n  a: 1\n", 1), ("", 1)])
def test_block_without_a_block_to_replace(sample: str, kind: int) -> None:
    config = yaml.safe_load(put_block(sample, {"reidType": 1, "batchSize": 4}))
    assert config["ReID"] == {"reidType": kind, "batchSize": 4}
    assert ("BaseConfig" in config) == ("BaseConfig" in sample)


def test_bad_tracker_file_and_strange_folder_are_refused(tmp_path: Path) -> None:
    engine = engine_of(tmp_path / "engine")
    (tmp_path / "no.yml").write_text("a: 1\n")
    for path in (tmp_path / "no.yml", tmp_path / "missing.yml"):
        with pytest.raises(ExportError, match=path.name):
            export(tmp_path / "ds", engine, tracker=path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(ExportError, match="Name another folder"):
        export(tmp_path / "mine", engine)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"
    assert export(tmp_path / "ds", engine) == export(tmp_path / "ds", engine)


def test_readme_is_filled_in(tmp_path: Path) -> None:
    export(tmp_path / "ds", engine_of(tmp_path / "engine"))
    text = (tmp_path / "ds" / "README.md").read_text()
    assert "$" not in text and "length 24" in text and tiny_engine.FINGERPRINT in text
    code = text.split("```python")[1].split("```")[0]
    compile(code, "README.md", "exec")
