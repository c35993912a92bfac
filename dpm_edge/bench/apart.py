"""An object in a process of its own: its threads disturb nobody else's timing, and its memory is its own."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from dpm_edge.errors import DpmError


class Apart:
    """Makes an object in a fresh process and calls its methods there, one at a time.

    Use it as a context manager; leaving it ends the process.
    """

    def __init__(self, make: Callable[..., Any], *arguments: Any, name: str) -> None:
        """Start the process and make `make(*arguments)` there; `name` stands in errors.

        Raises:
            DpmError: making it failed; the message is the one from there.
        """
        context = multiprocessing.get_context("spawn")
        self._name = name
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(other, make, arguments), daemon=True)
        self._process.start()
        other.close()
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def call(self, method: str, *arguments: Any) -> Any:
        """What that method returns there.

        Raises:
            DpmError: it failed there, or the process has died.
        """
        try:
            self._pipe.send((method, arguments))
        except OSError as error:
            raise self._died() from error
        return self._answer()

    def close(self) -> None:
        """End the process, in the middle of a call too; a second call does nothing."""
        self._pipe.close()
        self._process.join(0.5)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join()

    def __enter__(self) -> Apart:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _answer(self) -> Any:
        try:
            fine, answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if not fine:
            raise DpmError(f"{self._name}: {answer}")
        return answer

    def _died(self) -> DpmError:
        self._process.join(5)
        return DpmError(f"the process of {self._name} ended by itself, with exit code {self._process.exitcode}")


def _serve(pipe: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    """Make the object, then answer calls until the other end is closed."""
    served = None
    call: Callable[..., Any] = make
    while True:
        try:
            answer = call(*arguments)
            if served is None:
                served, answer = answer, None
            pipe.send((True, answer))
        except KeyboardInterrupt:
            return
        except BrokenPipeError:
            return
        except Exception as error:
            pipe.send((False, str(error) if isinstance(error, DpmError) else f"{type(error).__name__}: {error}"))
            if served is None:
                return
        try:
            method, arguments = pipe.recv()
        except (EOFError, KeyboardInterrupt):
            return
        call = getattr(served, method)
