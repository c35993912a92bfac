"""The built wheel: what is in it, whether it type-checks, and whether the README's commands are what they claim."""

from __future__ import annotations

import email
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of the working tree, built without touching the network."""
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_every_source_file_and_nothing_else(wheel: Path) -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    rooms = {"dpm_edge/": "dpm_edge/", "kernels/": "dpm_edge/kernels/", "train/": "dpm_edge/train/"}
    wanted = {
        installed + name.removeprefix(room)
        for name in tracked
        for room, installed in rooms.items()
        if name.startswith(room) and name.endswith(".py")
    }
    held = set(zipfile.ZipFile(wheel).namelist())
    assert wanted, "no tracked source files: is this a git checkout?"
    assert not wanted - held, f"missing from the wheel: {sorted(wanted - held)}"
    strange = [n for n in held if n.split("/")[0] not in ("dpm_edge",) and ".dist-info/" not in n]
    assert not strange, f"generic names would land in site-packages: {strange}"


def test_wheel_ships_the_model_and_the_samples(wheel: Path) -> None:
    held = zipfile.ZipFile(wheel).namelist()
    assert "dpm_edge/py.typed" in held
    assert {
        f"dpm_edge/assets/{name}"
        for name in ("dpm-n.onnx", "dpm-t.onnx", "models.json", "selfie_segmentation.tflite", "nanodet-g.onnx")
    } <= set(held)
    assert sum(n.startswith("dpm_edge/assets/samples/query/") for n in held) > 50


@pytest.mark.slow
def test_wheel_type_checks(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        str(site),
        str(wheel),
    ]
    subprocess.run(install, check=True)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "dpm_edge"]
    result = subprocess.run(command, cwd=site, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]


WHOLE = {"cpu", "build", "train", "synthetic", "opencv"}
"""Extras that bring an OpenCV; every other one leaves the application's own alone."""


def requirements(wheel: Path) -> dict[str, list[str]]:
    """Extra → what it requires; "" is what is always required."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        lines = email.message_from_bytes(file.read(name)).get_all("Requires-Dist") or []
    found: dict[str, list[str]] = {}
    for line in lines:
        what, _, extra = line.partition(";")
        found.setdefault(extra.partition("==")[2].strip(" '\""), []).append(what.strip())
    return found


def test_only_whole_set_ups_bring_an_opencv(wheel: Path) -> None:
    by_extra = requirements(wheel)
    bringing = {extra for extra, wanted in by_extra.items() if any("opencv" in one for one in wanted)}
    assert "" in by_extra and bringing - {"dev"} == WHOLE


WINDOWS = """
import cv2
print(*[line.split(":")[1].strip() for line in cv2.getBuildInformation().splitlines() if "GUI:" in line])
"""


@pytest.mark.slow
def test_application_keeps_the_opencv_with_windows_that_it_has(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, from a package index: opencv-python first, then this package and an engine library."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check"]
    if subprocess.run([*install, "--retries", "0", "--timeout", "10", "opencv-python"], capture_output=True).returncode:
        pytest.skip("no package index can be reached from here")
    before = subprocess.run([python, "-c", WINDOWS], capture_output=True, text=True)
    subprocess.run([*install, f"{wheel}[engines]"], check=True)
    after = subprocess.run([python, "-c", WINDOWS], capture_output=True, text=True)
    assert before.stdout.strip() == after.stdout.strip() != "NONE", before.stderr + after.stderr
    use = "from dpm_edge import Engine; from dpm_edge.demo.samples import FOLDER, read_image, read_samples; "
    use += "print(read_image(read_samples(FOLDER).query.paths[0]).ndim)"
    used = subprocess.run([python, "-c", use], capture_output=True, text=True)
    assert used.stdout.strip() == "3", used.stderr


def test_readme_commands_are_the_ones_that_ci_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "bash tests/run" in readme
    assert "bash tests/run" in (ROOT / ".ci/run").read_text()
    assert "dpm-edge demo" in readme


@pytest.mark.parametrize("beside", [True, False], ids=["checkout", "installed"])
def test_modules_of_train_are_found_in_a_checkout_and_where_it_is_installed(beside: bool, tmp_path: Path) -> None:
    """Python finds a checkout's dpm_edge/ before the installed package when it is started there with -m."""
    package = tmp_path / "dpm_edge"
    package.mkdir()
    (package / "__init__.py").write_text((ROOT / "dpm_edge" / "__init__.py").read_text())
    here, elsewhere = (tmp_path, package) if beside else (package, tmp_path)
    for place, says in ((here, "right"), (elsewhere, "wrong")):
        if says == "right" or not beside:
            (place / "train").mkdir()
            (place / "train" / "thing.py").write_text(f"print({says!r})")
    command = [sys.executable, "-S", "-E", "-m", "dpm_edge.train.thing"]  # -S: no package that is installed here
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("right\n", "")
