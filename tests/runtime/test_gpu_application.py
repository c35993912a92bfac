"""An engine inside an application that owns CUDA already: its contexts, streams and arrays; and what may be opened."""

from __future__ import annotations

import ctypes
import inspect
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import fake_cuda
import fake_plans
import gpu_machine
import numpy as np
import pytest
import tiny_engine
from cuda.bindings import driver as real
from fake_cuda import OTHER, FakeCuda
from gpu_machine import CARD, Machine

from dpm_edge import Engine
from dpm_edge.errors import EngineError, ImageError, MissingLibrary
from dpm_edge.files import sha256
from dpm_edge.manifest import Manifest
from dpm_edge.runtime import trust
from dpm_edge.runtime.gpu.arrays import stream_handle

FRAME = np.random.default_rng(5).integers(0, 256, (90, 70, 3), np.uint8)
BOXES = [[3, 4, 40, 80], [30, 0, 70, 90]]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machine]:
    made = gpu_machine.make(tmp_path, monkeypatch)
    monkeypatch.setenv("DPM_EDGE_TRUST", str(tmp_path / "trusted.json"))
    yield made
    assert made.cuda.violations == []


@pytest.fixture
def wanted(tmp_path: Path) -> np.ndarray:
    """What the CPU engine makes of the boxes."""
    with Engine.load(tiny_engine.write_engine(tmp_path / "cpu")) as engine:
        return engine.embed(FRAME, BOXES).features


class InterfaceArray:
    """A frame on the GPU that speaks `__cuda_array_interface__`, as pycuda's and numba's arrays do."""

    def __init__(self, address: int, shape: tuple[int, ...] = FRAME.shape, **told: Any) -> None:
        self.shape = shape
        data = {"data": (address, False), "shape": shape, "typestr": "|u1", "strides": None, "version": 3}
        self.__cuda_array_interface__ = {**data, **told}


class DlpackArray:
    """A frame on the GPU that speaks DLPack, as torch's and CuPy's arrays do; `seen` are the streams it was given."""

    def __init__(self, array: np.ndarray, address: int, device: tuple[int, int] = (2, 0), offset: int = 0) -> None:
        self.shape, self._device, self.seen = array.shape, device, []

        pointer, small = ctypes.c_void_p, ctypes.c_int32
        kinds = {
            "data": pointer, "kind": small, "index": small, "ndim": small, "code": ctypes.c_uint8,
            "bits": ctypes.c_uint8, "lanes": ctypes.c_uint16, "shape": pointer, "strides": pointer,
            "offset": ctypes.c_uint64, "manager": pointer, "deleter": pointer,
        }  # fmt: skip
        structure = type("DLManagedTensor", (ctypes.Structure,), {"_fields_": list(kinds.items())})
        numbers = ctypes.c_int64 * array.ndim
        self._shape, self._strides = numbers(*array.shape), numbers(*array.strides)
        at = [ctypes.addressof(one) for one in (self._shape, self._strides)]
        bits = 8 * array.dtype.itemsize
        self._tensor = structure(address - offset, *device, array.ndim, 1, bits, 1, *at, offset, None, None)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        self.seen.append(stream)
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        return new(ctypes.addressof(self._tensor), b"dltensor", None)


def test_a_frame_on_the_gpu_is_taken_through_either_interface(machine: Machine, wanted: np.ndarray) -> None:
    address = machine.cuda.put(FRAME)
    with machine.open() as engine:
        dlpack = DlpackArray(FRAME, address, offset=16)
        for frame in (InterfaceArray(address), InterfaceArray(address, strides=(210, 3, 1)), dlpack):
            before = machine.cuda.count("cuMemcpyHtoDAsync")
            np.testing.assert_allclose(engine.embed(frame, BOXES).features, wanted, atol=2e-3)
            assert machine.cuda.count("cuMemcpyHtoDAsync") == before + 2, "boxes and normalisation, not the frame"
        assert len(dlpack.seen) == 1 and dlpack.seen[0] in machine.cuda.streams, "the producer was told our stream"


def test_padded_rows_of_a_frame_on_the_gpu_are_stepped_over(machine: Machine, wanted: np.ndarray) -> None:
    padded = np.zeros((90, 96, 3), np.uint8)
    padded[:, :70] = FRAME
    address = machine.cuda.put(padded)
    with machine.open() as engine:
        for frame in (InterfaceArray(address, strides=(288, 3, 1)), DlpackArray(padded[:, :70], address)):
            np.testing.assert_allclose(engine.embed(frame, BOXES).features, wanted, atol=2e-3)


