"""Ahead-of-time compilation: what is written, what is refused, and every real kernel on every target."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton", reason="Triton is not installed (extra [gpu])")

from dpm_edge.kernels import aot
from dpm_edge.kernels.resources import MULTIPROCESSORS, blocks_per_multiprocessor
from dpm_edge.kernels.variant import Variant

PRODUCTS = Variant(
    op="test",
    name="products",
    kernel="small_kernel:products",
    signature={"Q": "*fp16", "T": "*fp16", "B": "i32", "N": "i32", "D": "i32", "OUT": "*fp32"}
    | dict.fromkeys(("BLOCK_B", "BLOCK_N", "BLOCK_D"), "constexpr"),
    constexprs={"BLOCK_B": 16, "BLOCK_N": 64, "BLOCK_D": 64},
    num_warps=4,
    num_stages=3,
    divisible_by_16=("Q", "T", "OUT", "D"),
    grid="ceil(N / BLOCK_N), ceil(B / BLOCK_B)",
    tiles={87: {"num_stages": 2}, 90: {"BLOCK_B": 64}, 100: {"BLOCK_B": 128}, 110: {"BLOCK_B": 128}},
    matrix=True,
)


@pytest.fixture(scope="module")
def compiler() -> Iterator[Executor]:
    """A process of its own, because here the interpreter takes the compiler's place (conftest.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", "0")
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # small_kernel
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            yield pool


def compile_small(compiler: Executor, variant: Variant, sm: int, out: Path) -> dict[str, Any]:
    return compiler.submit(aot.compile_one, variant, sm, out).result()


@pytest.mark.parametrize(("sm", "instruction"), [(80, "HMMA"), (87, "HMMA"), (90, "HGMMA"), (110, "UTCHMMA")])
def test_matrix_instructions_and_wide_loads_of_each_generation(
    compiler: Executor, tmp_path: Path, sm: int, instruction: str
) -> None:
    launch = compile_small(compiler, PRODUCTS, sm, tmp_path)
    assert instruction in launch["matrix_instructions"]
    assert launch["widest_load_bytes"] == 16
    assert launch["block"] == [128, 1, 1]
    assert launch["shared_bytes"] >= 2 * 64 * (16 + 64)
    assert [p["name"] for p in launch["parameters"]] == [*PRODUCTS.parameters, "global_scratch", "profile_scratch"]
    text = (tmp_path / f"products_sm{sm}.ptx").read_text()
    assert aot.entry_parameters(text) == 8
    assert text.count("ld.param") >= 5
    assert (tmp_path / f"products_sm{sm}.cubin").read_bytes()[:4] == b"\x7fELF"


def test_the_portable_ptx_is_old_and_of_the_base_architecture(compiler: Executor, tmp_path: Path) -> None:
    launch = compile_small(compiler, PRODUCTS, 80, tmp_path)
    assert (launch["ptx_target"], launch["ptx_version"]) == ("sm_80", "8.2")


@pytest.mark.parametrize(
    ("change", "sm", "words"),
    [
        (
            {"constexprs": {"BLOCK_B": 128, "BLOCK_N": 128, "BLOCK_D": 128}},
            89,
            "bytes of shared memory in a block of sm_89",
        ),
        ({"constexprs": {"BLOCK_B": 256, "BLOCK_N": 128, "BLOCK_D": 16}}, 80, "spills: "),
        ({"load_bytes": 32}, 80, "expected global loads of 32 bytes, got 16"),
        ({"divisible_by_16": ()}, 80, "expected global loads of 16 bytes, got 2"),
        ({"signature": {**PRODUCTS.signature, "BLOCK_D": "constexpr", "D": "*fp16"}}, 80, "does not compile"),
    ],
)
def test_what_breaks_a_limit_is_refused_and_leaves_no_launch_file(
    compiler: Executor, tmp_path: Path, change: dict[str, Any], sm: int, words: str
) -> None:
    with pytest.raises(aot.AotError, match=words):
        compile_small(compiler, replace(PRODUCTS, tiles={}, **change), sm, tmp_path)
    assert not list(tmp_path.glob("*.json"))


def test_a_kernel_without_matrix_instructions_may_not_claim_them(compiler: Executor, tmp_path: Path) -> None:
    scale = Variant(
        op="test",
        name="scale",
        kernel="small_kernel:scale",
        signature={"X": "*fp32", "FACTOR": "fp32", "N": "i32", "OUT": "*fp32", "BLOCK": "constexpr"},
        constexprs={"BLOCK": 1024},
        num_warps=4,
        num_stages=1,
        divisible_by_16=("X", "OUT", "N"),
        grid="ceil(N / BLOCK)",
        matrix=True,
    )
    with pytest.raises(aot.AotError, match="expected tensor-core instructions"):
        compile_small(compiler, scale, 80, tmp_path)
    assert compile_small(compiler, replace(scale, matrix=False), 80, tmp_path)["occupancy"] == 1.0


