"""Crops of many cameras gathered into batches under a deadline, for any engine.

A camera thread submits a crop and gets a future. A batch leaves when it is full or when its oldest crop has waited
`max_wait`, whichever comes first; cameras take turns, so that a crowd at one door does not starve the others.

Threads do not survive a fork: in a forked child the batcher starts anew with a thread of its own, and what was
submitted before the fork is done by the parent alone.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict, deque
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import EngineError
from dpm_edge.images import as_bgr
from dpm_edge.runtime.embeddings import Embeddings

POLICIES = ("block", "drop_oldest", "error")


class QueueFull(EngineError):
    """The batcher's queue is full: under policy "error" for the new crop, under "drop_oldest" for the oldest one."""


class Embedder(Protocol):
    """What a batcher needs of an engine."""

    def embed(self, images: list[NDArray[np.uint8]]) -> Embeddings:
        """A row of the result for each picture."""


@dataclass
class _Waiting:
    image: NDArray[np.uint8]
    future: Future[Embeddings]
    since: float


class Batcher:
    """Gathers crops from any number of threads and embeds them in batches on one thread of its own.

    Args:
        engine: anything with `embed(list of pictures)`; called from one thread only.
        max_batch: crops of a batch at most.
        max_wait: seconds that a crop may wait for company.
        capacity: crops that may wait in all; beyond it `policy` decides.
        policy: "block" (submit waits for room), "drop_oldest" (of the camera with most waiting; its future raises
            QueueFull), "error" (submit raises QueueFull).

    Use it as a context manager; leaving it finishes what was submitted. Callbacks of the futures run on the batcher's
    own thread: there `submit` never waits for room, which that thread alone makes, and `close` does not wait either.

    Raises:
        EngineError: an unknown policy, or limits that contradict each other.
    """

    def __init__(
        self,
        engine: Embedder,
        *,
        max_batch: int = 8,
        max_wait: float = 0.01,
        capacity: int = 256,
        policy: str = "block",
    ) -> None:
        if policy not in POLICIES:
            raise EngineError(f"expected a policy of {', '.join(POLICIES)}, got {policy!r}")
        if max_batch < 1 or capacity < max_batch or max_wait < 0:
            raise EngineError(
                f"expected 1 ≤ max_batch ≤ capacity and max_wait ≥ 0, got max_batch {max_batch}, capacity {capacity}, "
                f"max_wait {max_wait}"
            )
        self._engine = engine
        self._max_batch, self._max_wait = max_batch, max_wait
        self._capacity, self._policy = capacity, policy
        self._closed = False
        self._start_anew()

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._count} of {self._capacity} crops waiting"
        return f"Batcher({state}, max_batch={self._max_batch}, max_wait={self._max_wait}, policy={self._policy!r})"

    def submit(self, image: NDArray, *, camera: str = "", color: str = "bgr", copy: bool = True) -> Future[Embeddings]:
        """Queue one crop; the future's result is an `Embeddings` of one row.

        Args:
            image: (H, W, 3) uint8, any size.
            camera: whose turn it is; cameras take turns.
            color: channel order of the crop: "bgr" or "rgb".
            copy: take a copy, so that the frame's buffer may be used again at once. False saves the copy: then the
                crop must stay as it is until the future is done.

        Raises:
            ImageError: the crop is no picture; nothing was queued.
            QueueFull: the queue is full and the policy is "error".
            EngineError: the batcher is closed.
        """
        crop = as_bgr(image, color=color, what="crop")
        if copy and np.may_share_memory(crop, image):
            crop = crop.copy()
        item = _Waiting(crop, Future(), 0.0)
        self._mind_forks()
        dropped: list[_Waiting] = []
        with self._arrived:
            while self._count >= self._capacity and not self._closed:
                if self._policy == "error":
                    raise QueueFull(f"{self._count} crops wait already (capacity {self._capacity})")
                if self._policy == "drop_oldest":
                    dropped.append(self._take_oldest())
                elif self._thread is threading.current_thread():
                    break
                else:
                    self._room.wait()
            if self._closed:
                raise EngineError("this batcher is closed. Submit before close()")
            item.since = time.monotonic()
            self._cameras.setdefault(camera, deque()).append(item)
            self._count += 1
            if self._count in (1, self._max_batch):  # any other crop changes nothing about when the batch is due
                self._arrived.notify()
        for one in dropped:  # without the lock: a callback of its future may submit
            if one.future.set_running_or_notify_cancel():
                reason = f"dropped for a newer crop: {self._capacity} crops waited already"
                one.future.set_exception(QueueFull(reason))
        return item.future

    def close(self) -> None:
        """Finish what was submitted, then stop. Calling it again does nothing.

        Called in a callback of a future, on the batcher's own thread, it returns at once, and the rest is finished
        after the callback.
        """
        self._mind_forks()
        with self._arrived:
            self._closed = True
            self._arrived.notify_all()
            self._room.notify_all()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start_anew(self) -> None:
        """No crop, and a thread of this process."""
        self._process = os.getpid()
        self._cameras: OrderedDict[str, deque[_Waiting]] = OrderedDict()
        self._count = 0
        lock = threading.Lock()
        self._arrived = threading.Condition(lock)
        self._room = threading.Condition(lock)
        self._thread = threading.Thread(target=self._serve, name="dpm-edge-batcher", daemon=True)
        self._thread.start()

    def _mind_forks(self) -> None:
        """Start anew in a forked child: it has no thread, and its copy of the lock may be held forever."""
        if self._process != os.getpid():
            self._start_anew()

    def _take_oldest(self) -> _Waiting:
        """The oldest crop of the camera with most waiting, out of the queue."""
        self._count -= 1
        return max(self._cameras.values(), key=len).popleft()

    def _gather(self) -> list[_Waiting]:
        """The next batch, cameras in turn; empty when closed and drained. Blocks until it is due."""
        with self._arrived:
            while self._count < self._max_batch and not self._closed:
                if not self._count:
                    self._arrived.wait()
                    continue
                oldest = min(queue[0].since for queue in self._cameras.values() if queue)
                left = oldest + self._max_wait - time.monotonic()
                if left <= 0:
                    break
                self._arrived.wait(left)
            batch: list[_Waiting] = []
            while self._count and len(batch) < self._max_batch:
                camera, queue = self._cameras.popitem(last=False)
                if queue:
                    batch.append(queue.popleft())
                    self._count -= 1
                if queue:
                    self._cameras[camera] = queue
            self._room.notify_all()
            return batch

    def _serve(self) -> None:
        while batch := self._gather():
            batch = [item for item in batch if item.future.set_running_or_notify_cancel()]
            if not batch:
                continue
            try:
                found = self._engine.embed([item.image for item in batch])
                if len(found) != len(batch):
                    raise EngineError(f"the engine returned {len(found)} rows for {len(batch)} crops")
            except BaseException as error:
                for item in batch:
                    item.future.set_exception(error)
                continue
            for one, item in zip(found.each(), batch):
                item.future.set_result(one)
