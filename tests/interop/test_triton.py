"""The model repository: read by tritonclient's own protobuf, and served by a real Triton server on the CPU."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tiny_engine
import triton_environment
from numpy.typing import NDArray
from triton_server import TritonServer

from dpm_edge import Engine
from dpm_edge.errors import EngineError, ExportError
from dpm_edge.interop import triton
from dpm_edge.interop.deepstream import Name, to_text
from dpm_edge.manifest import BatchRange, GpuCard, Manifest

HERE = Path(__file__).parent
MODEL = "tiny-openvino-fp32"
PROFILES = (BatchRange(low=1, best=1, high=1), BatchRange(low=2, best=8, high=32))
CARD = GpuCard(name="Orin", compute_capability="8.7", tensorrt="10.3.0")


@pytest.fixture(scope="session")
def environment() -> Path:
    """The environment with the server, made at the first use."""
    try:
        return triton_environment.make()
    except triton_environment.Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of a CPU engine."""
    folder = tmp_path_factory.mktemp("triton")
    triton.export(
        folder / "models", [tiny_engine.write_engine(folder / "engine", "openvino")], max_wait=0.02, threads=1
    )
    return folder / "models"


@pytest.fixture(scope="session")
def server(environment: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The server on that repository."""
    with TritonServer(environment, repository, tmp_path_factory.mktemp("log") / "triton.log") as running:
        yield running


def plan_engine(folder: Path, backend: str = "tensorrt", **changes: Any) -> Path:
    """An engine directory whose plan is no plan; enough for what an export reads."""
    fields = {
        "precision": "fp16",
        "batch": BatchRange.whole(PROFILES),
        "profiles": PROFILES,
        "device": "Orin sm_87",
        "gpu": CARD,
        "libraries": {"tensorrt": "10.3.0"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "engine.onnx").write_bytes(b"the graph that the plan was built from")
    tiny_engine.write_engine(folder, backend, **{**fields, **changes})
    return folder


def parsed(environment: Path, path: Path) -> dict[str, Any]:
    """A config.pbtxt through tritonclient's ModelConfig, as JSON; 64-bit integers come as text."""
    command = [str(triton_environment.python(environment)), str(HERE / "triton_clients.py"), "config", str(path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_cpu_model_is_read_by_tritons_protobuf(environment: Path, repository: Path) -> None:
    config = parsed(environment, repository / MODEL / "config.pbtxt")
    assert config["name"] == MODEL and config["backend"] == "python" and config["max_batch_size"] == 8
    assert config["input"] == [{"name": "crop", "data_type": "TYPE_STRING", "dims": ["1"]}]
    assert {one["name"]: one["dims"] for one in config["output"]} == {
        "feature": ["24"],
        "mask": ["24"],
        "visibility": ["1"],
    }
    assert config["dynamic_batching"]["max_queue_delay_microseconds"] == "20000"
    assert config["instance_group"] == [{"kind": "KIND_CPU", "count": 1}]
    assert config["parameters"]["fingerprint"]["string_value"] == tiny_engine.FINGERPRINT


def test_plan_is_read_by_tritons_protobuf(environment: Path, tmp_path: Path) -> None:
    (served,) = triton.export(tmp_path / "models", [plan_engine(tmp_path / "engine")])
    config = parsed(environment, tmp_path / "models" / "tiny-tensorrt-fp16" / "config.pbtxt")
    assert config["platform"] == "tensorrt_plan" and config["max_batch_size"] == 32
    assert config["input"] == [{"name": "images", "data_type": "TYPE_FP32", "dims": ["3", "64", "64"]}]
    assert [one["name"] for one in config["output"]] == ["feature", "mask"]
    assert config["dynamic_batching"]["preferred_batch_size"] == [1, 8]
    assert config["instance_group"] == [{"kind": "KIND_GPU", "count": 1, "profile": ["0", "1"]}]
    assert [(w["batch_size"], w["inputs"]["images"]["dims"]) for w in config["model_warmup"]] == [
        (1, ["3", "64", "64"]),
        (8, ["3", "64", "64"]),
    ]
    assert (tmp_path / "models" / "tiny-tensorrt-fp16" / "1" / "model.plan").is_file()
    assert "Orin sm_87" in served.needs and "10.3.0" in served.needs


def test_closed_set_labels_go_along(environment: Path, tmp_path: Path) -> None:
    engine = tmp_path / "engine"
    engine.mkdir()
    (engine / "people.json").write_text(json.dumps(["Ann", 'Bö "x"']))
    plan_engine(engine, outputs=("feature", "mask", "logits"))
    triton.export(tmp_path / "models", [engine])
    folder = tmp_path / "models" / "tiny-tensorrt-fp16"
    logits = parsed(environment, folder / "config.pbtxt")["output"][2]
    assert logits == {"name": "logits", "data_type": "TYPE_FP32", "dims": ["2"], "label_filename": "people.txt"}
    assert (folder / "people.txt").read_text().splitlines() == ["Ann", 'Bö "x"']


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch": BatchRange(low=4, best=8, high=8), "profiles": ()}, "--batch 1:8:8"),
        ({"gpu": GpuCard(name="x", compute_capability="8.7", tensorrt="10.3.0", weights="stripped")}, "no weights"),
        ({"gpu": GpuCard(name="x", compute_capability="8.7", tensorrt="10.3.0", plugin="ab")}, "--mask-head native"),
        ({"backend": "tensorrt-rtx"}, "cannot serve"),
    ],
)
def test_engines_that_triton_would_fail_on_are_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ExportError, match=says):
        triton.export(tmp_path / "models", [plan_engine(tmp_path / "engine", **changes)])
    assert not (tmp_path / "models").exists()


