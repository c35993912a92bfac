"""The TensorRT builder: what it asks of the library (a recording fake), and real builds with TensorRT for RTX."""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import fake_tensorrt
import pytest

from dpm_edge import gpu
from dpm_edge.build import PlanOptions, build, portable
from dpm_edge.build.trt import builder, write_plan
from dpm_edge.build.trt.options import LOW_MEMORY
from dpm_edge.env import installed
from dpm_edge.errors import BuildRefused, EngineError, MissingLibrary, SpecError
from dpm_edge.manifest import BatchRange, Manifest
from dpm_edge.runtime.gpu import library
from dpm_edge.spec import Preprocessing

ORIN = gpu.Gpu(name="Orin", compute_capability="8.7", memory=64 << 30, integrated=True, driver="12.6", cuda="12.6")
PRE = Preprocessing(height=64, width=64)
PROFILES = BatchRange.parse_all("1:1:1,2:8:64")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Any:
    return use(monkeypatch, fake_tensorrt.module())


def use(monkeypatch: pytest.MonkeyPatch, module: Any, card: gpu.Gpu | None = ORIN) -> Any:
    """Put a fake TensorRT and a fake GPU in place."""
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr(builder, "probe", lambda: card)
    return module


def plan(portable_path: Path, folder: Path, options: PlanOptions | None = None, **more: Any) -> Any:
    """A plan of the tiny network by the fake."""
    options = options or PlanOptions(timing_cache=None)
    model = portable.read(portable_path).model
    return write_plan(model, folder, PRE, PROFILES, "tensorrt", options, quiet=True, **more)


@pytest.mark.parametrize(("backend", "advice"), [("tensorrt", "nvidia-jetpack"), ("tensorrt-rtx", "tensorrt-rtx-cu13")])
def test_missing_library_names_the_command(
    backend: str, advice: str, portable_path: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library.MODULES[backend], None)
    with pytest.raises(MissingLibrary, match=advice):
        build(portable_path, tmp_path / "engine", backend=backend, calibrate=crops, progress=False)
    assert not any(tmp_path.iterdir())


def test_the_network_is_strongly_typed_and_has_every_profile(fake: Any, portable_path: Path, tmp_path: Path) -> None:
    made = plan(portable_path, tmp_path)
    assert fake.fake_network.flags == 1 << fake_tensorrt.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    shapes = [profile.fake_shapes["images"] for profile in fake.fake_config.fake_profiles]
    assert shapes == [((1, 3, 64, 64),) * 3, ((2, 3, 64, 64), (8, 3, 64, 64), (64, 3, 64, 64))]
    assert fake.fake_config.fake_flags == set() and fake.fake_config.fake_pools == {}
    assert fake.fake_config.builder_optimization_level == 3 and fake.fake_config.max_aux_streams is None
    assert (tmp_path / made.file).read_bytes() == b"plan of 10.3.0"
    assert (tmp_path / "engine.onnx").is_file(), "the typed graph stays beside the plan"


def test_what_the_manifest_says_of_a_plan(fake: Any, portable_path: Path, tmp_path: Path) -> None:
    """Layers are counted inside the plan: two float16, one each of the others, integers apart."""
    made = plan(portable_path, tmp_path, PlanOptions(timing_cache=tmp_path / "cache"))
    assert made.device == "Orin sm_87"
    card = made.card
    assert (card.name, card.compute_capability, card.tensorrt, card.driver) == ("Orin", "8.7", "10.3.0", "12.6")
    assert card.layers == {"bf16": 1, "fp16": 2, "fp32": 1, "fp8": 1, "int8": 1, "other": 1}
    assert card.timing_cache == "orin-sm8.7-tensorrt-10.3.0-driver-12.6"
    assert (card.weights, card.hardware_compatibility, card.version_compatible) == ("whole", "none", False)
    resources = made.resources
    assert resources["plan_bytes"] == 14 and resources["device_memory_bytes"] == [1000, 2000]
    assert (resources["layers_of"], resources["plan_layers"], resources["network_layers"]) == ("plan", 7, 4)


def test_without_a_gpu_the_layers_are_those_of_the_network(
    portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, fake_tensorrt.module(), card=None)
    made = plan(portable_path, tmp_path)
    assert made.device == "GPU" and made.resources["layers_of"] == "network"
    assert made.card.layers == {"fp16": 2, "fp32": 1, "other": 1}


