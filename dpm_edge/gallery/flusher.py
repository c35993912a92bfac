"""A thread that flushes a store soon after a change, so that power loss costs a second at most."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable

LONGEST_WAIT = 60.0
"""Seconds between two tries while flushing fails, as on a full disk."""


class Flusher:
    """Calls `flush` within `every` seconds of the first change since the last flush.

    A flush that fails is tried again, after `every` seconds and then after twice as long each time, up to a minute. The
    first failure and the success after it are said on stderr.
    """

    def __init__(self, flush: Callable[[], None], every: float) -> None:
        """The thread starts with the first change."""
        self._flush, self._every = flush, every
        self._due, self._over = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def wanted(self) -> None:
        """Something changed."""
        self._due.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dpm-gallery-flush", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End the thread; the owner flushes once more."""
        self._over.set()
        self._due.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        failures = 0
        while True:
            self._due.wait()
            if self._over.wait(min(self._every * 2**failures, max(LONGEST_WAIT, self._every))):
                return
            self._due.clear()
            if self._over.is_set():  # `stop` came after the wait: what woke this thread was cleared just now
                return
            try:
                self._flush()
            except Exception as error:
                self._due.set()
                failures = min(failures + 1, 30)
                if failures == 1:
                    _print(f"the gallery could not be flushed, which is tried again: {error}")
            else:
                if failures:
                    _print("the gallery is flushed again")
                failures = 0


def _print(text: str) -> None:
    """A line on stderr, where there is one: a service may have none."""
    if sys.stderr is not None:
        print(text, file=sys.stderr, flush=True)