def test_a_manifest_that_names_a_file_elsewhere_writes_nothing(tmp_path: Path) -> None:
    engine = tiny_engine.write_engine(tmp_path / "a" / "b" / "engine", "onnxruntime")
    (tmp_path / "evil.txt").write_bytes(b"elsewhere")
    manifest = Manifest.read(engine)
    files = {**manifest.files, "../../../evil.txt": hashlib.sha256(b"elsewhere").hexdigest()}
    dataclasses.replace(manifest, files=files).write(engine)
    with pytest.raises(EngineError, match=r"own folder, got '\.\./\.\./\.\./evil\.txt'"):
        triton.export(tmp_path / "x" / "models", [engine])
    assert not (tmp_path / "x").exists()


def test_other_models_are_left_alone_and_strangers_are_not_replaced(tmp_path: Path) -> None:
    engine = tiny_engine.write_engine(tmp_path / "engine", "onnxruntime")
    models = tmp_path / "models"
    other = models / "detector" / "config.pbtxt"
    other.parent.mkdir(parents=True)
    other.write_text('name: "detector"')
    triton.export(models, [engine])
    triton.export(models, [engine])
    assert other.read_text() == 'name: "detector"'
    config = models / "tiny-onnxruntime-fp32" / "config.pbtxt"
    config.write_text(config.read_text().partition("\n")[2])
    with pytest.raises(ExportError, match="export` wrote, or none"):
        triton.export(models, [engine])
    with pytest.raises(ExportError, match="two repositories"):
        triton.export(tmp_path / "new", [engine, engine])


def test_text_format_escapes_and_refuses(environment: Path, tmp_path: Path) -> None:
    awkward = 'a "b" \\ c\nd é'
    path = tmp_path / "config.pbtxt"
    path.write_text(to_text({"name": awkward, "max_batch_size": 3, "response_cache": {"enable": True}}))
    assert parsed(environment, path) == {"name": awkward, "max_batch_size": 3, "response_cache": {"enable": True}}
    assert to_text({"kind": Name("KIND_CPU")}) == "kind: KIND_CPU\n"
    with pytest.raises(TypeError, match="NoneType"):
        to_text({"name": None})


def encoded_people(count: int) -> list[bytes]:
    """People of many sizes as PNG, BMP and JPEG in turn."""
    kinds = (".png", ".bmp", ".jpg")
    pictures = tiny_engine.people(count, seed=7)
    return [cv2.imencode(kinds[row % 3], picture)[1].tobytes() for row, picture in enumerate(pictures)]


def own_answers(engine: Path, encoded: list[bytes]) -> dict[str, NDArray[np.float32]]:
    """What the runtime itself says of each picture alone, decoded by OpenCV here."""
    pictures = [cv2.imdecode(np.frombuffer(one, np.uint8), cv2.IMREAD_COLOR) for one in encoded]
    with Engine.load(engine, threads=1) as opened:
        found = [opened.embed([picture]) for picture in pictures]
    return {
        "feature": np.concatenate([one.features for one in found]),
        "mask": np.concatenate([one.masks for one in found]),
        "visibility": np.concatenate([one.visibility for one in found])[:, None],
    }


