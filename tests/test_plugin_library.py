"""Finding the TensorRT plugin library: the variable, the installed package, or the commands that build it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpm_edge import plugin
from dpm_edge.errors import EngineError, MissingLibrary


def test_the_variable_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libmine.so"
    library.touch()
    monkeypatch.setenv(plugin.VARIABLE, str(library))
    assert plugin.plugin_library() == library.resolve()


def test_a_variable_that_names_nothing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(plugin.VARIABLE, str(tmp_path / "gone.so"))
    with pytest.raises(EngineError, match=r"expected libdpm_tensorrt_plugin.so in .*gone.so.*cmake -B build"):
        plugin.plugin_library()


def test_the_installed_package_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugin.VARIABLE, raising=False)
    monkeypatch.setattr(plugin.resources, "files", lambda package: tmp_path)
    with pytest.raises(MissingLibrary, match=r"libdpm_tensorrt_plugin.so.*cmake -B build.*DPM_EDGE_PLUGIN=1"):
        plugin.plugin_library()
    library = tmp_path / "kernels" / "lib" / plugin.FILE
    library.parent.mkdir(parents=True)
    library.touch()
    assert plugin.plugin_library() == library


def test_the_build_writes_a_library_of_that_name() -> None:
    """CMake's target name and install folder are what the package looks for."""
    rules = Path(__file__).parents[1].joinpath("CMakeLists.txt").read_text()
    name = plugin.FILE.removeprefix("lib").removesuffix(".so")
    assert f"add_library({name} SHARED" in rules and "plugin_destination dpm_edge/kernels/lib" in rules
