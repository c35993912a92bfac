"""What every compiled kernel uses on every target, as a results file and a table.

    python -m dpm_edge.kernels.report DIR --results benchmarks/results/kernels-aot.json --table docs/kernel-resources.md

DIR is what `python -m dpm_edge.kernels --out DIR` wrote. Standard library only.
"""

import argparse
import datetime
import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dpm_edge.kernels.resources import KIB, MULTIPROCESSORS

FIELDS = (
    "op", "variant", "sm", "registers", "local_instructions", "shared_bytes", "block", "blocks_per_sm", "limited_by",
    "occupancy", "widest_load_bytes", "matrix_instructions", "tensor_columns",
)  # fmt: skip


def collect(folder: Path) -> dict[str, Any]:
    """The results file's content. Raises FileNotFoundError where `folder` has no compiled kernels."""
    launches = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*_sm*.json"))]
    if not launches:
        raise FileNotFoundError(f"no launch JSON in {folder}; run: python -m dpm_edge.kernels --out {folder}")
    launches.sort(key=lambda launch: (launch["op"], launch["variant"], launch["sm"]))
    return {
        "what": "registers, shared memory and occupancy of the kernels compiled ahead of time; nothing was run",
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}, no GPU needed",
        "triton": sorted({launch["triton"] for launch in launches}),
        "command": "python -m dpm_edge.kernels --out DIR && python -m dpm_edge.kernels.report DIR",
        "kernels": [{field: launch[field] for field in FIELDS} for launch in launches],
    }


def table(results: dict[str, Any]) -> str:
    """The results in Markdown: one row per variant, one column per target."""
    kernels = results["kernels"]
    targets = sorted({kernel["sm"] for kernel in kernels})
    lines = [
        "# Resources of the compiled kernels",
        "",
        f"Written by `python -m dpm_edge.kernels.report`, {results['date'][:10]}, Triton {', '.join(results['triton'])}"
        ". Compiled, not run: these say what fits, not how fast it is.",
        "",
        "Each cell: registers of a thread / KiB of shared memory of a block / share of the multiprocessor's warps that "
        "can be resident. No kernel uses local memory (spills); compilation refuses it.",
        "",
        "| target | GPU | shared memory of a block (KiB, opted in) | of a multiprocessor | warps |",
        "| --- | --- | --- | --- | --- |",
    ]
    for sm in targets:
        limits = MULTIPROCESSORS[sm]
        shared = f"{limits.shared_per_block // KIB} | {limits.shared_bytes // KIB}"
        lines.append(f"| sm_{sm} | {limits.name} | {shared} | {limits.warps} |")
    for op in dict.fromkeys(kernel["op"] for kernel in kernels):
        own = [kernel for kernel in kernels if kernel["op"] == op]
        lines += ["", f"## {op}", "", *_op_table(own, targets)]
    return "\n".join(lines) + "\n"


def _op_table(kernels: Sequence[dict[str, Any]], targets: Sequence[int]) -> Iterable[str]:
    cells = {(kernel["variant"], kernel["sm"]): kernel for kernel in kernels}
    yield f"| variant | widest load (B) | tensor cores | {' | '.join(f'sm_{sm}' for sm in targets)} |"
    yield f"| --- | --- | --- |{' --- |' * len(targets)}"
    for variant in dict.fromkeys(kernel["variant"] for kernel in kernels):
        own = [kernel for kernel in kernels if kernel["variant"] == variant]
        loads = sorted({kernel["widest_load_bytes"] for kernel in own})
        matrix = sorted({name for kernel in own for name in kernel["matrix_instructions"]})
        row = [_cell(cells.get((variant, sm))) for sm in targets]
        yield f"| {variant} | {', '.join(map(str, loads))} | {', '.join(matrix) or '–'} | {' | '.join(row)} |"


def _cell(kernel: dict[str, Any] | None) -> str:
    if kernel is None:
        return "–"
    return f"{kernel['registers']} / {kernel['shared_bytes'] / KIB:.0f} / {kernel['occupancy']:.0%}"


def _one_line_each(results: dict[str, Any]) -> str:
    """JSON with every kernel on a line of its own."""
    head = json.dumps({key: value for key, value in results.items() if key != "kernels"}, indent=1)
    rows = ",\n".join(json.dumps(kernel) for kernel in results["kernels"])
    return head.removesuffix("\n}") + f',\n "kernels": [\n{rows}\n ]\n}}\n'


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m dpm_edge.kernels.report", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="compiled kernels")
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results/kernels-aot.json"))
    parser.add_argument("--table", type=Path, default=Path("docs/kernel-resources.md"))
    given = parser.parse_args()
    results = collect(given.folder)
    for path in (given.results, given.table):
        path.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(_one_line_each(results), encoding="utf-8")
    given.table.write_text(table(results), encoding="utf-8")
    print(f"{len(results['kernels'])} kernels: {given.results}, {given.table}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
