"""A copy of an OpenVINO model for calls of one crop.

Where the batch is free, OpenVINO plans each call anew. A model that knows its batch is faster, most of all for one
crop, and most with small networks of convolutions. For more crops the gain is smaller, and such a model takes as much
memory as the one with a free batch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

CALLS = 8
"""Calls of one crop before its model is compiled, which takes the last of them about half a second longer."""
MOST_BYTES = 64 << 20
"""Of the engine's files; the weights of larger ones would lie in memory twice."""


class SingleCrop:
    """The model for one crop, once it was asked for often enough; threads may share it.

    Args:
        compile: compiles it.
    """

    def __init__(self, compile: Callable[[], Any]) -> None:
        self._compile: Callable[[], Any] | None = compile
        self._model: Any | None = None
        self._calls = 0
        self._compiling = threading.Lock()

    def model(self) -> Any | None:
        """The model, None while there is none; counts the call, and may compile it.

        While another thread compiles, there is none.
        """
        self._calls += 1
        if self._compile is None or self._calls < CALLS or not self._compiling.acquire(blocking=False):
            return self._model
        try:
            if self._compile is not None:
                compile, self._compile = self._compile, None
                self._model = compile()
        except RuntimeError:  # a graph that only takes a free batch: that model computes as well
            pass
        finally:
            self._compiling.release()
        return self._model

    def close(self) -> None:
        """Let go of the model."""
        self._compile = self._model = None
