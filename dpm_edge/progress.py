"""Progress with remaining time, on stderr, for anything that may take over two seconds."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def track(items: Iterable[Item], *, what: str, total: int | None = None, quiet: bool = False) -> Iterator[Item]:
    """The items, with a bar on stderr once two seconds have passed: count, rate and remaining time.

    Where stderr is no terminal, a line every ten seconds.
    """
    from tqdm import tqdm

    quiet = quiet or sys.stderr is None  # a service without one, such as pythonw
    rarely = {} if quiet or sys.stderr.isatty() else {"mininterval": 10, "maxinterval": 20}
    return iter(tqdm(items, desc=what, total=total, delay=2, disable=quiet, file=sys.stderr, leave=False, **rarely))


def say(message: str) -> None:
    """A line of status for people, on stderr; stdout is for data."""
    if sys.stderr is not None:  # else print would take stdout
        print(message, file=sys.stderr, flush=True)
