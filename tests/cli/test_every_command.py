"""Every command in every bad situation: no traceback, ever; where it cannot do its work, one line and an exit code.

The commands are found by walking the command line's own tree: a new command fails here until CASES says how to run it.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pytest
import tiny_engine
from walk import CAPSET

from dpm_edge.cli import main

pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")
pytestmark = pytest.mark.timeout(1800)  # thirty processes in each situation, on a machine that may be busy

CASES = {
    "demo": "--video {w}/walk.avi --boxes {w}/walk.csv --engine {w}/engine -o {w}/demo",
    "watch": "{w}/walk.avi --engine {w}/engine --folder {w}/watch --once --no-page --quiet",
    "import": "torchreid {w}/theirs.pt -o {w}/imported",
    "build": "{w}/portable.onnx -o {w}/built --backend onnxruntime --calibrate {w}/market/query",
    "refit": "{w}/engine {w}/engine/model.onnx -o {w}/refitted",
    "inspect": "{w}/engine",
    "export triton-repo": "{w}/models --engine {w}/engine",
    "export deepstream": "{w}/ds --engine {w}/engine",
    "trust": "--list",
    "embed": "{w}/engine {w}/market/query -o {w}/new.safetensors",
    "match": "{w}/q.safetensors {w}/q.safetensors",
    "who": "{w}/market/query/0001_c1s1_000001_00.png --gallery {w}/seen --engine {w}/engine",
    "serve": "--engine {w}/engine --gallery {w}/seen --host 192.0.2.1",
    "gallery create": "{w}/new-gallery --model {w}/engine",
    "gallery add": "{w}/seen {w}/q.safetensors",
    "gallery fill": "{w}/filled {w}/engine {w}/market/query --archive {w}/archive",
    "gallery search": "{w}/seen {w}/q.safetensors",
    "gallery calibration": "{w}/seen",
    "gallery statistics": "{w}/seen",
    "gallery forget": "{w}/seen 0001",
    "gallery expire": "{w}/seen --older-than 5",
    "gallery stats": "{w}/seen",
    "gallery check-recall": "{w}/seen -k 1",
    "gallery snapshot": "{w}/seen {w}/copy",
    "gallery migrate": "{w}/seen {w}/engine-2 --to {w}/moved",
    "calibrate": "{w}/engine {w}/market -o {w}/calibration.json --fmr 0.1 --bands 1",
    "eval": "{w}/engine {w}/market",
    "bench": "{w}/engine --seconds 0.01 --batch 1 --streams 1 --cameras 1 --gallery 10 --deadline 0.01",
    "doctor": "",
    "models": "",
    "train": "market_tiny --data {w}/nowhere --out {w}/run",
    "adapt": "{w}/nothing.safetensors --crops {w}/market -o {w}/adapted",
    "label": "{w}/market --engine {w}/engine -o {w}/labels.csv --no-browser",
    "site init": "{w}/site {w}/nothing.safetensors --crops {w}/market",
    "site update": "{w}/no-site --crops {w}/market",
    "site back": "{w}/no-site",
    "site show": "{w}/no-site",
    "explain": "{w}/nothing.safetensors {w}/market -o {w}/explained",
}
"""Command → arguments for a small folder {w}, an engine in it, pictures, a video, embeddings and a gallery."""

FAILING = {"import", "refit", "train", "adapt", "site init", "explain", "export deepstream"}
FAILING |= {"label", "site update", "site back", "site show", "serve"}
"""Those that end in an error on purpose: they need a GPU, torch, which the walk hides, a site, tracks, or an address of
this machine, without which a server does not run until somebody ends it."""
SILENT = {"trust", "watch"}
"""Those whose stdout is empty: no plan is trusted here, and nobody is in the video."""


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[str]:
    """Every command that does something, as it is typed."""
    found = []
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        below = (*path, name)
        found += commands(command, below) if isinstance(command, click.Group) else [" ".join(below)]
    return found


COMMANDS = commands(main)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that CASES speak of; not to be changed."""
    from click.testing import CliRunner

    folder = tmp_path_factory.mktemp("pristine")
    engine = tiny_engine.write_engine(folder / "engine")
    tiny_engine.write_engine(folder / "engine-2", seed=1, fingerprint="2" * 64)
    tiny_engine.write_portable(folder / "portable.onnx")
    for side, camera in (("query", 1), ("bounding_box_test", 2)):
        (folder / "market" / side).mkdir(parents=True)
        for person, look in enumerate(tiny_engine.people(4, seed=7), start=1):
            cv2.imwrite(str(folder / f"market/{side}/{person:04d}_c{camera}s1_000001_00.png"), look)
    writer = cv2.VideoWriter(str(folder / "walk.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(8):
        writer.write(np.full((48, 64, 3), 90, np.uint8))
    writer.release()
    (folder / "walk.csv").write_text("".join(f"{frame},1,5,5,25,45\n" for frame in range(8)))
    for arguments in (
        ["embed", engine, folder / "market" / "query", "-o", folder / "q.safetensors"],
        ["gallery", "create", folder / "seen", "--model", engine],
        ["gallery", "add", folder / "seen", folder / "q.safetensors"],
    ):
        done = CliRunner().invoke(main, [str(one) for one in arguments])
        assert done.exit_code == 0, done.output
    return folder


Outcome = tuple[int, str, str]
Run = Callable[..., dict[str, Outcome]]


@pytest.fixture(scope="module")
def run(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run every command in one situation, on a fresh copy of the folder; exit code, stdout and stderr of each."""

    def run(
        situation: str, *, closed: int | None = None, owner: int | None = None, **options: Any
    ) -> dict[str, Outcome]:
        folder = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("walk") / "w"))
        cases = folder.parent / "cases.json"
        lines = {
            name: [*name.split(), *text.format(w=folder).split()] for name, text in CASES.items() if name in COMMANDS
        }
        cases.write_text(json.dumps(lines))
        for path in [folder, *folder.rglob("*")] if owner is not None else []:
            path.chmod(0o700)
            os.chown(path, owner, owner)
        environment = {**os.environ, "CI": "true", "OMP_NUM_THREADS": "1"}
        environment = {**environment, **options.pop("env", {})}
        environment = {name: value for name, value in environment.items() if value is not None}
        reader, writer = os.pipe()
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("walk.py")), str(cases), situation, str(writer)],
            pass_fds=[writer],
            env=environment,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            preexec_fn=None if closed is None else lambda: os.close(closed),
            **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options},
        )
        os.close(writer)
        with os.fdopen(reader, "rb") as answer:
            text = answer.read()
        assert child.wait() == 0, f"the walk itself failed in {situation}"
        return {name: (code, out, err) for name, (code, out, err) in json.loads(text).items()}

    return run


def lines_of_error(err: str) -> list[str]:
    return [line for line in err.splitlines() if line.startswith(("Error: ", "usage:"))]


def check(results: dict[str, Outcome], *, failing: set[str], told: bool = True) -> None:
    """No traceback; exit code 0 but for `failing`; each failure is told in exactly one line of error."""
    wrong = []
    for name, (code, out, err) in results.items():
        if "Traceback" in out + err or "Exception ignored" in out + err or code < 0:
            wrong.append(f"{name}: exit {code}\n{err[-2000:]}")
        elif (code != 0) != (name in failing):
            wrong.append(f"{name}: exit {code}\n{out[-500:]}{err[-2000:]}")
        elif told and code and len(lines_of_error(err)) != 1:
            wrong.append(f"{name}: exit {code} without its one line of error\n{err[-2000:]}")
    assert not wrong, "\n".join(wrong)


def test_every_command_has_a_case() -> None:
    assert set(COMMANDS) - set(CASES) == set(), "say in CASES how to run these"


@pytest.mark.slow
def test_cases_do_what_they_say(run: Run) -> None:
    check(run("usual"), failing=FAILING)


NO_HOME = {"HOME": None, "XDG_CONFIG_HOME": None, "XDG_CACHE_HOME": None}


def test_service_without_stderr_home_name_and_unicode(run: Run) -> None:
    """What a service manager may start: all commands still do their work."""
    results = run("no name", closed=2, env={**NO_HOME, "PYTHONIOENCODING": "ascii"})
    check(results, failing=FAILING | {"trust"}, told=False)


@pytest.mark.slow
def test_no_home_folder_a_user_without_a_name_and_a_stdout_of_ascii(run: Run) -> None:
    """As the one before, but every failure is told: stderr is there."""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    check(run("no name", env={**NO_HOME, **plain}), failing=FAILING | {"trust"})  # whose list lies below HOME


@pytest.mark.slow
def test_closed_stdout(run: Run) -> None:
    """A result that nobody gets is no success."""
    check(run("closed stdout", closed=1), failing=set(COMMANDS) - SILENT)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.slow
def test_full_disk_behind_stdout(run: Run) -> None:
    with open("/dev/full", "wb") as full:
        check(run("full stdout", stdout=full), failing=set(COMMANDS) - SILENT)


@pytest.mark.slow
def test_reader_of_stdout_is_gone(run: Run) -> None:
    """As in `dpm-edge … | head -0`: no word about it, as nobody reads, but no success either."""
    reader, writer = os.pipe()
    os.close(reader)
    results = run("broken pipe", stdout=writer)
    os.close(writer)
    check(results, failing=set(COMMANDS) - SILENT, told=False)


@pytest.mark.skipif(
    os.geteuid() != 0 or platform.machine() not in CAPSET, reason="only root on Linux can give files to somebody else"
)
@pytest.mark.slow
def test_no_rights_to_read_or_write(run: Run) -> None:
    results = run("no rights", owner=12345, env={**NO_HOME, "HOME": "/nonexistent"})
    check(results, failing=set(COMMANDS) - {"doctor", "models", "trust"})


@pytest.mark.slow
def test_no_room_on_the_disk(run: Run) -> None:
    reading = {"inspect", "trust", "match", "eval", "doctor", "models"}  # bench builds engines in a temporary folder
    results = run("no room")
    galleries = {
        name for name in COMMANDS if name.startswith("gallery ") or name == "who"
    }  # their stores write to open
    check({name: results[name] for name in COMMANDS if name not in galleries}, failing=set(COMMANDS) - reading)
    failed = {name for name in galleries if results[name][0]}
    check({name: results[name] for name in galleries}, failing=failed)
    assert failed >= {"gallery create", "gallery add", "gallery fill", "gallery snapshot"}


def test_interrupt(run: Run) -> None:
    results = run("interrupt")
    check(results, failing=set(COMMANDS))
    assert {name: code for name, (code, _, _) in results.items() if code != 130} == {}
