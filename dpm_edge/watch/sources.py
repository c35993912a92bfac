"""Cameras, streams, videos and folders as one thing: a `Source` that gives frames and says how it is.

Each source has a reader thread. A live source (a device or a stream) gives its frames as they come, and where they are
not taken for LATE_SECONDS, goes on with the newest and drops the older ones; it connects again, with growing pauses,
whenever it ends, fails or falls silent. A file gives every frame and ends.

Two clocks: `seconds` never jumps and is for durations and order; `wall` is the time of day and is for people.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DpmError, SourceError
from dpm_edge.watch.addresses import kind, redacted, without_secrets
from dpm_edge.watch.camera_clock import CameraClock
from dpm_edge.watch.captures import Capture
from dpm_edge.watch.open_capture import open_capture, read_with
from dpm_edge.watch.site_config import ROTATIONS

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 3.0
"""Seconds before the first and the later attempts to connect again: the pause doubles."""
STALL_SECONDS = 10.0
"""Seconds without a frame after which a live source counts as stalled and is connected anew."""
CONNECT_SECONDS = 15.0
"""Seconds that connecting may take: FFmpeg gives up by itself before, but not always."""
HANGING_READERS = 3
"""Readers that may hang in a library at a time; then the source waits for one of them to end."""
STALL_INTERVALS = 4
"""A slow camera is stalled only after so many of its own longest recent intervals."""
WAITING_FRAMES = 4
"""Frames that wait to be taken, at most."""
LATE_SECONDS = 0.25
"""So long a live source's frames wait; then the newest takes their place. One slow frame makes no gap."""
JUMP_SECONDS = 1.0
"""A difference of the two clocks above which the time of day is no longer certain."""


class SteadyClock:
    """Unix seconds that start at the time of day and then never jump, whatever happens to the time of day."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        """Start now."""
        self._wall, self._steady = wall, steady
        self._offset = wall() - steady()

    def now(self) -> tuple[float, float]:
        """Steady seconds, and the time of day."""
        return self._steady() + self._offset, self._wall()


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraFrame:
    """One picture of one camera."""

    camera: str
    image: NDArray[np.uint8]
    """(H, W, 3) uint8 BGR."""
    number: int
    """Counts the frames that were read, dropped ones too, from 0."""
    seconds: float
    """Steady Unix seconds: for durations and order."""
    wall: float
    """Unix seconds of the time of day."""
    uncertainty: float
    """How far `wall` may be wrong, in seconds."""


@dataclass(frozen=True, kw_only=True)
class SourceStatus:
    """How a source is, for the page and the metrics."""

    camera: str
    address: str
    """Without user name and password."""
    state: str
    """connecting, live, stalled, lost (waiting to connect again), ended, failed or closed."""
    message: str = ""
    """What happened last, in a sentence; empty while all is well."""
    frames: int = 0
    dropped: int = 0
    """Frames that were read and not taken, because they were late and a newer one came."""
    reconnects: int = 0
    rate: float = 0.0
    """Frames a second, over the last seconds."""
    width: int = 0
    height: int = 0
    silent: float = 0.0
    """Seconds since the last frame."""
    total: int = 0
    """Frames that a file announces; 0 where unknown."""
    clock_offset: float | None = None
    """Our clock minus the camera's own, and the least time on the way, in seconds; None where it does not tell its."""


