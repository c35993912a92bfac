"""What a FakeCuda's handles stand for: allocations, streams, kernels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

PRIMARY, OTHER = 7001, 7002
"""Contexts: the device's own one, and one of the application's making."""


@dataclass
class Block:
    """One allocation."""

    array: NDArray[np.uint8]
    kind: str
    context: int = PRIMARY
    freed: bool = False


@dataclass
class Stream:
    """An ordered queue; `done` of all `issued` operations have run."""

    handle: int
    queue: deque[Callable[[], None]] = field(default_factory=deque)
    issued: int = 0
    done: int = 0
    captured: list[Callable[[], None]] | None = None


@dataclass
class Function:
    """A kernel by its launch description."""

    description: dict[str, Any]
