"""The lanes of one engine: a call takes a free one, or waits for it; marks of other streams' work."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dpm_edge.errors import EngineError
from dpm_edge.runtime.gpu.arrays import stream_handle
from dpm_edge.runtime.gpu.device import Device
from dpm_edge.runtime.gpu.lane import NO_TIMING, Lane


class Mark:
    """An event behind the work that a stream held when it was made. Its event is used again when it is gone."""

    def __init__(self, event: Any, free: deque[Any]) -> None:
        self.event = event
        self._free = free

    def __del__(self) -> None:
        self._free.append(self.event)


class Lanes:
    """Lanes on one device, shared by any number of threads."""

    def __init__(self, device: Device, lanes: list[Lane]) -> None:
        self._device, self._all = device, lanes
        self._free = deque(lanes)
        self._changed = threading.Condition()
        self._events: deque[Any] = deque()
        self._made: list[Any] = []

    def __len__(self) -> int:
        return len(self._all)

    @contextmanager
    def take(self, after: Mark | None) -> Iterator[Lane]:
        """A lane of one's own, the device current, its stream behind `after`. Waits until one is free."""
        with self._changed:
            while not self._free:
                self._changed.wait()
            lane = self._free.popleft()
        try:
            with self._device:
                try:
                    if after is not None:
                        lane.wait_for(after.event)
                    yield lane
                except BaseException:
                    with contextlib.suppress(EngineError):
                        lane.wait()  # what was enqueued must not meet the next call's buffers
                    raise
        finally:
            with self._changed:
                self._free.append(lane)
                self._changed.notify()

    def mark(self, stream: Any) -> Mark:
        """Remember the work that a stream of the application holds now.

        Raises:
            EngineError: it is no CUDA stream, or not of this GPU.
        """
        handle = stream_handle(stream)
        with self._device:
            try:
                event = self._events.popleft()
            except IndexError:
                event = self._device.call("cuEventCreate", NO_TIMING)
                self._made.append(event)
            mark = Mark(event, self._events)
            self._device.call("cuEventRecord", event, handle)
        return mark

    def close(self) -> None:
        """Give back every lane and event. No call is under way."""
        with self._device:
            for lane in self._all:
                lane.close()
            for event in self._made:
                self._device.call("cuEventDestroy", event)
        self._all, self._made = [], []