class Source:
    """One camera, stream, video or folder of pictures, read by a thread of its own. Use it in a `with`.

        with Source("rtsp://10.0.0.5/stream", "door") as source:
            for frame in source:
                …

    Args:
        address: a file, a folder of pictures or videos, rtsp://… or another stream, or the number of a USB camera.
        camera: its name; the address without its password if not given.
        start: Unix seconds of a file's first frame; now if not given.
        clock_error: how far the time of day of a frame may be wrong, in seconds.
        stall_after: seconds without a frame after which a live source is connected anew.
        clock: the clocks; sources whose times are compared share one.
        wake: called without arguments at each frame and each change of state, in the reader's thread.
        reader: what reads network streams: "opencv", "pyav" (extra `rtsp`; times by the camera's own clock), or "auto",
            PyAV for RTSP where it is installed.
        rotate: degrees clockwise by which frames are turned, one of ROTATIONS.
        opener: opens an address; for other libraries.

    Raises:
        SourceError: the address is none, or is a file that is not there; or there is no such reader or rotation.
        MissingLibrary: the reader is not installed.
    """

    def __init__(
        self,
        address: str | int | Path,
        camera: str | None = None,
        *,
        start: float | None = None,
        clock_error: float = 0.5,
        stall_after: float = STALL_SECONDS,
        clock: SteadyClock | None = None,
        wake: Callable[[], None] | None = None,
        reader: str = "auto",
        rotate: int = 0,
        opener: Callable[[str], Capture] | None = None,
    ) -> None:
        self.address = str(address)
        self.kind = kind(address)
        self.live = self.kind in ("device", "stream")
        """Whether frames are dropped where they are not taken in time, and an end is a lost connection."""
        self.camera = camera or redacted(address)
        if not self.live and not Path(self.address).exists():
            raise SourceError(f"expected a video file or a folder at {self.address}, got nothing. Check the path")
        self._start, self._clock_error, self._stall_after = start, clock_error, stall_after
        self._clock, self._wake = clock or SteadyClock(), wake or (lambda: None)
        if rotate not in ROTATIONS:
            raise SourceError(f"expected to rotate by {', '.join(map(str, ROTATIONS))} degrees, got {rotate}")
        self._turns = ROTATIONS.index(rotate)
        reader = read_with(self.address, reader)
        self._opener = opener or (lambda address: open_capture(address, reader))
        self._last = -math.inf
        self._changed = threading.Condition()
        self._waiting: deque[CameraFrame] = deque()
        self._status = SourceStatus(camera=self.camera, address=redacted(address), state="connecting")
        self._arrivals: deque[float] = deque(maxlen=30)
        self._generation = 0
        self._readers: list[threading.Thread] = []
        self._progress = time.monotonic()
        self._started = False

    def __repr__(self) -> str:
        return f"Source({self.camera!r}, {redacted(self.address)!r}, {self._status.state})"

    def __enter__(self) -> Source:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[CameraFrame]:
        """Give frames until a file ends or the source is closed; a live source connects again for ever.

        Raises:
            SourceError: a file cannot be read.
        """
        self.start()
        while not self.ended:
            frame = self.get(1.0)
            if frame is not None:
                yield frame
        if self._status.state == "failed":
            raise SourceError(self._status.message)

    @property
    def ended(self) -> bool:
        """Whether no further frame will come: the file's frames are all taken, or the source is closed."""
        with self._changed:
            return not self._waiting and self._status.state in ("ended", "failed", "closed")

    def start(self) -> None:
        """Start reading; a second call does nothing."""
        with self._changed:
            if self._started:
                return
            self._started = True
            self._start_reader()
        if self.live:
            threading.Thread(target=self._mind_stalls, name=f"stalls of {self.camera}", daemon=True).start()

    def get(self, timeout: float | None = 0.0) -> CameraFrame | None:
        """Take the next frame; None where none came in `timeout` seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._over(), timeout)
            if not self._waiting:
                return None
            frame = self._waiting.popleft()
            self._changed.notify_all()
            return frame

    def peek(self) -> CameraFrame | None:
        """Look at the frame that `get` would give now, without taking it."""
        with self._changed:
            return self._waiting[0] if self._waiting else None

    def status(self) -> SourceStatus:
        """How the source is at this moment."""
        with self._changed:
            now = time.monotonic()
            recent = [at for at in self._arrivals if now - at < 5]
            rate = (len(recent) - 1) / max(recent[-1] - recent[0], 1e-3) if len(recent) > 1 else 0.0
            silent = now - (self._arrivals[-1] if self._arrivals else self._progress)
            return replace(self._status, rate=rate, silent=silent)

    def close(self) -> None:
        """Stop reading; frames that wait are let go. A reader that hangs in a library ends when the library does."""
        with self._changed:
            self._generation += 1
            self._waiting.clear()
            self._set("closed")

    def _over(self) -> bool:
        return self._status.state in ("ended", "failed", "closed")

    def _start_reader(self) -> None:
        """Start a reader thread; one of an earlier generation that still hangs in a library delivers nothing more."""
        self._generation += 1
        self._progress = time.monotonic()
        read = self._read_live if self.live else self._read_file
        reader = threading.Thread(target=read, args=(self._generation,), name=f"reads {self.camera}", daemon=True)
        self._readers = [one for one in self._readers if one.is_alive()] + [reader]
        reader.start()

    def _set(self, state: str, message: str = "") -> None:
        """Change the state; the condition is held."""
        self._status = replace(self._status, state=state, message=without_secrets(message, self.address))
        self._changed.notify_all()
        self._wake()

    def _report(self, generation: int, state: str, message: str = "") -> bool:
        """Change the state, unless the reader was given up meanwhile; whether it is still the reader."""
        with self._changed:
            if generation != self._generation:
                return False
            self._progress = time.monotonic()
            self._set(state, message)
            return True

    def _read_live(self, generation: int) -> None:
        pause = FIRST_PAUSE
        while self._report(generation, "connecting", self._status.message):
            reason = "the stream ended"
            stamps = CameraClock()
            try:
                with self._opener(self.address) as capture:
                    for image, stamp in capture:
                        if not self._deliver(generation, image, *self._moment(stamps, stamp)):
                            return
                        pause = FIRST_PAUSE
            except DpmError as error:
                reason = str(error)
            except Exception as error:  # whatever a camera's bytes do to a decoder must not end the camera
                reason = f"reading failed: {type(error).__name__}: {error}"
            with self._changed:
                if generation != self._generation:
                    return
                self._set("lost", f"{reason}; connecting again in {pause:.1f} s")
                self._status = replace(self._status, reconnects=self._status.reconnects + 1)
                if self._changed.wait_for(lambda: generation != self._generation, pause):
                    return
            pause = min(2 * pause, LONGEST_PAUSE)

    def _moment(self, stamps: CameraClock, stamp: float | None) -> tuple[float, float]:
        """Steady seconds and time of day of a live picture that has just come, and was stamped by its camera or not."""
        seconds, wall = self._clock.now()
        late = 0.0 if stamp is None else stamps.late(stamp, seconds)
        late = min(late, max(0.0, seconds - self._last))  # time does not go back
        self._last = seconds - late
        with self._changed:
            self._status = replace(self._status, clock_offset=stamps.offset)
        return seconds - late, wall - late

    def _read_file(self, generation: int) -> None:
        begin = self._clock.now()[0] if self._start is None else self._start
        note = ""
        try:
            with self._opener(self.address) as capture:
                with self._changed:
                    self._status = replace(self._status, total=capture.total)
                for image, position in capture:
                    moment = begin + (position or 0.0)
                    if not self._deliver(generation, image, moment, moment):
                        return
                note = capture.shortfall()
            if not self._status.frames:
                raise SourceError(
                    f"expected frames in {self.address}, got none that could be read. Copy the file again"
                )
        except DpmError as error:
            self._report(generation, "failed", str(error))
        except Exception as error:  # a damaged file ends this camera, not the others
            self._report(generation, "failed", f"reading failed: {type(error).__name__}: {error}")
        else:
            self._report(generation, "ended", note)

    def _deliver(self, generation: int, image: NDArray[np.uint8], seconds: float, wall: float) -> bool:
        """Hand a frame over; whether the reader is to go on."""
        if self._turns:
            image = np.ascontiguousarray(np.rot90(image, -self._turns))
        with self._changed:
            if not self.live:
                self._changed.wait_for(lambda: len(self._waiting) < WAITING_FRAMES or generation != self._generation)
            if generation != self._generation:
                return False
            self._progress = time.monotonic()
            self._arrivals.append(self._progress)
            jumped = abs(wall - seconds)
            frame = CameraFrame(
                camera=self.camera,
                image=image,
                number=self._status.frames,
                seconds=seconds,
                wall=wall,
                uncertainty=self._clock_error + (jumped if jumped > JUMP_SECONDS else 0.0),
            )
            dropped = 0
            if self.live and self._late(seconds):
                dropped = len(self._waiting)
                self._waiting.clear()
            self._waiting.append(frame)
            self._status = replace(
                self._status,
                frames=self._status.frames + 1,
                dropped=self._status.dropped + dropped,
                width=image.shape[1],
                height=image.shape[0],
            )
            self._set("live")
            return True

    def _late(self, seconds: float) -> bool:
        """Whether the frames that wait have to give way to the one that is here now; the condition is held."""
        waiting = self._waiting
        return len(waiting) >= WAITING_FRAMES or (bool(waiting) and seconds - waiting[0].seconds > LATE_SECONDS)

    def _mind_stalls(self) -> None:
        """Give up a reader that hangs or hears nothing, and start another."""
        while True:
            with self._changed:
                if self._changed.wait_for(self._over, min(0.5, self._stall_after / 4)):
                    return
                recent = list(self._arrivals)[-5:]
                slowest = max((b - a for a, b in pairwise(recent)), default=0.0)
                limit = max(self._stall_after, STALL_INTERVALS * slowest)
                if self._status.state != "live":
                    limit = max(limit, CONNECT_SECONDS)
                silent = time.monotonic() - self._progress
                hanging = sum(one.is_alive() for one in self._readers)
                waiting = self._status.state in ("live", "connecting", "stalled")
                if waiting and silent > limit and hanging <= HANGING_READERS:
                    self._status = replace(self._status, reconnects=self._status.reconnects + 1)
                    self._set("stalled", f"no frame for {silent:.0f} s; connecting again")
                    self._start_reader()
