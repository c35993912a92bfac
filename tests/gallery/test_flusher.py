"""The thread that flushes a gallery: when it flushes, and that it always ends."""

from __future__ import annotations

import threading

from dpm_edge.gallery.flusher import Flusher


def test_a_change_is_flushed_soon() -> None:
    flushed = threading.Event()
    flusher = Flusher(flushed.set, every=0.01)
    flusher.wanted()
    assert flushed.wait(10)
    flusher.stop()


def test_a_stop_between_the_wait_and_the_flush_ends_the_thread() -> None:
    """The thread clears what woke it; a stop that came just before must not be cleared with it."""
    flusher = Flusher(lambda: None, every=0.01)

    class ClearedLate(threading.Event):
        def clear(self) -> None:
            flusher._over.set()  # what `stop` does before it waits for the thread
            self.set()
            super().clear()

    flusher._due = ClearedLate()
    flusher.wanted()
    assert flusher._thread is not None
    flusher._thread.join(10)
    assert not flusher._thread.is_alive()
