"""Ahead-of-time compilation: every variant × architecture → cubin, PTX and launch JSON. Needs Triton ≥ 3.6, no GPU.

    python -m dpm_edge.kernels --arch 80 87 89 90 100 110 --out DIR

A compiled kernel is refused where it uses local memory (spills), more shared memory than a block of that GPU may have,
another number of parameters than declared, global scratch memory, narrower loads than declared, or no tensor core
although declared so. What is up to date in DIR (same source, variant and Triton) is not compiled again.
"""

import argparse
import hashlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpm_edge.kernels.resources import MULTIPROCESSORS, Usage, blocks_per_multiprocessor, usage_of
from dpm_edge.kernels.variant import ARCHITECTURES, Variant

OPS = ("masked_distance", "mask_head", "crop_resize_normalize")
"""Folders whose contract.py lists VARIANTS."""

HIDDEN = ({"name": "global_scratch", "type": "*u8"}, {"name": "profile_scratch", "type": "*u8"})
"""Trailing parameters that Triton ≥ 3.6 adds to every entry; a launcher passes null pointers."""

PTX_VERSION = {80: 82, 87: 82, 89: 82, 90: 82, 100: 86, 110: 90}
"""PTX ISA written per architecture: as old as it allows, so that older drivers can compile it (82 is CUDA 12.2)."""

FORMAT = 1
"""Version of the launch JSON."""


class AotError(RuntimeError):
    """A kernel that cannot be compiled for a target, or breaks one of its limits."""


def all_variants(ops: Sequence[str] = OPS) -> tuple[Variant, ...]:
    """The variants of every op's contract. Raises AotError for a name used twice."""
    variants = [v for op in ops for v in importlib.import_module(f"dpm_edge.kernels.{op}.contract").VARIANTS]
    names = [v.name for v in variants]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise AotError(f"expected every variant name once, got several of {', '.join(repeated)}. Rename all but one")
    return tuple(variants)


def launch_name(variant: Variant, sm: int) -> str:
    """Stem of the files of one variant on one architecture."""
    return f"{variant.name}_sm{sm}"


def build(variants: Sequence[Variant], archs: Sequence[int], out: Path, jobs: int = 2) -> list[dict[str, Any]]:
    """Compile what is out of date in `out`; return every launch description, in order of variants, then architectures.

    Raises AotError without Triton; and after all have been tried, with every failure in its message.
    """
    if importlib.util.find_spec("triton") is None:
        raise AotError("expected Triton, got a Python without it. Install it: pip install 'dpm-edge[gpu]'")
    if os.environ.get("TRITON_INTERPRET") == "1":
        raise AotError(
            "expected Triton's compiler, got its interpreter (TRITON_INTERPRET=1 is set). Unset the variable"
        )
    if unknown := sorted(set(archs) - set(PTX_VERSION)):
        raise AotError(
            f"expected targets out of {', '.join(map(str, ARCHITECTURES))}, got {unknown}. Pass others to --arch"
        )
    out.mkdir(parents=True, exist_ok=True)
    wanted = [(v, sm) for v in variants for sm in archs if sm in v.archs]
    keys = {launch_name(v, sm): _key(v.on(sm), sm) for v, sm in wanted}
    stale = [(v, sm) for v, sm in wanted if not _up_to_date(out, launch_name(v, sm), keys[launch_name(v, sm)])]
    failures = []
    for done, (name, error) in enumerate(_compile_all(stale, keys, out, jobs), start=1):
        failures += [f"{name}: {error}"] if error else []
        print(f"[{done}/{len(stale)}] {name}{': ' + error if error else ''}", file=sys.stderr, flush=True)
    if failures:
        raise AotError(f"{len(failures)} of {len(wanted)} kernels refused:\n" + "\n".join(sorted(failures)))
    return [json.loads((out / f"{launch_name(v, sm)}.json").read_text()) for v, sm in wanted]


