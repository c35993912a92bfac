"""`dpm-edge serve` as a process: what it refuses at its start, and that it ends in good order."""

from __future__ import annotations

import re
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import tiny_engine
from click.testing import CliRunner

from dpm_edge import Engine, Gallery
from dpm_edge.cli.commands import main

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx is not installed")
pytest.importorskip("qdrant_edge", reason="galleries in a folder need qdrant-edge-py")

import httpx
from served import API, PNG, png

PEOPLE = tiny_engine.people(3)


@contextmanager
def server(folder: Path, *arguments: object) -> Iterator[tuple[str, subprocess.Popen[str], list[str]]]:
    """A process that serves: its address, itself, and what it said at its start."""
    command = [sys.executable, "-m", "dpm_edge.cli", "serve", "--engine", folder, "--port", 0, *arguments]
    process = subprocess.Popen([str(one) for one in command], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        said: list[str] = []
        while not (found := re.search(r"at (http://\S+)/api/v1", said[-1] if said else "")):
            said.append(process.stderr.readline())
            assert said[-1], "".join(said)
        yield found[1], process, said
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def restarted(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """A server beyond this machine, over the gallery of one that was killed after it had answered."""
    seen = tmp_path_factory.mktemp("restarted") / "seen"
    with server(folder, "--gallery", seen) as (address, process, _):
        for name, image in zip(("anna", "ben", "cleo"), PEOPLE):
            answer = httpx.post(f"{address}{API}/add", files={"pictures": png(image)}, data={"person": name})
            assert answer.status_code == 200, answer.text
        process.send_signal(signal.SIGKILL)
        process.wait()
    with server(folder, "--gallery", seen, "--host", "0.0.0.0") as (address, process, _):
        assert process.stderr is not None
        token = process.stderr.readline().removeprefix("token: ").strip()
        local = f"http://127.0.0.1:{address.rsplit(':', 1)[1]}"
        with httpx.Client(base_url=local, headers={"Authorization": f"Bearer {token}"}) as client:
            yield client


@pytest.mark.slow
def test_rows_that_were_answered_survive_a_killed_server_and_are_found_after_a_restart(
    restarted: httpx.Client,
) -> None:
    assert restarted.get(f"{API}/gallery").json()["rows"] == 3
    for name, image in zip(("anna", "ben", "cleo"), PEOPLE):
        (found,) = restarted.post(f"{API}/who", content=png(image), headers=PNG).json()["results"]
        assert found["matches"][0]["person"] == name


@pytest.mark.slow
def test_beyond_this_machine_a_token_is_made_printed_and_needed(restarted: httpx.Client) -> None:
    assert len(restarted.headers["Authorization"]) > len("Bearer ") + 30
    assert restarted.get(f"{API}/model").status_code == 200
    assert httpx.get(f"{restarted.base_url}{API}/model").status_code == 401


@pytest.mark.slow
def test_sigterm_answers_the_running_request_takes_no_new_one_and_closes_the_gallery(
    folder: Path, tmp_path: Path
) -> None:
    with server(folder, "--gallery", tmp_path / "seen") as (address, process, said):
        host, port = address.removeprefix("http://").split(":")
        body = png(PEOPLE[0])
        with socket.create_connection((host, int(port))) as running:
            running.settimeout(20)
            head = f"POST {API}/add?person=anna HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            running.sendall(head.encode() + body[:20])
            time.sleep(0.2)
            process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
            with pytest.raises(httpx.ConnectError):
                httpx.get(f"{address}/healthz")
            running.sendall(body[20:])
            assert running.recv(4096).startswith(b"HTTP/1.1 200 ")
        assert process.wait(15) == 0
        assert not (tmp_path / "seen" / "writer").exists()
    assert "token" not in "".join(said), "none is needed on this machine alone"
    with Gallery.open(tmp_path / "seen") as gallery:
        assert gallery.count(person="anna") == 1


@pytest.mark.slow
def test_a_small_file_of_many_pixels_is_refused_before_it_fills_the_memory(restarted: httpx.Client) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 9000
    pixels = zlib.compress(bytes(side * (side + 1)), 1)
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    answer = restarted.post(f"{API}/embed", content=bomb, headers=PNG)
    assert answer.status_code == 400 and "expected a picture that OpenCV can read" in answer.json()["error"]
    assert "PIXELS" in answer.json()["error"]


def refused(*arguments: object) -> str:
    done = CliRunner().invoke(main, ["serve", *(str(one) for one in arguments)])
    assert done.exit_code == 1 and done.output.count("\n") == 1, done.output
    return done.output


def test_a_gallery_of_another_engine_is_refused_at_the_start(folder: Path, tmp_path: Path) -> None:
    other = tiny_engine.write_engine(tmp_path / "other", seed=1, fingerprint="2" * 64)
    with Engine.load(other) as engine, Gallery.for_engine(engine, tmp_path / "theirs") as gallery:
        gallery.add(PEOPLE, people=["a", "b", "c"])
    for more in ([], ["--no-add"]):
        assert "model" in refused("--engine", folder, "--gallery", tmp_path / "theirs", "--port", 0, *more)


def test_a_gallery_that_is_held_elsewhere_is_refused_for_adding(folder: Path, tmp_path: Path) -> None:
    with Engine.load(folder) as engine, Gallery.for_engine(engine, tmp_path / "held"):
        assert "Close it there" in refused("--engine", folder, "--gallery", tmp_path / "held", "--port", 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--calibration", "nothing.json"], "expected a calibration, got nothing.json"),
        (["--gallery", "no/such/place", "--no-add"], "no/such/place"),
        (["--host", "192.0.2.1"], "expected a free address for the server, got 192.0.2.1"),
        (["--host", "no such host"], "expected an address of this machine for the server"),
    ],
)
def test_what_cannot_be_served_is_one_line(folder: Path, arguments: list[str], words: str) -> None:
    assert words in refused("--engine", folder, *arguments)


def test_a_port_that_is_taken_is_one_line(folder: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "Choose another: --port 0" in refused("--engine", folder, "--port", taken.getsockname()[1])


@pytest.mark.parametrize("library", ["fastapi", "uvicorn", "python_multipart"])
def test_a_missing_library_names_the_extra(folder: Path, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    for name in [one for one in sys.modules if one.startswith("dpm_edge.serve")]:
        monkeypatch.delitem(sys.modules, name)
    assert f"expected {library} for dpm-edge serve, got none" in (said := refused("--engine", folder))
    assert "pip install 'dpm-edge[serve]'" in said
