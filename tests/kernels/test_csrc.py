"""The C library, its CTest and the TensorRT plugin: built as a user builds them, run against the stand-in driver."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpm_edge.kernels import aot
from dpm_edge.kernels.embed import write_sources

ROOT = Path(__file__).resolve().parents[2]
needs_tools = pytest.mark.skipif(
    shutil.which("cmake") is None or shutil.which("ninja") is None or shutil.which("cc") is None,
    reason="needs cmake, ninja and a C compiler",
)


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, f"{command}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(compiled_kernels: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CMake build of the library, tests and example, without the plugin."""
    build = tmp_path_factory.mktemp("build")
    said = run(
        *("cmake", "-S", ROOT, "-B", build, "-G", "Ninja", f"-DDPM_KERNELS_DIR={compiled_kernels}"),
        *(f"-DPython3_EXECUTABLE={sys.executable}", "-DTENSORRT_INCLUDE_DIR=", "-DCMAKE_C_FLAGS=-Werror"),
    )
    assert "TensorRT plugin: not built, needs NvInfer.h" in said
    run("cmake", "--build", build)
    return build


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_tools
def test_ctest_passes_against_the_stand_in_driver(built: Path) -> None:
    said = run("ctest", "--test-dir", built, "--output-on-failure")
    assert re.search(r"100% tests passed(, 0 tests failed)? out of 4", said), said  # the wording depends on CTest


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_tools
def test_the_library_needs_no_cuda_to_load_and_exports_its_header_alone(built: Path) -> None:
    library = next(built.glob("libdpm_kernels.so.0.*"))
    needed = run("readelf", "-d", library)
    assert "libcuda" not in needed and "libcudart" not in needed and "libstdc++" not in needed
    symbols = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    header = (ROOT / "kernels/csrc/dpm_kernels.h").read_text()
    assert symbols and all(name.startswith("dpm_") and f"{name}(" in header for name in symbols), symbols
    done = subprocess.run([built / "camera"], capture_output=True, text=True)
    if done.returncode:  # no GPU here: the example says so instead of failing to start
        assert "camera: " in done.stderr and ("NVIDIA driver" in done.stderr or "CUDA" in done.stderr)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@needs_tools
@pytest.mark.skipif(
    not os.environ.get("DPM_TENSORRT_INCLUDE"),
    reason="DPM_TENSORRT_INCLUDE names no folder with NvInfer.h (TensorRT's headers are in no Python package)",
)
def test_the_plugin_builds_and_links_to_neither_tensorrt_nor_cuda(compiled_kernels: Path, tmp_path: Path) -> None:
    run(
        *("cmake", "-S", ROOT, "-B", tmp_path, "-G", "Ninja", f"-DDPM_KERNELS_DIR={compiled_kernels}"),
        *(f"-DPython3_EXECUTABLE={sys.executable}", f"-DTENSORRT_INCLUDE_DIR={os.environ['DPM_TENSORRT_INCLUDE']}"),
    )
    run("cmake", "--build", tmp_path)
    assert "100% tests passed" in run("ctest", "--test-dir", tmp_path, "-R", "test_plugin", "--output-on-failure")
    plugin = tmp_path / "libdpm_tensorrt_plugin.so"
    needed = run("readelf", "-d", plugin)
    assert "libnvinfer" not in needed and "libcuda" not in needed
    exported = run("nm", "-D", "--defined-only", plugin)
    assert " T getCreators" in exported and " T setLoggerFinder" in exported
    undefined = run("nm", "-D", "--undefined-only", plugin)
    assert not [line for line in undefined.splitlines() if "nvinfer" in line.lower() or " cu" in line]


REGISTRY_TEST = """
import array, sys, tensorrt_lean as trt
registry = trt.get_plugin_registry()
assert registry.get_creator("DpmMaskedSimilarity", "1", "dpm_edge") is None
handle = registry.load_library(sys.argv[1])
grid = {"height": array.array("i", [16]), "width": array.array("i", [8])}
for name, numbers in (("DpmMaskedSimilarity", {}), ("DpmMaskHead", grid)):
    creator = registry.get_creator(name, "1", "dpm_edge")
    assert [f.name for f in creator.field_names] == list(numbers), name
    fields = [trt.PluginField(n, number, trt.PluginFieldType.INT32) for n, number in numbers.items()]
    for phase in (trt.TensorRTPhase.BUILD, trt.TensorRTPhase.RUNTIME):
        plugin = creator.create_plugin("node", trt.PluginFieldCollection(fields), phase)
        core = plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
        build = plugin.get_capability_interface(trt.PluginCapabilityType.BUILD)
        assert build.num_outputs == 1
    print(core.plugin_name, core.plugin_version, core.plugin_namespace)
    if numbers:
        assert creator.create_plugin("node", trt.PluginFieldCollection(fields[:1]), phase) is None
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (os.environ.get("DPM_TENSORRT_LEAN_PYTHON") and os.environ.get("DPM_TENSORRT_PLUGIN")),
    reason="DPM_TENSORRT_LEAN_PYTHON (a Python with tensorrt-lean, in an environment of its own, libcuda.so.1 or the "
    "stand-in driver on LD_LIBRARY_PATH) and DPM_TENSORRT_PLUGIN (the built plugin) are not both set",
)
def test_the_real_registry_loads_both_plugins() -> None:
    python, plugin = os.environ["DPM_TENSORRT_LEAN_PYTHON"], os.environ["DPM_TENSORRT_PLUGIN"]
    said = run(python, "-c", REGISTRY_TEST, plugin).splitlines()
    assert said == ["DpmMaskedSimilarity 1 dpm_edge", "DpmMaskHead 1 dpm_edge"]


def test_embedding_names_an_empty_folder_and_an_unknown_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m dpm_edge\.kernels --out"):
        write_sources(tmp_path, tmp_path)
    launch = {
        "variant": "a",
        "sm": 80,
        "entry": "a",
        "grid": "1",
        "block": [32, 1, 1],
        "shared_bytes": 0,
        "constexprs": {},
        "divisible_by_16": [],
        "parameters": [{"name": "X", "type": "fp16"}, *aot.HIDDEN],
    }
    (tmp_path / "a_sm80.json").write_text(json.dumps(launch))
    with pytest.raises(ValueError, match="which the C library has, got 'fp16'"):
        write_sources(tmp_path, tmp_path)


def test_the_committed_report_names_every_kernel_and_target() -> None:
    results = json.loads((ROOT / "benchmarks/results/kernels-aot.json").read_text())
    reported = {(kernel["variant"], kernel["sm"]) for kernel in results["kernels"]}
    declared = {(variant.name, sm) for variant in aot.all_variants() for sm in variant.archs}
    assert reported == declared, "run: " + results["command"]
    text = (ROOT / "docs/kernel-resources.md").read_text()
    assert all(f"| {name} |" in text for name, _ in declared)