@pytest.mark.slow
def test_a_real_server_answers_many_clients_as_the_runtime_does_and_batches(
    server: TritonServer, environment: Path, repository: Path, tmp_path: Path
) -> None:
    encoded = encoded_people(40)
    np.savez(tmp_path / "in.npz", **{f"{row:03}": np.frombuffer(one, np.uint8) for row, one in enumerate(encoded)})
    arguments = [str(server.http), str(server.grpc), MODEL, str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]
    command = [str(triton_environment.python(environment)), str(HERE / "triton_clients.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert result.returncode == 0, result.stdout + result.stderr + server.text()
    answers = np.load(tmp_path / "out.npz")

    wanted = own_answers(repository / MODEL / "1" / "engine", encoded)
    for client in range(16):
        rows = answers[f"{client}.rows"]
        assert sorted(rows) == list(range(40)), "a client lost a picture"
        for name, own in wanted.items():
            np.testing.assert_allclose(answers[f"{client}.{name}"], own[rows], rtol=0, atol=2e-6, err_msg=name)
    for protocol in ("http", "grpc"):
        assert "which is not a picture" in str(answers[f"{protocol}.refused"])

    (statistics,) = server.get(f"/v2/models/{MODEL}/stats")["model_stats"]
    rows, calls = statistics["inference_count"], statistics["execution_count"]
    sizes = {one["batch_size"]: one["compute_infer"]["count"] for one in statistics["batch_stats"]}
    assert rows == 16 * 40 + 2 * 2, f"the two refused requests had two rows each: {statistics}"
    assert rows / calls > 2, f"{rows} rows in {calls} calls: the server hardly batched"
    assert max(sizes) == 8, f"no full batch: {sizes}"
    assert server.get("/v2")["version"] == "2.51.0"


@pytest.mark.slow
def test_the_pages_client_gets_the_runtimes_feature(
    server: TritonServer, environment: Path, repository: Path, tmp_path: Path
) -> None:
    page = (HERE.parents[1] / "docs" / "interop.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    code = code.replace("localhost:8000", f"127.0.0.1:{server.http}").replace("dpm-t-openvino-fp32", MODEL)
    (tmp_path / "person.jpg").write_bytes(encoded_people(3)[2])
    code += "\nnp.save('feature.npy', answer.as_numpy('feature'))\n"
    command = [str(triton_environment.python(environment)), "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert result.returncode == 0, result.stderr + server.text()
    own = own_answers(repository / MODEL / "1" / "engine", encoded_people(3))["feature"][2:]
    np.testing.assert_allclose(np.load(tmp_path / "feature.npy"), own, rtol=0, atol=2e-6)


class FakeRequest:
    """What the python backend hands over, for tests without a server."""

    def __init__(self, *encoded: bytes) -> None:
        self.array = np.array(encoded, np.object_)[:, None]

    def as_numpy(self) -> NDArray[np.object_]:
        return self.array


def test_one_bad_picture_fails_its_own_request_only(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    utils: Any = types.ModuleType("triton_python_backend_utils")
    utils.get_input_tensor_by_name = lambda request, name: request
    utils.Tensor = lambda name, array: (name, array)
    utils.TritonError = str
    utils.InferenceResponse = lambda output_tensors=(), error=None: error or dict(output_tensors)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    from dpm_edge.interop.triton_model import TritonPythonModel

    encoded = encoded_people(4)
    model = TritonPythonModel()
    config = {"parameters": {"threads": {"string_value": "1"}}}
    model.initialize(
        {"model_config": json.dumps(config), "model_repository": str(repository / MODEL), "model_version": "1"}
    )
    requests = [FakeRequest(*encoded[:2]), FakeRequest(encoded[2], encoded[0][:50]), FakeRequest(encoded[3])]
    first, bad, last = model.execute(requests)
    assert isinstance(bad, str) and "crop 1" in bad
    wanted = own_answers(repository / MODEL / "1" / "engine", encoded)
    np.testing.assert_allclose(first["feature"], wanted["feature"][:2], atol=2e-6)
    np.testing.assert_allclose(last["feature"], wanted["feature"][3:], atol=2e-6)
    assert last["visibility"].shape == (1, 1)
    (refusal,) = model.execute([FakeRequest(b"x")])
    assert isinstance(refusal, str) and "got crop 0 of 1 bytes, which is not a picture" in refusal
    model.finalize()
    assert "closed" in model.execute([FakeRequest(encoded[0])])[0]


def test_manifest_of_the_copy_is_whole(repository: Path) -> None:
    folder = repository / MODEL / "1" / "engine"
    Manifest.read(folder).check_files(folder)
