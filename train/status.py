"""What training says while it works: a line on stderr at least every ten seconds, however long a step takes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from dpm_edge.progress import say

Item = TypeVar("Item")
EVERY = 8.0
"""Seconds between two lines; under ten, for a machine that is busy."""


class StatusLines:
    """Says `text()` every few seconds from a thread of its own, as long as the block lasts.

    `text` is called on that thread: it reads plain numbers, and never waits for a GPU.
    """

    def __init__(self, text: Callable[[], str], *, quiet: bool = False) -> None:
        """quiet: say nothing."""
        self._text = text
        self._over = threading.Event()
        self._thread = None if quiet else threading.Thread(target=self._repeat, name="status lines", daemon=True)

    def __enter__(self) -> StatusLines:
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()

    def _repeat(self) -> None:
        while not self._over.wait(EVERY):
            say(self._text())


def working(what: str, *, quiet: bool = False) -> StatusLines:
    """Say what is being done, and since when, where nobody counts steps."""
    begin = time.perf_counter()
    return StatusLines(lambda: f"{what}: {time.perf_counter() - begin:.0f} s so far", quiet=quiet)


def counted(items: Iterable[Item], *, what: str, total: int | None = None, quiet: bool = False) -> Iterator[Item]:
    """Pass the items on, and say how many are done and about how long the rest will take.

    total: how many there are, where `items` cannot say.
    """
    if total is None and isinstance(items, Collection):
        total = len(items)
    begin, done = time.perf_counter(), 0

    def text() -> str:
        spent = time.perf_counter() - begin
        of = f" of {total}" if total is not None else ""
        rest = f", about {spent / done * (total - done):.0f} s left" if total is not None and done else ""
        return f"{what}: {done}{of}, {spent:.0f} s so far{rest}"

    with StatusLines(text, quiet=quiet):
        for item in items:
            yield item
            done += 1
