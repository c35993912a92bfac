"""The thin TensorRT builders: the errors without the library, and a real parse and build with TensorRT for RTX."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dpm_edge.build import build, tensorrt
from dpm_edge.env import installed
from dpm_edge.errors import BuildRefused, MissingLibrary


@pytest.mark.parametrize(("backend", "advice"), [("tensorrt", "nvidia-jetpack"), ("tensorrt-rtx", "tensorrt-rtx-cu13")])
def test_missing_library_names_the_command(
    backend: str, advice: str, portable_path: Path, crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, tensorrt.MODULES[backend], None)
    with pytest.raises(MissingLibrary, match=advice):
        build(portable_path, tmp_path / "engine", backend=backend, calibrate=crops, progress=False)
    assert not any(tmp_path.iterdir())


def test_strong_typing_is_asked_for_where_there_is_a_choice() -> None:
    class Flag:
        STRONGLY_TYPED = 1

    assert tensorrt._strongly_typed(SimpleNamespace(NetworkDefinitionCreationFlag=Flag)) == 2
    assert tensorrt._strongly_typed(SimpleNamespace(NetworkDefinitionCreationFlag=object)) == 0


@pytest.mark.slow
@pytest.mark.skipif(
    not installed("tensorrt_rtx"), reason="tensorrt-rtx-cu13 is not installed (95 MB, not in the dev extra)"
)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_tensorrt_rtx_parses_and_builds_without_a_gpu(
    precision: str, portable_path: Path, crops: Path, tmp_path: Path
) -> None:
    """What it builds cannot run without a GPU: the build is refused as unverified, and kept only by force."""
    arguments = {"backend": "tensorrt-rtx", "precision": precision, "calibrate": crops, "progress": False}
    with pytest.raises(BuildRefused, match="not verified"):
        build(portable_path, tmp_path / "engine", **arguments)
    manifest = build(portable_path, tmp_path / "engine", force=True, **arguments)
    assert manifest.engine == "engine.plan" and (tmp_path / "engine" / "engine.plan").stat().st_size > 10_000
    assert manifest.verification["forced"] and not manifest.verification["passed"]
