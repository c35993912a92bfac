"""Variants and their grid rules, against Python's own arithmetic and the C compiler's."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpm_edge.kernels.variant import Variant, VariantError, evaluate_grid, grid_in_c

FIELDS: dict[str, Any] = {
    "op": "test",
    "name": "scale",
    "kernel": "module:function",
    "signature": {"X": "*fp32", "N": "i32", "BLOCK": "constexpr"},
    "constexprs": {"BLOCK": 128},
    "num_warps": 4,
    "num_stages": 1,
    "grid": "ceil(N / BLOCK), min(ROWS, 7)",
}


def test_tiles_of_an_architecture_replace_constants_warps_and_stages() -> None:
    variant = Variant(**FIELDS, tiles={87: {"BLOCK": 64, "num_warps": 2}})
    assert variant.on(80).grid_rule == "ceil(N / 128), min(ROWS, 7)"
    small = variant.on(87)
    assert (small.constexprs["BLOCK"], small.num_warps, small.num_stages) == (64, 2, 1)
    assert small.grid_rule == "ceil(N / 64), min(ROWS, 7)"
    assert variant.grid_names == ("N", "ROWS")
    assert variant.parameters == {"X": "*fp32", "N": "i32"}


@given(n=st.integers(1, 10**9), rows=st.integers(1, 20))
def test_grid_equals_python(n: int, rows: int) -> None:
    assert evaluate_grid("ceil(N / 128), min(ROWS, 7)", {"N": n, "ROWS": rows}) == (-(-n // 128), min(rows, 7), 1)
    assert evaluate_grid("(N + 3) // 2 * max(ROWS, 2) - N % 5 + 5", {"N": n, "ROWS": rows})[0] == (
        (n + 3) // 2 * max(rows, 2) - n % 5 + 5
    )


@pytest.mark.parametrize(
    "rule",
    ["__import__('os')", "N.real", "N ** 2", "N / 2", "ceil(N)", "abs(N)", "1.5", "N, 1, 1, 1", "N +", "[N]", "min(N)"],
)
def test_what_is_no_integer_arithmetic_is_refused(rule: str) -> None:
    with pytest.raises(VariantError, match=r"in a grid rule, got|grid rule of"):
        Variant(**{**FIELDS, "grid": rule})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "a-b"}, "C identifier"),
        ({"constexprs": {}}, "a value for each constexpr"),
        ({"divisible_by_16": ("Y",)}, "expected run-time parameters"),
        ({"tiles": {87: {"BLOK": 1}}}, "BLOK"),
    ],
)
def test_a_variant_that_contradicts_itself_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(VariantError, match=words):
        Variant(**{**FIELDS, **change})


def test_an_architecture_that_is_not_declared_and_an_empty_grid_are_named() -> None:
    with pytest.raises(VariantError, match="got sm_90"):
        Variant(**FIELDS, archs=(80,)).on(90)
    with pytest.raises(VariantError, match="'N'"):
        evaluate_grid("N", {"M": 1})
    with pytest.raises(VariantError, match="at least 1"):
        evaluate_grid("ceil(N / 4)", {"N": 0})


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_the_c_of_a_grid_computes_the_same(tmp_path: Path) -> None:
    rule = "ceil(N / 48) * (ROWS + 2), max(N // 7, 3) % 11 + 1, min(N - ROWS, 9)"
    pairs = [(n, rows) for n in (50, 129, 1023) for rows in (1, 7, 31)]
    names = {"N": "n", "ROWS": "rows"}
    axes = ", ".join(f"(long)({axis})" for axis in grid_in_c(rule, names.__getitem__))
    calls = "".join(f"show({n}, {rows});" for n, rows in pairs)
    source = tmp_path / "grid.c"
    source.write_text(
        "#include <stdio.h>\n"
        f'static void show(long n, long rows) {{ printf("%ld %ld %ld\\n", {axes}); }}\n'
        f"int main(void) {{ {calls} return 0; }}\n"
    )
    subprocess.run(["cc", "-o", tmp_path / "grid", source], check=True)
    lines = subprocess.run([tmp_path / "grid"], capture_output=True, text=True, check=True).stdout.splitlines()
    for (n, rows), line in zip(pairs, lines, strict=True):
        wanted = (math.ceil(n / 48) * (rows + 2), max(n // 7, 3) % 11 + 1, min(n - rows, 9))
        assert tuple(map(int, line.split())) == wanted == evaluate_grid(rule, {"N": n, "ROWS": rows})
