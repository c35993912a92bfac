"""Sources: files give every frame, live ones the newest when late; they connect again; no password is shown."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from moving_square import ScriptedStream, picture, write_video

from dpm_edge.errors import SourceError
from dpm_edge.watch import sources
from dpm_edge.watch.addresses import kind, redacted, without_secrets
from dpm_edge.watch.captures import as_picture
from dpm_edge.watch.sources import Source, SteadyClock

SECRET = "rtsp://admin:geheim@10.0.0.5:554/stream1"


def wait_for(what: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def scripts(*each: list[Any]) -> Callable[[str], ScriptedStream]:
    """An opener that gives a stream of the next script at each connection; the last one again and again."""
    left = list(each)
    return lambda address: ScriptedStream(left.pop(0) if len(left) > 1 else left[0])


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (SECRET, "rtsp://***@10.0.0.5:554/stream1"),
        ("rtsp://admin:a/b@c#d@host/x", "rtsp://***@host/x"),
        ("http://cam/video?user=me&password=geheim&size=2", "http://cam/video?user=***&password=***&size=2"),
        ("rtsp://10.0.0.5/stream", "rtsp://10.0.0.5/stream"),
        ("door.mp4", "door.mp4"),
        ("http://cam/a@b", "http://***@b"),
    ],
)
def test_addresses_are_shown_without_secrets(address: str, shown: str) -> None:
    assert redacted(address) == shown


def test_messages_of_libraries_lose_the_password() -> None:
    assert "geheim" not in without_secrets("401 for admin:geheim, pass geheim", SECRET)


@pytest.mark.parametrize(
    ("address", "what"),
    [("0", "device"), ("/dev/video2", "device"), (SECRET, "stream"), ("a.mp4", "file"), (".", "folder")],
)
def test_kind_of_an_address(address: str, what: str) -> None:
    assert kind(address) == what


def test_unknown_scheme_is_refused_by_name() -> None:
    with pytest.raises(SourceError, match="got ftp://"):
        kind("ftp://host/file")


def test_a_file_gives_every_frame_in_order_at_its_own_times(tmp_path: Path) -> None:
    video = write_video(tmp_path / "a.avi", frames=12, fps=10)
    with Source(video, "door", start=1000.0) as source:
        frames = []
        for frame in source:
            time.sleep(0.01)  # slower than the reader
            frames.append(frame)
    assert [f.number for f in frames] == list(range(12))
    assert np.allclose([f.seconds for f in frames], 1000 + np.arange(12) / 10, atol=1e-3)
    assert [round(float(f.image.mean()) / 10) for f in frames] == list(range(12))
    assert frames[0].camera == "door"


@pytest.mark.parametrize(
    ("rotate", "corners"),  # of [[1, 2, 3], [4, 5, 6]], by hand: the first row, and the first column
    [(0, ([1, 2, 3], [1, 4])), (90, ([4, 1], [4, 5, 6])), (180, ([6, 5, 4], [6, 3])), (270, ([3, 6], [3, 2, 1]))],
)
def test_pictures_are_turned_clockwise(tmp_path: Path, rotate: int, corners: tuple[list[int], list[int]]) -> None:
    cells = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)
    (tmp_path / "a").mkdir()
    cv2.imwrite(str(tmp_path / "a" / "0.png"), np.repeat(cells[..., None], 3, 2))
    with Source(tmp_path / "a", rotate=rotate) as source:
        (frame,) = source
    assert (frame.image[0, :, 0].tolist(), frame.image[:, 0, 0].tolist()) == corners
    assert frame.image.flags.c_contiguous
    assert (source.status().height, source.status().width) == frame.image.shape[:2]


def test_another_angle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="expected to rotate by 0, 90, 180, 270 degrees, got 45"):
        Source(tmp_path, rotate=45)


def test_folder_of_videos_is_one_after_the_other(tmp_path: Path) -> None:
    for name in ("b.avi", "a.avi"):
        write_video(tmp_path / name, frames=3, fps=10)
    with Source(tmp_path, "door", start=0.0) as source:
        seconds = [frame.seconds for frame in source]
    assert np.allclose(seconds, np.arange(6) / 10, atol=1e-3)


def test_folder_of_pictures_goes_by_name_and_leaves_a_damaged_one_out(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "1.png"), picture(10))
    (tmp_path / "2.png").write_bytes(b"no picture")
    cv2.imwrite(str(tmp_path / "3.png"), picture(30))
    with Source(tmp_path, "door") as source:
        assert [int(frame.image[0, 0, 0]) for frame in source] == [10, 30]
        assert "1 pictures could not be read" in source.status().message


def test_missing_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="got nothing"):
        Source(tmp_path / "none.mp4")


def test_a_file_that_is_no_video_fails_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(SourceError, match="expected a video that OpenCV can open"):
        list(Source(tmp_path / "bad.mp4"))


@pytest.mark.parametrize(("apart", "left"), [(1.0, [9]), (0.2, [8, 9]), (0.1, [9]), (0.01, [8, 9])])
def test_frames_that_are_late_or_too_many_give_way_to_the_newest(apart: float, left: list[int]) -> None:
    """By hand: frames wait for 0.25 s, four of them at most; the one that finds them late is alone then."""
    times = itertools.count()
    clock = SteadyClock(wall=lambda: 0.0, steady=lambda: apart * next(times))
    with Source(SECRET, "door", clock=clock, opener=scripts([*map(picture, range(10)), "hang"])) as source:
        wait_for(lambda: source.status().frames == 10)
        taken = [source.get(1.0) for _ in left]
        assert [(one.number, int(one.image[0, 0, 0])) for one in taken if one] == [(n, n) for n in left]
        assert source.status().dropped == 10 - len(left)
        assert source.get(0.0) is None


def test_a_live_source_that_is_taken_a_little_late_loses_nothing() -> None:
    """One slow frame among quick ones, as where the detector looks at every third."""
    with Source(SECRET, "door", opener=scripts([*map(picture, range(3)), "hang"])) as source:
        wait_for(lambda: source.status().frames == 3)
        assert [frame.number for frame in (source.get(1.0) for _ in range(3)) if frame] == [0, 1, 2]
        assert source.status().dropped == 0


def test_end_of_a_live_stream_is_a_lost_connection_and_it_connects_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_PAUSE", 0.05)
    with Source(SECRET, "door", opener=scripts([picture(1), "end"], [picture(2), "hang"])) as source:
        wait_for(lambda: source.status().frames == 2)
        assert source.status().reconnects == 1
        assert not source.ended


def test_pauses_between_attempts_double_up_to_the_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_PAUSE", 0.05)
    monkeypatch.setattr(sources, "LONGEST_PAUSE", 0.2)
    attempts: list[float] = []

    def refuse(address: str) -> Any:
        attempts.append(time.monotonic())
        raise SourceError("no answer")

    with Source(SECRET, "door", opener=refuse):
        wait_for(lambda: len(attempts) >= 6)
    pauses = np.diff(attempts[:6])
    assert np.all(pauses > [0.05, 0.1, 0.2, 0.2, 0.2]) and pauses[-1] < 1.0


def test_a_reader_that_hangs_is_given_up_and_another_connects() -> None:
    opener = scripts([picture(1), "hang"], [picture(2), "hang"])
    with Source(SECRET, "door", opener=opener, stall_after=0.2) as source:
        wait_for(lambda: source.status().frames == 2)
        assert source.status().reconnects >= 1


def test_a_camera_that_is_slow_to_connect_is_not_connected_anew_meanwhile() -> None:
    attempts: list[str] = []

    def slow(address: str) -> Any:
        attempts.append(address)
        time.sleep(0.8)
        return ScriptedStream([picture(1), "hang"])

    with Source(SECRET, "door", opener=slow, stall_after=0.2) as source:
        wait_for(lambda: source.status().frames == 1)
    assert len(attempts) == 1


def test_a_reader_that_was_given_up_delivers_nothing_more() -> None:
    released = threading.Event()

    class Late(ScriptedStream):
        def __iter__(self) -> Any:
            yield picture(1), None
            self._released.wait()
            yield picture(99), None

    opened: list[ScriptedStream] = []

    def opener(address: str) -> Any:
        opened.append(Late([], released) if not opened else ScriptedStream([picture(2), "hang"]))
        return opened[-1]

    with Source(SECRET, "door", opener=opener, stall_after=0.2) as source:
        wait_for(lambda: source.status().frames == 2)
        released.set()
        time.sleep(0.1)
        assert source.status().frames == 2


def test_a_slow_camera_is_not_called_stalled() -> None:
    class Slow(ScriptedStream):
        def __iter__(self) -> Any:
            for number in range(4):
                yield picture(number), None
                time.sleep(0.3)

    with Source(SECRET, "door", opener=lambda address: Slow([]), stall_after=0.4) as source:
        wait_for(lambda: source.status().frames >= 4)
        assert source.status().reconnects == 0


def test_bytes_that_break_the_decoder_do_not_end_the_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FIRST_PAUSE", 0.02)
    opener = scripts([ValueError(f"bad packet of {SECRET}")], [picture(3), "hang"])
    messages = []
    with Source(SECRET, "door", opener=opener) as source:
        while not source.status().frames:
            messages.append(source.status().message)
            time.sleep(0.005)
    assert any("bad packet" in m for m in messages) and not any("geheim" in m for m in messages)


def test_no_password_in_status_and_repr() -> None:
    with Source(SECRET, opener=scripts(["hang"])) as source:
        assert "geheim" not in repr(source) + str(source.status()) + source.camera


@pytest.mark.parametrize(
    ("frame", "shape"),
    [
        (np.zeros((4, 6), np.uint8), (4, 6, 3)),
        (np.zeros((4, 6, 1), np.uint8), (4, 6, 3)),
        (np.zeros((4, 6, 4), np.uint8), (4, 6, 3)),
        (np.zeros((4, 6), np.uint16), (4, 6, 3)),
        (np.zeros((4, 6, 3), np.uint8), (4, 6, 3)),
    ],
)
def test_grey_deep_and_transparent_frames_become_bgr(frame: Any, shape: tuple[int, ...]) -> None:
    found = as_picture(frame)
    assert found is not None and found.shape == shape and found.dtype == np.uint8


@pytest.mark.parametrize("frame", [None, np.zeros((0, 6, 3), np.uint8), np.zeros((4, 6, 2), np.uint8), np.zeros(5)])
def test_what_is_no_picture_is_left_out(frame: Any) -> None:
    assert as_picture(frame) is None


def test_seconds_do_not_jump_with_the_time_of_day_and_uncertainty_says_so() -> None:
    wall = [1000.0]
    clock = SteadyClock(wall=lambda: wall[0], steady=lambda: 5.0)
    wall[0] = 4600.0  # somebody set the clock an hour on
    with Source(SECRET, "door", clock=clock, clock_error=0.5, opener=scripts([picture(1), "hang"])) as source:
        frame = source.get(5.0)
    assert frame is not None
    assert (frame.seconds, frame.wall, frame.uncertainty) == (1000.0, 4600.0, 3600.5)


def test_no_answer_of_a_server_is_lost_and_names_the_address_without_its_password() -> None:
    with Source("rtsp://admin:geheim@127.0.0.1:9/none", "door") as source:
        wait_for(lambda: source.status().state == "lost", 20)
        assert "127.0.0.1:9/none" in source.status().message and "geheim" not in source.status().message
