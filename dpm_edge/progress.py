"""Progress with remaining time, on stderr, for anything that may take over two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], *, what: str, total: int | None = None, quiet: bool = False) -> Iterator[Item]:
    """Yield the items, with a bar on stderr once two seconds have passed: count, rate and remaining time.

    Where stderr is no terminal, a line every ten seconds; where it is closed, nothing.
    """
    if quiet or sys.stderr is None:
        return iter(items)
    from tqdm import tqdm

    rarely = {} if sys.stderr.isatty() else {"mininterval": 10, "maxinterval": 20}
    return iter(tqdm(items, desc=what, total=total, delay=2, file=sys.stderr, leave=False, **rarely))


def say(message: str) -> None:
    """Write a line of status for people to stderr, where it is open; stdout is for data."""
    if sys.stderr is not None:
        print(message, file=sys.stderr, flush=True)