def test_flags_and_limits(fake: Any, portable_path: Path, tmp_path: Path) -> None:
    options = PlanOptions(
        workspace=300,
        level=5,
        timing_cache=None,
        version_compatible=True,
        hardware_compatibility="ampere_plus",
        strip_weights=True,
    )
    made = plan(portable_path, tmp_path, options)
    asked = fake.fake_config
    assert {flag.name for flag in asked.fake_flags} == {
        "VERSION_COMPATIBLE",
        "EXCLUDE_LEAN_RUNTIME",
        "STRIP_PLAN",
        "REFIT",
    }
    assert asked.fake_pools == {fake_tensorrt.MemoryPoolType.WORKSPACE: 300 << 20}
    assert asked.builder_optimization_level == 5
    assert asked.hardware_compatibility_level == fake_tensorrt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert made.card.weights == "stripped" and made.card.version_compatible
    assert options.arguments() == (
        *("--workspace", "300", "--opt-level", "5", "--version-compatible"),
        *("--hardware-compatibility", "ampere_plus", "--strip-weights"),
    )


def test_low_memory_gives_way_to_what_the_user_asks_for(fake: Any, portable_path: Path, tmp_path: Path) -> None:
    plan(portable_path, tmp_path, PlanOptions(low_memory=True, timing_cache=None))
    pools = fake.fake_config.fake_pools
    assert pools[fake_tensorrt.MemoryPoolType.WORKSPACE] == LOW_MEMORY["workspace"] << 20
    assert pools[fake_tensorrt.MemoryPoolType.TACTIC_DRAM] == LOW_MEMORY["tactic_memory"] << 20
    assert fake.fake_config.max_aux_streams == 0
    assert fake.fake_config.builder_optimization_level == LOW_MEMORY["level"]
    plan(portable_path, tmp_path, PlanOptions(low_memory=True, workspace=64, level=4, timing_cache=None))
    assert fake.fake_config.fake_pools[fake_tensorrt.MemoryPoolType.WORKSPACE] == 64 << 20
    assert fake.fake_config.builder_optimization_level == 4


def test_a_compatibility_that_this_version_lacks_is_named(fake: Any, portable_path: Path, tmp_path: Path) -> None:
    options = PlanOptions(hardware_compatibility="same_compute_capability", timing_cache=None)
    with pytest.raises(SpecError, match=r"TensorRT 10\.3\.0 has no hardware compatibility 'same_compute_capability'"):
        plan(portable_path, tmp_path, options)


@pytest.mark.parametrize("wrong", [{"workspace": 0}, {"level": 6}, {"level": -1}, {"hardware_compatibility": "ampere"}])
def test_options_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(SpecError):
        PlanOptions(**wrong)


def test_the_plugin_is_loaded_and_its_hash_is_kept(fake: Any, portable_path: Path, tmp_path: Path) -> None:
    import hashlib

    library_file = tmp_path / "libplugin.so"
    library_file.write_bytes(b"code")
    made = plan(portable_path, tmp_path, plugin=library_file)
    assert fake.fake_registry.fake_libraries == [str(library_file)]
    assert made.card.plugin == hashlib.sha256(b"code").hexdigest()
    assert f"--dynamicPlugins={library_file}" in made.trtexec
    with pytest.raises(EngineError, match=r"cannot load the plugin library .*foreign"):
        plan(portable_path, tmp_path, plugin=tmp_path / "foreign.so")


def test_the_parsers_and_the_builders_reasons_are_in_the_error(
    portable_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, fake_tensorrt.module(parses=False))
    with pytest.raises(EngineError, match=r"tensorrt 10\.3\.0 cannot parse the graph: no such operator .*block3.gelu"):
        plan(portable_path, tmp_path)
    use(monkeypatch, fake_tensorrt.module(builds=False))
    with pytest.raises(EngineError, match=r"built no engine \(no implementation for node block3.gelu\)$"):
        plan(portable_path, tmp_path)


def test_trtexec_builds_and_times_the_same_plan(fake: Any, portable_path: Path, tmp_path: Path) -> None:
    """By hand, from trtexec's own help."""
    made = plan(portable_path, tmp_path, PlanOptions(workspace=512, level=4, timing_cache=None, strip_weights=True))
    assert made.trtexec.split() == [
        *("trtexec", "--onnx=engine.onnx", "--stronglyTyped"),
        *(
            "--profile=0",
            "--minShapes=images:1x3x64x64",
            "--optShapes=images:1x3x64x64",
            "--maxShapes=images:1x3x64x64",
        ),
        *("--profile=1", "--minShapes=images:2x3x64x64", "--optShapes=images:8x3x64x64"),
        *("--maxShapes=images:64x3x64x64", "--memPoolSize=workspace:512", "--builderOptimizationLevel=4", "--refit"),
        *("--useProfile=1", "--shapes=images:8x3x64x64", "--useCudaGraph", "--noDataTransfers", "--useSpinWait"),
    ]


