"""Every TensorRT name that builder and runtime touch exists in NVIDIA's bindings of four versions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import tensorrt_names

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler to make the libraries' stand-ins with"
)


@pytest.fixture(scope="module")
def look() -> Callable[[str], dict[str, Any]]:
    """What a version has; asked once."""
    known: dict[str, dict[str, Any]] = {}

    def ask(version: str) -> dict[str, Any]:
        if version not in known:
            try:
                known[version] = tensorrt_names.look(version, tensorrt_names.cache_folder())
            except ConnectionError as error:
                pytest.skip(f"the package index cannot be reached: {error}")
        return known[version]

    return ask


@pytest.mark.parametrize("version", tensorrt_names.VERSIONS)
def test_every_name_exists_in_four_versions(version: str, look: Callable[[str], dict[str, Any]]) -> None:
    found = look(version)
    assert found["version"] == version
    lacks = sorted(name for name, has in found["names"].items() if not has)
    assert not lacks, f"TensorRT {version} lacks {', '.join(lacks)}"


@pytest.mark.parametrize("version", tensorrt_names.VERSIONS)
def test_the_fake_has_no_member_of_its_own(version: str, look: Callable[[str], dict[str, Any]]) -> None:
    assert look(version)["fake"] == []


def test_the_reader_finds_what_it_should(look: Callable[[str], dict[str, Any]]) -> None:
    """By way of a call, a method's signature, an annotation, a base class, a list, and an optional name."""
    found = look("10.3.0")
    assert {
        "Builder.create_builder_config",
        "INetworkDefinition.num_layers",
        "IBuilderConfig.set_timing_cache",
        "ITimingCache.combine",
        "IProgressMonitor.step_complete",
        "ParserError.desc",
        "BuilderFlag.STRIP_PLAN",
        "ILogger.Severity.ERROR",
        "EngineInspector.get_engine_information",
        "IOptimizationProfile.set_shape",
        "IExecutionContext.execute_async_v3",
        "OnnxParserRefitter.refit_from_file",
    } <= set(found["names"])
    assert "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY" in found["optional"]
    assert not found["optional"]["HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"]


def test_no_name_of_weak_typing_is_touched(look: Callable[[str], dict[str, Any]]) -> None:
    """TensorRT 11 has none of them any more."""
    weak = {
        "BuilderFlag.FP16",
        "BuilderFlag.BF16",
        "BuilderFlag.INT8",
        "BuilderFlag.FP8",
        "IBuilderConfig.int8_calibrator",
    }
    assert not weak & set(look("11.4.0.106")["names"])


def test_the_table_in_the_docs_is_current(look: Callable[[str], dict[str, Any]]) -> None:
    found = {version: look(version) for version in tensorrt_names.VERSIONS}
    text = tensorrt_names.PAGE.read_text(encoding="utf-8")
    assert text == tensorrt_names.page_with(text, tensorrt_names.table(found)), (
        "docs/tensorrt.md is not current: python tests/build/tensorrt_names.py"
    )
