"""A thread that flushes a store soon after a change, so that power loss costs a second at most."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


class Flusher:
    """Calls `flush` within `every` seconds of the first change since the last flush."""

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
        while True:
            self._due.wait()
            if self._over.wait(self._every):
                return
            self._due.clear()
            try:
                self._flush()
            except Exception as error:  # said aloud, and tried again at the next change
                print(f"the gallery could not be flushed: {error}", file=sys.stderr, flush=True)