def test_ctrl_c_stops_the_builder_and_leaves_nothing(
    portable_path: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real SIGINT to this process while the fake builder works through a million steps."""
    step = threading.Event()
    use(monkeypatch, fake_tensorrt.module(step=step))

    def interrupt() -> None:
        step.wait(60)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        build(portable_path, tmp_path / "engine", backend="tensorrt", calibrate=crops, progress=False)
    assert not any(tmp_path.iterdir())
    assert not [thread for thread in threading.enumerate() if thread.name == "dpm-edge build"]


def test_a_whole_build_with_the_fake(
    fake: Any, portable_path: Path, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The manifest of a plan that cannot be opened here, kept by force, and the command that rebuilds it."""
    from dpm_edge.cli.engine import print_manifest
    from dpm_edge.manifest import rebuild_advice
    from dpm_edge.runtime import trust

    out = tmp_path / "engine"
    arguments: dict[str, Any] = {
        "backend": "tensorrt",
        "precision": "fp16",
        "batch": "1:1:1,2:8:64",
        "calibrate": crops,
    }
    options = PlanOptions(level=2, low_memory=True)
    with pytest.raises(BuildRefused, match="not verified"):
        build(portable_path, out, plan=options, progress=False, **arguments)
    assert not out.exists()
    manifest = build(portable_path, out, plan=options, force=True, progress=False, **arguments)
    assert manifest == Manifest.read(out)
    assert manifest.profiles == PROFILES and manifest.batch == BatchRange(low=1, best=8, high=64)
    print_manifest(manifest, out, as_json=False)
    shown = capsys.readouterr().out
    assert "Orin, compute capability 8.7, tensorrt 10.3.0, driver 12.6" in shown and manifest.trtexec in shown
    assert "1:1:1, 2:8:64; device memory 0 MB, 0 MB" in shown and "2 fp16" in shown
    assert manifest.device == "Orin sm_87" and manifest.gpu is not None and manifest.trtexec.startswith("trtexec")
    assert set(manifest.files) == {"engine.onnx", "engine.plan", "golden.npz", "model.onnx"}
    assert manifest.verification["forced"] and str(out) not in manifest.options
    assert rebuild_advice(out).endswith(
        "--backend tensorrt --precision fp16 --batch 1:1:1,2:8:64 --opt-level 2 --low-memory"
    )
    assert [one.sha256 for one in trust.listed()] == [manifest.files["engine.plan"]], "built here: may be opened here"


@pytest.mark.slow
@pytest.mark.skipif(
    not installed("tensorrt_rtx"), reason="tensorrt-rtx-cu13 is not installed (95 MB, not in the dev extra)"
)
def test_tensorrt_rtx_parses_and_builds_without_a_gpu(portable_path: Path, crops: Path, tmp_path: Path) -> None:
    """What it builds cannot run without a GPU: the build is refused as unverified, and kept only by force."""
    arguments: dict[str, Any] = {
        "backend": "tensorrt-rtx",
        "precision": "fp16",
        "batch": "1:1:1,2:4:8",
        "calibrate": crops,
        "plan": PlanOptions(workspace=256, level=1),
        "progress": False,
    }
    if gpu.probe() is None:
        with pytest.raises(BuildRefused, match="not verified"):
            build(portable_path, tmp_path / "engine", **arguments)
    manifest = build(portable_path, tmp_path / "engine", force=True, **arguments)
    assert manifest.engine == "engine.plan" and (tmp_path / "engine" / "engine.plan").stat().st_size > 10_000
    assert manifest.gpu is not None and manifest.gpu.layers["fp16"] > 20
    assert manifest.resources["network_layers"] == sum(manifest.gpu.layers.values())


@pytest.mark.slow
@pytest.mark.skipif(
    not installed("tensorrt_rtx"), reason="tensorrt-rtx-cu13 is not installed (95 MB, not in the dev extra)"
)
def test_ctrl_c_stops_tensorrt_rtx_at_its_next_step(portable_path: Path, tmp_path: Path) -> None:
    """The real builder, its real progress monitor, and a real SIGINT at the tenth step."""
    from dpm_edge.build.trt.monitor import progress_monitor, stoppable

    trt = library.load_library("tensorrt-rtx")
    log = library.collecting_logger(trt)
    made = trt.Builder(log)
    network = made.create_network(0)
    assert trt.OnnxParser(network, log).parse(portable.read(portable_path).model.SerializeToString())
    config = made.create_builder_config()
    profile = made.create_optimization_profile()
    profile.set_shape("images", (1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 64, 64))
    config.add_optimization_profile(profile)
    monitor = progress_monitor(trt, quiet=True)
    steps = 0
    real = type(monitor).step_complete

    def counting(self: Any, phase_name: str, step: int) -> bool:
        nonlocal steps
        steps += 1
        if steps == 10:
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(0.5)  # the main thread hears it and asks for the end
        return real(self, phase_name, step)

    type(monitor).step_complete = counting
    config.progress_monitor = monitor
    results = []
    with pytest.raises(KeyboardInterrupt):
        stoppable(lambda: results.append(made.build_serialized_network(network, config)), monitor.stop)
    assert results == [None] and steps < 40