@pytest.mark.parametrize("told", ["stream=", "the interface's own"])
@pytest.mark.parametrize("way", ["embed", "submit"])
def test_the_gpu_waits_for_the_stream_that_makes_the_frame(
    machine: Machine, wanted: np.ndarray, told: str, way: str
) -> None:
    """Nothing the application enqueued has run when the engine is called, as on a GPU that is behind."""
    address = machine.cuda.put(np.zeros_like(FRAME))
    machine.cuda.cuCtxPushCurrent(fake_cuda.PRIMARY)
    (_, stream) = machine.cuda.cuStreamCreate(1)

    def produce() -> None:
        machine.cuda.view(address, FRAME.shape, np.uint8)[:] = FRAME

    with machine.open() as engine:
        for _ in range(3):
            machine.cuda.view(address, FRAME.shape, np.uint8)[:] = 0
            machine.cuda.enqueue(stream, produce)
            if told == "stream=":
                frame, how = InterfaceArray(address), {"stream": stream}
            else:
                frame, how = InterfaceArray(address, stream=stream), {}
            got = engine.embed(frame, BOXES, **how) if way == "embed" else engine.submit(frame, BOXES, **how).result(60)
            np.testing.assert_allclose(got.features, wanted, atol=2e-3)
        machine.cuda.view(address, FRAME.shape, np.uint8)[:] = 0
        machine.cuda.enqueue(stream, produce)
        unsaid = engine.embed(InterfaceArray(address), BOXES).features
        assert not np.allclose(unsaid, wanted, atol=2e-3), "this test cannot tell waiting from luck"
    machine.cuda.cuStreamSynchronize(stream)


def test_a_mark_of_a_stream_is_used_again(machine: Machine) -> None:
    address = machine.cuda.put(FRAME)
    with machine.open() as engine:
        engine.embed(InterfaceArray(address), BOXES, stream=0)
        before = machine.cuda.count("cuEventCreate")
        for _ in range(20):
            engine.embed(InterfaceArray(address), BOXES, stream=0)
        assert machine.cuda.count("cuEventCreate") == before


def test_streams_of_other_libraries_are_understood() -> None:
    class Core:
        def __cuda_stream__(self) -> tuple[int, int]:
            return 0, 71

    named = {"cuda_stream": 72, "handle": 73, "ptr": 74}
    others = [type("Stream", (), {name: value})() for name, value in named.items()]
    assert [stream_handle(one) for one in (70, Core(), *others, real.CUstream(75))] == [70, 71, 72, 73, 74, 75]
    for wrong in ("default", None, True, object()):
        with pytest.raises(EngineError, match="to be a CUstream as int, or a stream of torch"):
            stream_handle(wrong)


def test_the_applications_contexts_stay_as_they_are(machine: Machine) -> None:
    machine.cuda.cuCtxPushCurrent(OTHER)
    address = machine.cuda.put(FRAME)
    engine = machine.open()
    assert machine.cuda.stack == [OTHER]
    engine.embed(InterfaceArray(address), BOXES)
    with pytest.raises(ImageError):
        engine.embed(InterfaceArray(1234), BOXES)
    engine.close()
    assert machine.cuda.stack == [OTHER]
    assert machine.cuda.alive() == {"memory": 1, "streams": 0, "events": 0, "graphs": 0, "modules": 0, "contexts": 0}
    assert machine.cuda.count("cuCtxCreate", "cuDevicePrimaryCtxReset") == 0


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        (lambda at: InterfaceArray(at, typestr="<f4"), "expected a frame of uint8 .*got type <f4"),
        (lambda at: InterfaceArray(at, strides=(3, 210, 1)), "pixels side by side"),
        (lambda at: InterfaceArray(at, shape=(90, 70, 4)), r"expected a frame .* got \(90, 70, 4\)"),
        (lambda at: InterfaceArray(at, shape=(90, 70)), r"expected a frame .* got \(90, 70\)"),
        (lambda at: InterfaceArray(0x10), "expected a frame in memory of GPU 0"),
        (lambda at: DlpackArray(FRAME.astype(np.uint16), at), "expected a frame of uint8.*16 bits"),
        (lambda at: DlpackArray(FRAME, at, device=(2, 1)), "expected a frame on GPU 0, .* got one on GPU 1"),
    ],
)
def test_what_is_no_frame_on_this_gpu_is_refused(machine: Machine, frame: Any, words: str) -> None:
    address = machine.cuda.put(FRAME)
    with machine.open() as engine, pytest.raises(ImageError, match=words):
        engine.embed(frame(address), BOXES)


def test_memory_of_a_context_of_the_applications_own_making_is_refused(machine: Machine) -> None:
    own, pooled = machine.cuda.put(FRAME, context=OTHER), machine.cuda.put(FRAME, context=0)
    with machine.open() as engine:
        with pytest.raises(ImageError, match=r"pycuda\.autoprimaryctx"):
            engine.embed(InterfaceArray(own), BOXES)
        assert len(engine.embed(InterfaceArray(pooled), BOXES)) == 2