def _compile_all(
    work: Sequence[tuple[Variant, int]], keys: dict[str, str], out: Path, jobs: int
) -> Iterator[tuple[str, str]]:
    """Yields (name, error or "") as each is done; processes, because the compiler holds the interpreter lock."""
    if not work:
        return
    start = time.monotonic()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        names = {pool.submit(compile_one, v, sm, out, keys[launch_name(v, sm)]): launch_name(v, sm) for v, sm in work}
        for done, future in enumerate(as_completed(names), start=1):
            error = future.exception()
            yield names[future], f"{error}" if isinstance(error, AotError) else repr(error) if error else ""
            if done % 20 == 0 and done < len(work):
                left = (time.monotonic() - start) / done * (len(work) - done)
                print(f"about {left:.0f} s left", file=sys.stderr, flush=True)


def _kernel_of(variant: Variant) -> Any:
    module, _, function = variant.kernel.partition(":")
    return getattr(importlib.import_module(module), function)


def _key(variant: Variant, sm: int) -> str:
    """Changes whenever the cubin or the launch JSON could: source with all it calls, variant, target, Triton."""
    import triton

    own = [Path(__file__).read_bytes(), Path(__file__).with_name("resources.py").read_bytes()]
    parts = [_kernel_of(variant).cache_key, repr(variant), str(sm), triton.__version__, *map(repr, own)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _up_to_date(out: Path, name: str, key: str) -> bool:
    files = [out / f"{name}.{suffix}" for suffix in ("cubin", "ptx", "json")]
    return all(f.exists() for f in files) and json.loads(files[2].read_text()).get("key") == key


def compile_one(variant: Variant, sm: int, out: Path, key: str = "") -> dict[str, Any]:
    """Compile one variant for one architecture, check it, and write its three files. Raises AotError where refused."""
    tiled = variant.on(sm)
    name = launch_name(variant, sm)
    cubin, launch = out / f"{name}.cubin", out / f"{name}.json"
    launch.unlink(missing_ok=True)
    compiled = _compile(tiled, sm)
    cubin.write_bytes(compiled.asm["cubin"])
    usage = usage_of(cubin)
    if usage.local_instructions:
        # ptxas sometimes aims at higher occupancy and spills with registers to spare: offer it all that fit.
        most = min(255, 65536 // (32 * tiled.num_warps) // 8 * 8)
        compiled = _compile(tiled, sm, maxnreg=most)
        cubin.write_bytes(compiled.asm["cubin"])
        usage = usage_of(cubin)
    description = _describe(tiled, sm, compiled, usage)
    (out / f"{name}.ptx").write_text(compiled.asm["ptx"])
    if problems := _problems(tiled, sm, description, compiled):
        raise AotError("; ".join(problems))
    launch.write_text(json.dumps({**description, "key": key}, indent=1))
    return description


def _compile(variant: Variant, sm: int, maxnreg: int | None = None) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    os.environ.setdefault("TRITON_DISABLE_LINE_INFO", "1")  # a third of the size; set it to 0 for a profiler
    order = list(variant.signature)
    options = {"num_warps": variant.num_warps, "num_stages": variant.num_stages, "ptx_version": PTX_VERSION[sm]}
    if maxnreg:
        options["maxnreg"] = maxnreg
    source = ASTSource(
        fn=_kernel_of(variant),
        signature=dict(variant.signature),
        constexprs=dict(variant.constexprs),
        attrs={(order.index(p),): [["tt.divisibility", 16]] for p in variant.divisible_by_16},
    )
    try:
        return triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    except Exception as error:  # the compiler raises many types; each becomes one line of the report
        raise AotError(f"does not compile: {type(error).__name__}: {error}") from error


def _describe(variant: Variant, sm: int, compiled: Any, usage: Usage) -> dict[str, Any]:
    import triton

    metadata, ptx = compiled.metadata, compiled.asm["ptx"]
    columns = getattr(metadata, "tmem_size", 0) or 0
    warps = int(metadata.num_warps)
    blocks, limit = blocks_per_multiprocessor(
        sm, warps=warps, registers=usage.registers, shared_bytes=metadata.shared, tensor_columns=columns
    )
    version, target = (re.search(rf"^\.{word} (\S+)", ptx, re.MULTILINE) for word in ("version", "target"))
    return {
        "format": FORMAT,
        "op": variant.op,
        "variant": variant.name,
        "sm": sm,
        "entry": metadata.name,
        "grid": variant.grid_rule,
        "block": [32 * warps, 1, 1],
        "shared_bytes": metadata.shared,
        "parameters": [{"name": n, "type": kind} for n, kind in variant.parameters.items()] + list(HIDDEN),
        "divisible_by_16": list(variant.divisible_by_16),
        "constexprs": dict(variant.constexprs),
        "num_stages": variant.num_stages,
        **asdict(usage),
        "tensor_columns": columns,
        "blocks_per_sm": blocks,
        "limited_by": limit,
        "occupancy": round(blocks * warps / MULTIPROCESSORS[sm].warps, 3),
        "ptx_target": target[1] if target else "",
        "ptx_version": version[1] if version else "",
        "triton": triton.__version__,
    }


def _problems(variant: Variant, sm: int, launch: dict[str, Any], compiled: Any) -> list[str]:
    problems = []
    count, declared = entry_parameters(compiled.asm["ptx"]), len(launch["parameters"])
    if count != declared:
        problems.append(
            f"expected {declared} parameters of the entry, the hidden two among them, got {count}. "
            "Install a Triton between 3.6 and 3.9, or adapt HIDDEN"
        )
    if launch["local_instructions"]:
        problems.append(
            f"spills: {launch['local_instructions']} local-memory instructions at {launch['registers']} registers; "
            f"give sm_{sm} smaller tiles or more warps in the contract's table"
        )
    most = MULTIPROCESSORS[sm].shared_per_block
    if launch["shared_bytes"] > most:
        problems.append(
            f"expected at most {most} bytes of shared memory in a block of sm_{sm}, got {launch['shared_bytes']}. "
            "Give it smaller tiles or fewer stages"
        )
    if launch["blocks_per_sm"] < 1:
        problems.append(f"no block fits a multiprocessor of sm_{sm}: {launch['limited_by']}")
    if scratch := getattr(compiled.metadata, "global_scratch_size", 0):
        problems.append(f"expected no global scratch memory, which no launcher here gives, got {scratch} bytes")
    if variant.matrix and not launch["matrix_instructions"]:
        problems.append("expected tensor-core instructions (matrix=True), got none")
    if launch["widest_load_bytes"] < variant.load_bytes:
        problems.append(
            f"expected global loads of {variant.load_bytes} bytes, got {launch['widest_load_bytes']} at most. "
            "Look at divisible_by_16 and at the order of the tile's axes"
        )
    return problems


def entry_parameters(ptx: str) -> int:
    """Number of parameters of the one entry in a PTX text, the hidden ones included."""
    entry = re.search(r"\.entry\s+\w+\s*\((.*?)\)", ptx, re.DOTALL)
    return len(re.findall(r"\.param\b", entry[1])) if entry else -1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 0 when every kernel passed."""
    parser = argparse.ArgumentParser(prog="python -m dpm_edge.kernels", description=__doc__.split("\n")[0])
    parser.add_argument(
        "--arch", type=int, nargs="+", default=ARCHITECTURES, help="compute capabilities (default: all)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for the cubins, PTX and launch JSON")
    parser.add_argument("--op", nargs="+", default=OPS, choices=OPS, help="only these ops (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="compiler processes (default: 2)")
    given = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        launches = build(all_variants(given.op), given.arch, given.out, given.jobs)
    except AotError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{len(launches)} kernels in {given.out} ({time.monotonic() - start:.0f} s)", file=sys.stderr)
    return 0
