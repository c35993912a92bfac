"""Whether a Jetson can install the package: every runtime requirement of pyproject.toml, resolved for aarch64.

uv resolves for another platform from the index's metadata, without downloading wheels and without building anything.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli", reason="Python 3.10 has no tomllib, and tomli is not installed")

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NOT_ON_A_CAMERA = {"build", "train", "synthetic", "dev"}
"""Extras for the machine that trains and exports."""
WITHOUT_WHEEL = {"tensorrt": "JetPack", "pycuda": "builds from source"}
"""Extras that have no aarch64 wheel → what docs/jetson.md says instead."""
RUNTIME = sorted(set(PROJECT["optional-dependencies"]) - NOT_ON_A_CAMERA - set(WITHOUT_WHEEL))
JETPACK = {
    6: ("3.10", "manylinux_2_35", ("numpy<2", "cuda-bindings<13")),
    7: ("3.12", "manylinux_2_39", ()),
}
"""JetPack → its Python, its C library (Ubuntu 22.04, 24.04), and what docs/jetson.md holds back."""


def resolve(jetpack: int, extras: list[str], tmp_path: Path) -> dict[str, str]:
    """Distribution → version of everything that `pip install '.[extras]'` would bring there, wheels only.

    Raises:
        AssertionError: no set of wheels fits, with uv's own reasons.
    """
    pytest.importorskip("uv", reason="uv is not installed: tests/requirements.txt")
    python, platform, held_back = JETPACK[jetpack]
    constraints = tmp_path / "constraints.txt"
    constraints.write_text("\n".join(held_back))
    command = [sys.executable, "-m", "uv", "pip", "compile", str(ROOT / "pyproject.toml"), "--no-header"]
    command += ["--no-annotate", "--only-binary=:all:", f"--python-platform=aarch64-{platform}"]
    command += [f"--python-version={python}", f"--constraint={constraints}", *(f"--extra={one}" for one in extras)]
    settings = {"UV_PYTHON_DOWNLOADS": "never"}
    for theirs, pips in (("SSL_CERT_FILE", "PIP_CERT"), ("UV_DEFAULT_INDEX", "PIP_INDEX_URL")):
        if pips in os.environ:
            settings[theirs] = os.environ.get(theirs, os.environ[pips])
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **settings}, timeout=300)
    if result.returncode:
        assert "No solution found" not in result.stderr, result.stderr
        pytest.skip(f"the package index cannot be reached: {result.stderr.strip().splitlines()[-1]}")
    return dict(re.findall(r"^([\w.-]+)==(\S+)", result.stdout, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("jetpack", JETPACK)
def test_every_runtime_requirement_has_an_aarch64_wheel(jetpack: int, tmp_path: Path) -> None:
    found = resolve(jetpack, RUNTIME, tmp_path)
    stated = [*PROJECT["dependencies"], *(one for extra in RUNTIME for one in PROJECT["optional-dependencies"][extra])]
    there = {"python_version": JETPACK[jetpack][0]}
    wanted = [one for one in map(Requirement, stated) if one.marker is None or one.marker.evaluate(there)]
    names = {canonicalize_name(one.name) for one in wanted}
    assert names <= set(found), f"not resolved: {sorted(names - set(found))}"
    print({name: found[name] for name in sorted(names)})


@pytest.mark.slow
@pytest.mark.parametrize("extra", WITHOUT_WHEEL)
def test_extras_without_a_wheel_are_those_that_the_page_names(extra: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"(?s)No solution found.*" + extra):
        resolve(6, [extra], tmp_path)
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    assert f"`{extra}`" in page and WITHOUT_WHEEL[extra] in page


def test_the_page_holds_back_what_was_resolved() -> None:
    page = (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
    for python, _, held_back in JETPACK.values():
        assert f"Python {python}" in page
        assert all(f"'{one}'" in page for one in held_back)