def test_a_cpu_engine_says_that_it_cannot_read_a_frame_on_a_gpu(machine: Machine, tmp_path: Path) -> None:
    with Engine.load(tiny_engine.write_engine(tmp_path / "cpu")) as engine:
        with pytest.raises(ImageError, match=r"a InterfaceArray that lies on a GPU.*Copy it to a numpy array"):
            engine.embed(InterfaceArray(machine.cuda.put(FRAME)), BOXES)
        with pytest.raises(EngineError, match=r"expected an engine on a GPU .* which runs on CPU"):
            engine.embed(FRAME, BOXES, stream=0)


@pytest.mark.parametrize(
    ("card", "here", "words"),
    [
        ({"name": "NVIDIA H100"}, {}, r"GPU 'NVIDIA H100' of compute capability 8\.7 .* here is 'Orin' of 8\.7"),
        ({"compute_capability": "9.0"}, {}, r"compute capability 9\.0 .*none\), here is 'Orin' of 8\.7"),
        (
            {"compute_capability": "8.9", "hardware_compatibility": "same_compute_capability"},
            {},
            "here is 'Orin' of 8.7",
        ),
        ({"hardware_compatibility": "ampere_plus"}, {"capability": (7, 5)}, r"ampere_plus\), here is 'Orin' of 7\.5"),
        ({"tensorrt": "10.3.1"}, {}, r"TensorRT 10\.3\.1, here is 10\.3\.0"),
        ({"tensorrt": "10.2.9"}, {}, r"TensorRT 10\.2\.9, here is 10\.3\.0"),
        ({"tensorrt": "10.4", "version_compatible": True}, {}, r"TensorRT 10\.4, here is 10\.3\.0"),
        ({"tensorrt": "9.1", "version_compatible": True}, {}, r"TensorRT 9\.1, here is 10\.3\.0"),
        ({"driver": "13.0"}, {}, r"driver 13\.0, here is 12\.6"),
    ],
)
def test_a_plan_of_another_machine_is_refused_before_it_is_read(
    machine: Machine, card: dict, here: dict, words: str
) -> None:
    for name, value in here.items():
        setattr(machine.cuda, name, value)
    with pytest.raises(EngineError, match=words) as refused:
        machine.open(gpu=replace(CARD, **card))
    command = (
        rf"dpm-edge build {re.escape(str(machine.folder))}/engine/model.onnx -o .* --backend tensorrt --precision fp32"
    )
    assert re.search(command, str(refused.value))
    assert machine.trt.deserialised == 0
    assert machine.cuda.retained == 0


@pytest.mark.parametrize(
    ("card", "capability"),
    [
        ({"hardware_compatibility": "ampere_plus", "compute_capability": "8.0", "name": "A100"}, (8, 7)),
        ({"hardware_compatibility": "same_compute_capability", "name": "Orin NX"}, (8, 7)),
        ({"tensorrt": "10.1", "version_compatible": True}, (8, 7)),
        ({"driver": "12.2"}, (8, 7)),
        ({"driver": ""}, (8, 7)),
    ],
)
def test_a_plan_that_was_built_for_several_machines_opens(machine: Machine, card: dict, capability: tuple) -> None:
    machine.cuda.capability = capability
    machine.open(gpu=replace(CARD, **card)).close()