def test_only_what_is_out_of_date_is_compiled(compiler: Executor, tmp_path: Path) -> None:
    def build(*work: Any) -> list[dict[str, Any]]:
        return compiler.submit(aot.build, *work, tmp_path, 1).result()

    (first,) = build([PRODUCTS], [80])
    written = (tmp_path / "products_sm80.json").stat().st_mtime_ns
    assert build([PRODUCTS], [80]) == [first]
    assert (tmp_path / "products_sm80.json").stat().st_mtime_ns == written
    (second,) = build([replace(PRODUCTS, num_stages=2)], [80])
    assert second["num_stages"] == 2
    assert second["key"] != first["key"]
    with pytest.raises(aot.AotError, match="1 of 2 kernels refused:\nproducts_sm87: does not compile"):
        broken = replace(PRODUCTS, tiles={87: {"BLOCK_N": 48}})
        build([broken], [80, 87])


def test_without_triton_the_command_names_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['triton'] = None\n"
        "import importlib.util; whole = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'triton' else whole(name, *more)\n"
        "from dpm_edge.kernels.aot import main\n"
        f"raise SystemExit(main(['--arch', '80', '--out', {str(tmp_path)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == "error: expected Triton, got a Python without it. Install it: pip install 'dpm-edge[gpu]'\n"


def test_unknown_targets_and_repeated_names_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(aot.AotError, match=r"got \[75\]"):
        aot.build([PRODUCTS], [75], tmp_path)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(aot.AotError, match="Unset the variable"):
        aot.build([PRODUCTS], [80], tmp_path)


OCCUPANCY_C = """
#include <stdio.h>
#include <string.h>
#include <cuda_occupancy.h>
int main(void) {
    int sm, warps, registers, shared, limits[4];
    while (scanf("%d %d %d %d %d %d %d", &sm, &warps, &registers, &shared, limits, limits + 1, limits + 2) == 7) {
        cudaOccDeviceProp device; cudaOccFuncAttributes entry; cudaOccDeviceState state; cudaOccResult result;
        memset(&device, 0, sizeof device); memset(&entry, 0, sizeof entry); memset(&state, 0, sizeof state);
        device.computeMajor = sm / 10; device.computeMinor = sm % 10; device.maxThreadsPerBlock = 1024;
        device.maxThreadsPerMultiprocessor = 32 * limits[0]; device.regsPerBlock = device.regsPerMultiprocessor = 65536;
        device.warpSize = 32; device.sharedMemPerBlock = 48 * 1024; device.sharedMemPerMultiprocessor = limits[1];
        device.numSms = 1; device.sharedMemPerBlockOptin = limits[2]; device.reservedSharedMemPerBlock = 1024;
        entry.maxThreadsPerBlock = 1024; entry.numRegs = registers; entry.maxDynamicSharedSizeBytes = limits[2];
        entry.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
        state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
        if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &entry, &state, 32 * warps, shared)) return 1;
        printf("%d\\n", result.activeBlocksPerMultiprocessor);
    }
    return 0;
}
"""


def _occupancy_header() -> Path | None:
    places = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda", "/usr/local/cuda-13.0"]
    return next((Path(p) / "include" for p in places if (Path(p) / "include/cuda_occupancy.h").exists()), None)


@pytest.mark.skipif(
    _occupancy_header() is None or shutil.which("cc") is None,
    reason="needs a C compiler and cuda_occupancy.h of the CUDA toolkit (CUDA_HOME)",
)
@pytest.mark.slow
def test_occupancy_equals_nvidias_own_calculator(tmp_path: Path) -> None:
    cases = [
        (sm, warps, registers, shared)
        for sm in MULTIPROCESSORS
        for warps in (1, 2, 4, 8, 16)
        for registers in (16, 33, 80, 128, 168, 255)
        for shared in (0, 1, 1024, 24_576, 48_000, 73_728, 99 * 1024)
        if warps * registers * 32 <= 65536
    ]
    lines = []
    for sm, warps, registers, shared in cases:
        limits = MULTIPROCESSORS[sm]
        numbers = (sm, warps, registers, shared, limits.warps, limits.shared_bytes, limits.shared_per_block)
        lines.append(" ".join(map(str, numbers)))
    (tmp_path / "occupancy.c").write_text(OCCUPANCY_C)
    binary = tmp_path / "occupancy"
    subprocess.run(["cc", "-w", f"-I{_occupancy_header()}", "-o", binary, tmp_path / "occupancy.c", "-lm"], check=True)
    told = subprocess.run([binary], input="\n".join(lines), capture_output=True, text=True, check=True).stdout.split()
    ours = [blocks_per_multiprocessor(sm, warps=w, registers=r, shared_bytes=s)[0] for sm, w, r, s in cases]
    assert [(c, o) for c, o in zip(cases, ours, strict=True)] == [(c, int(t)) for c, t in zip(cases, told, strict=True)]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_kernel_of_every_op_compiles_within_the_limits_of_every_target(compiled_kernels: Path) -> None:
    wanted = {aot.launch_name(variant, sm) for variant in aot.all_variants() for sm in variant.archs}
    assert len(wanted) > 100
    for name in wanted:
        launch = json.loads((compiled_kernels / f"{name}.json").read_text())
        assert launch["local_instructions"] == 0, name
        assert launch["shared_bytes"] <= MULTIPROCESSORS[launch["sm"]].shared_per_block, name
