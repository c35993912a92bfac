"""Streams read with PyAV: pictures, the camera's own clock, and what is refused."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from dpm_edge.errors import MissingLibrary, SourceError
from dpm_edge.watch import av_capture, open_capture
from dpm_edge.watch.av_capture import AvCapture
from dpm_edge.watch.camera_clock import CameraClock
from dpm_edge.watch.sources import Source

pytest.importorskip("av", reason="PyAV is not installed (extra rtsp)")
SENDER = Path(__file__).with_name("rtsp_sender.py")
LISTEN = {"rtsp_flags": "listen", "listen_timeout": "60"}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine the sender needs a while to start."""
    monkeypatch.setattr(av_capture, "TIMEOUT_MS", 60_000)


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"rtsp://127.0.0.1:{free.getsockname()[1]}/door"


@pytest.fixture
def send(address: str) -> Iterator[Callable[[int, float], None]]:
    """Starts the camera, which sends as soon as somebody listens."""
    started: list[subprocess.Popen[bytes]] = []

    def start(held: int, late: float) -> None:
        command = [sys.executable, str(SENDER), address, str(held), str(late)]
        started.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))

    yield start
    for one in started:
        one.kill()
        one.wait()


@pytest.mark.usefixtures("patient")
def test_pictures_come_with_the_cameras_clock(address: str, send: Callable[[int, float], None]) -> None:
    """The sender runs on this machine's clock; picture n has brightness 5 n and is stamped n / 20 s after the first."""
    send(0, 0.0)
    levels, stamps, late = [], [], []
    with AvCapture(address, LISTEN) as capture, contextlib.suppress(SourceError):  # the camera hangs up
        for image, stamp in capture:
            assert image.shape == (48, 64, 3) and image.dtype == np.uint8
            levels.append(float(image.mean()))
            if stamp is not None:
                stamps.append((levels[-1], stamp))
                late.append(time.time() - stamp)
    assert len(levels) >= 38
    numbers = np.round(np.array([level for level, _ in stamps]) / 5)
    assert np.abs(np.array(levels) / 5 - np.round(np.array(levels) / 5)).max() < 0.6  # MPEG-4 keeps brightness to 3
    assert np.allclose(np.diff([stamp for _, stamp in stamps]), np.diff(numbers) / 20, atol=0.06)
    assert len(stamps) > 30 and 0 <= min(late) < 2


def test_a_network_that_holds_pictures_up_does_not_move_their_times(
    address: str, send: Callable[[int, float], None]
) -> None:
    """Picture 25 leaves 0.5 s late and ten after it in a burst; by the stamps they are a twentieth apart."""
    send(25, 0.5)
    frames, arrivals = [], []
    with Source(address, "door", opener=lambda where: AvCapture(where, LISTEN)) as source:
        while len(frames) < 36:
            frame = source.get(5.0 if frames else 20.0)  # a busy machine's source drops some of the 40
            if frame is None:
                break
            frames.append(frame)
            arrivals.append(time.monotonic())
        offset = source.status().clock_offset
    assert len(frames) > 20
    steps, came = np.diff([one.number for one in frames]), np.diff(arrivals)
    gaps = np.diff([one.seconds for one in frames])
    held = int(np.argmax(came[10:])) + 10
    assert came[held] > 0.4
    assert (gaps >= 0).all() and (gaps[10:] < 0.25 + 0.05 * steps[10:]).all()
    assert np.median((gaps / steps)[10:]) == pytest.approx(0.05, abs=0.01)
    assert offset is not None and 0 <= offset < 2


def test_nobody_there_is_refused_without_the_password(address: str) -> None:
    hidden = address.replace("//", "//admin:geheim@")
    with pytest.raises(SourceError, match=r"expected a stream that answers.*\*\*\*@.*got ConnectionRefused") as refused:
        AvCapture(hidden)
    assert "geheim" not in str(refused.value)


def test_sound_alone_is_refused(tmp_path: Path) -> None:
    with wave.open(str(tmp_path / "a.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "none"))
        sound.writeframes(bytes(8000))
    with pytest.raises(SourceError, match=r"expected video at .*a\.wav, got a stream without"):
        AvCapture(str(tmp_path / "a.wav"))


@pytest.mark.parametrize(
    ("address", "reader", "installed", "wanted"),
    [
        ("rtsp://door/x", "auto", True, "pyav"),
        ("rtsp://door/x", "auto", False, "opencv"),
        ("RTSPS://door/x", "auto", True, "pyav"),
        ("http://door/x.mjpg", "auto", True, "opencv"),
        ("http://door/x.mjpg", "pyav", True, "pyav"),
        ("rtsp://door/x", "opencv", True, "opencv"),
        ("0", "pyav", True, "opencv"),
        ("door.mp4", "pyav", True, "opencv"),
    ],
)
def test_what_reads_an_address(
    address: str, reader: str, installed: bool, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_capture, "is_installed", lambda: installed)
    assert open_capture.read_with(address, reader) == wanted


def test_a_reader_that_is_not_there_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingLibrary, match=r"pip install 'dpm-edge\[rtsp\]'"):
        Source("rtsp://door/x", reader="pyav")
    with pytest.raises(SourceError, match="expected a reader out of auto, opencv, pyav, got 'gstreamer'"):
        Source("rtsp://door/x", reader="gstreamer")
    assert av_capture.is_installed() is False


def test_lateness_against_the_least_difference_of_the_last_minute() -> None:
    """The camera's clock is 1,000 s behind and runs 0.1 % slow; pictures take 0.1 s and up to 2 s more."""
    draw = np.random.default_rng(0)
    clock, differences, arrival = CameraClock(), [], 0.0
    for number in range(3000):
        taken = number / 10
        arrival = max(arrival, taken + 0.1 + float(draw.exponential(0.2) if number % 7 else 0.0))
        stamp = 0.999 * taken - 1000
        differences.append((arrival, arrival - stamp))
        late = clock.late(stamp, arrival)
        recent = [difference for at, difference in differences if arrival - at <= 60]
        assert late == pytest.approx(differences[-1][1] - min(recent), abs=1e-9)
        assert clock.offset == pytest.approx(min(recent))


def test_a_camera_clock_that_is_set_begins_anew() -> None:
    clock = CameraClock()
    assert clock.late(100.0, 200.0) == 0.0
    assert clock.late(101.0, 201.5) == pytest.approx(0.5)
    assert clock.late(50.0, 202.0) == 0.0  # set back by 52 s
    assert clock.offset == pytest.approx(152.0)
    assert clock.late(5000.0, 203.0) == 0.0  # set forward
    assert clock.offset == pytest.approx(-4797.0)