def test_a_plan_with_a_plugin_wants_the_same_library(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "libdpm_tensorrt_plugin.so"
    library.write_bytes(b"plugin")
    card = replace(CARD, plugin=sha256(library))
    monkeypatch.delenv("DPM_EDGE_PLUGIN_LIBRARY", raising=False)
    with pytest.raises(MissingLibrary, match="cmake"):
        machine.open(gpu=card)
    monkeypatch.setenv("DPM_EDGE_PLUGIN_LIBRARY", str(library))
    machine.open(gpu=card).close()
    assert machine.trt.plugins == [str(library)]
    library.write_bytes(b"another")
    with pytest.raises(EngineError, match=rf"plugin library {card.plugin[:12]}…, here is {sha256(library)[:12]}"):
        machine.open(gpu=card)
    assert machine.trt.plugins == [str(library)]


def test_a_stripped_plan_gets_its_weights_from_the_graph_beside_it(machine: Machine) -> None:
    images = tiny_engine.people(2)
    with machine.open(plan=b"stripped 0", gpu=replace(CARD, weights="stripped")) as engine:
        np.testing.assert_allclose(engine.embed(images).features, tiny_engine.expected(images)[0], atol=2e-3)
    with pytest.raises(EngineError, match="NaN"):
        machine.open(plan=b"stripped 0")


def test_a_plan_is_opened_only_when_somebody_vouches_for_it(machine: Machine) -> None:
    folder = machine.engine()
    with pytest.raises(EngineError, match=r"is code, and its sha256 .* dpm-edge trust .*trusted=True"):
        Engine.load(folder)
    assert machine.trt.deserialised == 0
    trust.add(folder)
    Engine.load(folder).close()


def test_what_is_no_plan_and_what_its_manifest_does_not_say_are_refused(machine: Machine) -> None:
    with pytest.raises(
        EngineError, match=r"tensorrt 10\.3\.0, got .*engine\.plan: magic tag does not match\. .*dpm-edge build"
    ):
        machine.open(plan=b"PK rubbish")
    with pytest.raises(EngineError, match=r"to be what its manifest says.*2 profiles, got"):
        machine.open(profiles=gpu_machine.BatchRange.parse_all("1:1:1,2:4:8"))
    with pytest.raises(EngineError, match=r"to be what its manifest says, feature, .*logits"):
        machine.open(outputs=("feature", "mask", "logits"))
    with pytest.raises(EngineError, match="expected the GPU of the plan in the manifest"):
        machine.open(gpu=None)
    assert machine.cuda.retained == 0


def test_a_machine_without_a_gpu_or_that_many(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = machine.engine()
    with pytest.raises(EngineError, match="expected a GPU below 1, the number of them here, got GPU 1"):
        Engine.load(folder, device="GPU.1", trusted=True)
    with pytest.raises(EngineError, match=r"for tensorrt.*got 'CPU'"):
        Engine.load(folder, device="CPU", trusted=True)
    monkeypatch.setattr("dpm_edge.runtime.gpu.device.cuda_driver", lambda: real)
    if os.path.exists("/dev/nvidiactl"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineError, match="expected a GPU, got none that can be used"):
        Engine.load(folder, trusted=True)


def test_every_call_of_the_fake_driver_is_the_real_ones() -> None:
    """Name and number of parameters, as the bindings' own signatures tell them."""
    names = [name for name in vars(FakeCuda) if name.startswith("cu")]
    assert len(names) > 30
    for name in names:
        signature = getattr(real, name).__doc__.strip().splitlines()[0]
        inside = signature[signature.index("(") + 1 : signature.rindex(")")]
        wanted = len([part for part in inside.split(",") if part.strip()])
        parameters = list(inspect.signature(vars(FakeCuda)[name]).parameters.values())[1:]
        if not any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
            assert len(parameters) == wanted, signature
        elif name == "cuLaunchKernel":
            assert wanted == 11


def test_the_runtime_uses_no_call_that_the_fake_driver_lacks() -> None:
    for path in (Path(__file__).parents[2] / "dpm_edge" / "runtime" / "gpu").glob("*.py"):
        used = set(re.findall(r"\bcu[A-Z]\w+", path.read_text()))
        assert {name for name in used if not hasattr(FakeCuda, name)} == set(), path.name


def test_every_name_of_the_fake_tensorrt_is_a_real_ones() -> None:
    """TensorRT for RTX has TensorRT's names; tests/build holds those of four versions against what is used."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    classes = {
        "Runtime": fake_plans.Runtime, "Refitter": fake_plans.Refitter, "ICudaEngine": fake_plans.Engine,
        "OnnxParserRefitter": fake_plans.OnnxParserRefitter, "IExecutionContext": fake_plans.Context,
    }  # fmt: skip
    for name, fake in classes.items():
        public = [n for n in vars(fake) if not n.startswith("_") and n != "load_library"]
        assert [n for n in public if not hasattr(getattr(trt, name), n)] == [], name
    assert hasattr(trt.IPluginRegistry, "load_library")
    for kind in (fake_plans.DataType, fake_plans.ExecutionContextAllocationStrategy):
        assert [m.name for m in kind if not hasattr(getattr(trt, kind.__name__), m.name)] == []


def test_the_manifest_of_the_fake_engine_is_read_as_any(machine: Machine) -> None:
    manifest = Manifest.read(machine.engine())
    assert manifest.gpu == CARD and manifest.profiles == gpu_machine.PROFILES


def test_the_real_library_refuses_a_plan_with_its_own_words(tmp_path: Path) -> None:
    """TensorRT for RTX, as far as it goes without a GPU: no plan is deserialised, and it says why."""
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx-cu13 is not installed")
    from dpm_edge.runtime.gpu.plan import LoadedPlan

    folder = tiny_engine.write_engine(tmp_path / "engine")
    (folder / "engine.plan").write_bytes(b"no plan" * 100)
    manifest = replace(Manifest.read(folder), backend="tensorrt-rtx", engine="engine.plan")
    words = rf"tensorrt-rtx {trt.__version__}, got a refusal of .*engine\.plan: \w.*dpm-edge build"
    with pytest.raises(EngineError, match=words) as told:
        LoadedPlan(trt, manifest, folder, None)
    assert "it gives no reason" not in str(told.value)
