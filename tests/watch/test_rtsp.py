"""Sources on a real RTSP server that goes away, freezes, comes back, and asks for a password."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from dpm_edge.watch.sources import Source

SERVER = Path(__file__).with_name("rtsp_server.py")
PYTHON = "/usr/bin/python3"
NEEDS = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
HAS_SERVER = Path(PYTHON).exists() and subprocess.run([PYTHON, "-c", NEEDS], capture_output=True).returncode == 0
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not HAS_SERVER, reason="the system's Python has no gst-rtsp-server (gir1.2-gst-rtsp-server-1.0)"
    ),
]

READERS = pytest.mark.parametrize(
    "reader",
    [
        "opencv",
        pytest.param(
            "pyav",
            marks=pytest.mark.skipif(find_spec("av") is None, reason="PyAV is not installed (extra rtsp)"),
        ),
    ],
)


def wait_for(what: Callable[[], bool], seconds: float = 40.0) -> float:
    """Wait until something is so; how long that took."""
    begin = time.monotonic()
    while not what():
        assert time.monotonic() - begin < seconds, "it did not happen in time"
        time.sleep(0.02)
    return time.monotonic() - begin


@pytest.fixture
def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def serve(port: int) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    """Starts the server, as often as asked."""
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        command = [PYTHON, str(SERVER), str(port), "admin", "geheim"]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        assert started[-1].stdout is not None and started[-1].stdout.readline() == "ready\n"
        return started[-1]

    yield start
    for server in started:
        server.kill()
        server.wait()


def address(port: int, password: str = "geheim") -> str:
    return f"rtsp://admin:{password}@127.0.0.1:{port}/stream"


@READERS
def test_a_server_that_dies_and_comes_back_is_found_again(
    reader: str, port: int, serve: Callable[[], subprocess.Popen[str]]
) -> None:
    server = serve()
    with Source(address(port), "door", reader=reader) as source:
        wait_for(lambda: source.status().frames >= 5)
        frame = source.get(5)
        assert frame is not None and frame.image.shape == (240, 320, 3)
        server.kill()
        server.wait()
        wait_for(lambda: source.status().state == "lost")
        before = source.status().frames
        serve()
        took = wait_for(lambda: source.status().frames > before)
        assert source.status().state == "live" and source.status().reconnects >= 1
    assert took < 30  # the longest pause is 3 s; connecting takes what a busy machine takes


@READERS
def test_a_server_that_freezes_is_given_up_and_found_again(
    reader: str, port: int, serve: Callable[[], subprocess.Popen[str]]
) -> None:
    server = serve()
    with Source(address(port), "door", stall_after=2.0, reader=reader) as source:
        wait_for(lambda: source.status().frames >= 5)
        os.kill(server.pid, signal.SIGSTOP)
        wait_for(lambda: source.status().reconnects >= 1)
        before = source.status().frames
        os.kill(server.pid, signal.SIGCONT)
        wait_for(lambda: source.status().frames > before + 3)


@READERS
def test_a_wrong_password_is_lost_and_neither_state_nor_stderr_shows_it(
    reader: str, port: int, serve: Callable[[], subprocess.Popen[str]]
) -> None:
    serve()
    script = f"""
import os, time
os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "-8"
from dpm_edge.watch.sources import Source
with Source({address(port, "ganzfalsch")!r}, "door", reader={reader!r}) as source:
    while source.status().state != "lost":
        time.sleep(0.05)
    print(source.status(), source)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert "expected a stream that answers, with the right name and password" in done.stdout, done.stderr
    assert "ganzfalsch" not in done.stdout + done.stderr


@pytest.mark.skipif(find_spec("av") is None, reason="PyAV is not installed (extra rtsp)")
def test_the_cameras_clock_is_read(port: int, serve: Callable[[], subprocess.Popen[str]]) -> None:
    """The server runs on this machine's clock: the offset is the time on the way."""
    serve()
    with Source(address(port), "door", reader="pyav") as source:
        wait_for(lambda: source.status().clock_offset is not None)
        offset = source.status().clock_offset
        assert offset is not None and 0 <= offset < 2
