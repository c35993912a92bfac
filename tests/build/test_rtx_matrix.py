"""dpm-b, dpm-s and dpm-t in every precision: a real parser and a real builder take them, without a GPU.

The builds are those of benchmarks/rtx_builds.py, which also writes their times.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path

import pytest

from dpm_edge.env import installed
from dpm_edge.spec import PRESETS

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import rtx_builds

needs_rtx = pytest.mark.skipif(
    not installed("tensorrt_rtx"), reason="tensorrt-rtx-cu13 (TensorRT for RTX, 95 MB) is not installed"
)
network = cache(rtx_builds.network)
"""Each network once a session; exporting dpm-b takes ten seconds."""


@pytest.mark.slow
@needs_rtx
@pytest.mark.parametrize("precision", rtx_builds.PRECISIONS)
@pytest.mark.parametrize("name", list(PRESETS))
def test_it_parses_and_builds_in_a_minute(name: str, precision: str, tmp_path: Path) -> None:
    """Seconds of the processor: another program on the machine must not fail the test."""
    built = rtx_builds.build(rtx_builds.in_precision(network(name), name, precision), name, tmp_path)
    assert built["processor_seconds"] < rtx_builds.LIMIT, built
    assert built["plan_bytes"] > 1_000_000
    layers = built["layers"]
    wanted = {"fp32"} if precision == "fp32" else {"fp32", "fp16" if precision in ("int8", "fp8") else precision}
    assert wanted <= set(layers), f"{layers}: islands in fp32, the rest low"
    assert layers.get(precision, 0) > 20, layers
