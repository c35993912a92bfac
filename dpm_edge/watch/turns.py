"""Which frame is looked at next: of live cameras in turn, of files in order of time."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

from dpm_edge.watch.pipeline import CameraPipeline
from dpm_edge.watch.sources import CameraFrame


class Turns:
    """Takes frames from cameras' sources; `wake` is called by the sources when one has come."""

    def __init__(self, stop: threading.Event) -> None:
        """Wait for no frame once `stop` is set."""
        self._stop = stop
        self._arrived = threading.Condition()
        self._news = 0

    def wake(self) -> None:
        """A frame has come, or a source has ended."""
        with self._arrived:
            self._news += 1
            self._arrived.notify_all()

    def next(self, cameras: Mapping[str, CameraPipeline]) -> CameraFrame | None:
        """The frame to look at next; waits a moment where there is none."""
        with self._arrived:
            before = self._news
        frame = self._choose(cameras)
        if frame is None:
            with self._arrived:
                self._arrived.wait_for(lambda: self._news != before or self._stop.is_set(), 0.2)
        return frame

    def _choose(self, cameras: Mapping[str, CameraPipeline]) -> CameraFrame | None:
        live = [one for one in cameras.values() if one.source.live and one.source.peek() is not None]
        for camera in sorted(live, key=lambda one: one.turn):
            camera.turn = time.monotonic()
            if (frame := camera.source.get()) is not None:
                return frame
        files = [one for one in cameras.values() if not one.source.live and not one.source.ended]
        heads = [(one.source.peek(), one) for one in files]
        if any(head is None for head, _ in heads):
            return None  # the order of time is only known once every file has its next frame
        for _, camera in sorted(heads, key=lambda pair: pair[0].seconds if pair[0] else 0.0):
            return camera.source.get()
        return None
