"""What a release would upload: the wheel's and the source archive's metadata, and the wheel on every Python we name."""

from __future__ import annotations

import glob
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TRY = """
import sys, numpy as np
import dpm_edge
from dpm_edge import Embeddings, Gallery
features = np.eye(4, 8, dtype=np.float32)
rows = Embeddings(features=features, masks=np.ones((4, 8), np.float32), visibility=np.ones(4, np.float32),
                  rows=np.arange(4), fingerprint="f" * 64)
gallery = Gallery("f" * 64, 8)
gallery.add(rows, people=["a", "b", "c", "d"])
assert gallery.search(rows, k=1).people[:, 0].tolist() == ["a", "b", "c", "d"]
print(dpm_edge.__version__, "on", sys.version_info[:2])
"""


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive, built from a copy of the tracked files."""
    out = tmp_path_factory.mktemp("release")
    source = out / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.split(b"\0")
    for name in filter(None, (path.decode() for path in tracked)):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, source / name)
    build = f"""
from scikit_build_core import build
print(build.build_sdist({str(out)!r}), build.build_wheel({str(out)!r}))
"""
    made = subprocess.run([sys.executable, "-c", build], cwd=source, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    return out


def uploads(release: Path) -> list[str]:
    return sorted(str(path) for path in [*release.glob("*.whl"), *release.glob("*.tar.gz")])


@pytest.mark.slow
def test_the_metadata_is_what_pypi_takes(release: Path) -> None:
    pytest.importorskip("twine", reason="twine is not installed")
    checked = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *uploads(release)], capture_output=True, text=True
    )
    assert checked.returncode == 0 and checked.stdout.count("PASSED") == 2, checked.stdout


@pytest.mark.slow
def test_the_source_archive_holds_what_the_wheel_is_made_of(release: Path) -> None:
    (archive,) = release.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.split("/", 1)[1] for name in tar.getnames() if "/" in name}
    assert {"pyproject.toml", "LICENSE", "NOTICE", "dpm_edge/__init__.py", "dpm_edge/assets/dpm-n.onnx"} <= names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/"))]


def interpreter(minor: int) -> str | None:
    """A CPython 3.minor of this machine that runs."""
    known = glob.glob(str(Path.home() / f".pyenv/versions/3.{minor}.*/bin/python3.{minor}"))
    for candidate in filter(None, [shutil.which(f"python3.{minor}"), *known]):
        if subprocess.run([candidate, "-c", "import venv, ssl"], capture_output=True).returncode == 0:
            return candidate
    return None


@pytest.mark.slow
@pytest.mark.parametrize("minor", [10, 11, 12, 13])
def test_the_wheel_installs_and_searches(release: Path, tmp_path: Path, minor: int) -> None:
    python = interpreter(minor)
    if python is None:
        pytest.skip(reason=f"there is no Python 3.{minor} on this machine")
    subprocess.run([python, "-m", "venv", tmp_path / "v"], check=True)
    here = tmp_path / "v" / "bin"
    (wheel,) = release.glob("*.whl")
    installed = subprocess.run([here / "pip", "install", "-q", wheel], capture_output=True, text=True)
    assert installed.returncode == 0, installed.stderr[-2000:]
    tried = subprocess.run([here / "python", "-I", "-c", TRY], capture_output=True, text=True)
    assert tried.returncode == 0, tried.stderr[-2000:]
    assert f"on (3, {minor})" in tried.stdout
    helped = subprocess.run([here / "dpm-edge", "--help"], capture_output=True, text=True)
    assert helped.returncode == 0 and "gallery" in helped.stdout, helped.stderr
