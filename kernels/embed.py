"""Turn compiled kernels into the two source files that libdpm_kernels embeds: a table in C, the images in assembly.

    python -m dpm_edge.kernels.embed DIR --out BUILD_DIR

DIR is what `python -m dpm_edge.kernels --out DIR` wrote. Standard library only.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dpm_edge.kernels.launch import PORTABLE
from dpm_edge.kernels.variant import grid_in_c, grid_names

KINDS = {"i32": "DPM_I32", "i64": "DPM_I64", "fp32": "DPM_FP32"}


def write_sources(folder: Path, out: Path) -> int:
    """Write dpm_images.c and dpm_images.S into `out`; return the number of images.

    Raises FileNotFoundError where `folder` has no kernels, ValueError for a parameter type that the C library lacks.
    """
    launches = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*_sm*.json"))]
    if not launches:
        raise FileNotFoundError(
            f"expected launch JSON in {folder}, got none. Run: python -m dpm_edge.kernels --out {folder}"
        )
    launches.sort(key=lambda launch: (launch["variant"], launch["sm"]))
    out.mkdir(parents=True, exist_ok=True)
    (out / "dpm_images.c").write_text("\n".join(_table(launches)) + "\n")
    (out / "dpm_images.S").write_text("\n".join(_images(launches, folder.resolve())) + "\n")
    return len(launches)


def _table(launches: list[dict[str, Any]]) -> Iterable[str]:
    yield '#include "images.h"\n'
    rows = []
    for i, launch in enumerate(launches):
        names = grid_names(launch["grid"])
        has_ptx = launch["sm"] == PORTABLE
        x, y, z = grid_in_c(launch["grid"], lambda name, at=names: f"sizes[{at.index(name)}]")  # type: ignore[misc]
        yield f"extern const unsigned char dpm_cubin_{i}[]{f', dpm_ptx_{i}[]' if has_ptx else ''};"
        yield f"static const dpm_parameter parameters_{i}[] = {{{_parameters(launch)}}};"
        yield f"static const char *const sizes_{i}[] = {{{', '.join([*map(_text, names), '0'])}}};"
        yield f"static void grid_{i}(const int64_t *sizes, int64_t blocks[3]) {{"
        yield f"    (void)sizes;\n    blocks[0] = {x};\n    blocks[1] = {y};\n    blocks[2] = {z};\n}}"
        constants = _constants(launch["constexprs"])
        yield f"static const dpm_constant constants_{i}[] = {{{', '.join([*constants, '{0, 0}'])}}};"
        rows.append(
            f"    {{{_text(launch['variant'])}, {launch['sm']}, {_text(launch['entry'])}, dpm_cubin_{i}, "
            f"{f'dpm_ptx_{i}' if has_ptx else '0'}, {launch['block'][0]}, {launch['shared_bytes']}, parameters_{i}, "
            f"{len(launch['parameters']) - 2}, sizes_{i}, {len(names)}, grid_{i}, constants_{i}, {len(constants)}}},"
        )
    yield "\nconst dpm_image dpm_images[] = {"
    yield from rows
    yield f"}};\nconst size_t dpm_image_count = {len(rows)};"


def _parameters(launch: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{{{_text(p['name'])}, {_kind(p['type'], launch['variant'])}, {int(p['name'] in launch['divisible_by_16'])}}}"
        for p in launch["parameters"][:-2]
    )


def _kind(type_name: str, variant: str) -> str:
    if type_name.startswith("*"):
        return "DPM_POINTER"
    if type_name not in KINDS:
        raise ValueError(
            f"{variant}: expected parameters of {sorted(KINDS)} or pointers, which the C library has, got {type_name!r}"
        )
    return KINDS[type_name]


def _constants(constexprs: Mapping[str, Any]) -> list[str]:
    return [f"{{{_text(name)}, {int(value)}}}" for name, value in constexprs.items() if isinstance(value, (bool, int))]


def _images(launches: list[dict[str, Any]], folder: Path) -> Iterable[str]:
    yield "    .section .rodata"
    for i, launch in enumerate(launches):
        stem = f"{launch['variant']}_sm{launch['sm']}"
        for kind, wanted in (("cubin", True), ("ptx", launch["sm"] == PORTABLE)):
            if wanted:
                label = f"dpm_{kind}_{i}"
                yield f"    .balign 64\n    .globl {label}\n    .hidden {label}\n{label}:"
                yield f"    .incbin {_text(str(folder / stem) + '.' + kind)}\n    .byte 0"
    yield '    .section .note.GNU-stack,"",%progbits'


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dpm_edge.kernels.embed", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="compiled kernels")
    parser.add_argument("--out", type=Path, required=True, help="where the two sources go")
    given = parser.parse_args()
    print(f"{write_sources(given.folder, given.out)} images embedded")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
