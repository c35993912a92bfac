"""Work handed in now and collected later: `Engine.submit` gives a Ticket, `Ticket.result` waits for it.

Jobs start in the order in which they came, on as many threads as the engine has lanes, and end in that order too: when
a ticket is done, so are all before it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Generic, TypeVar

from dpm_edge.errors import EngineError

Result = TypeVar("Result")
WAITING = 64
"""Jobs that may wait for a lane; beyond it `submit` waits for room."""


class Ticket(Generic[Result]):
    """One piece of work that was handed in."""

    def __init__(self) -> None:
        self._future: Future[Result] = Future()

    def result(self, timeout: float | None = None) -> Result:
        """What came of it, waiting at most `timeout` seconds (None: as long as it takes); may be called again.

        Raises:
            TimeoutError: it is not done yet; it goes on, and may be asked for again.
            Exception: whatever the work itself raised, as `embed` would have.
        """
        try:
            return self._future.result(timeout)
        except FutureTimeout:
            if self._future.done():
                raise  # the work itself raised it
            raise TimeoutError(f"not done after {timeout} s; it goes on, ask for the result again") from None

    def done(self) -> bool:
        """Whether `result` would return or raise at once."""
        return self._future.done()


class InOrder:
    """Runs jobs on `lanes` threads of its own, which start with the first job."""

    def __init__(self, lanes: int) -> None:
        self._lanes = lanes
        self._threads: list[threading.Thread] = []
        self._jobs: deque[tuple[int, Callable[[], object], Ticket]] = deque()
        self._changed = threading.Condition()
        self._handed_in = self._finished = 0
        self._closed = False

    def submit(self, job: Callable[[], Result]) -> Ticket[Result]:
        """Queue a job; waits for room where WAITING jobs wait already.

        Raises:
            EngineError: `close` was called.
        """
        ticket: Ticket[Result] = Ticket()
        with self._changed:
            while len(self._jobs) >= WAITING and not self._closed:
                self._changed.wait()
            if self._closed:
                raise EngineError("this engine is closed; submit before close()")
            if len(self._threads) < self._lanes:
                thread = threading.Thread(target=self._serve, name="dpm-edge-engine", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._jobs.append((self._handed_in, job, ticket))
            self._handed_in += 1
            self._changed.notify_all()
        return ticket

    def close(self) -> None:
        """Finish what was handed in, then stop; may be called again."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                number, job, ticket = self._jobs.popleft()
                self._changed.notify_all()
            try:
                result, error = job(), None
            except BaseException as raised:  # whatever it is belongs to the one who collects this ticket
                result, error = None, raised
            del job
            with self._changed:
                while self._finished < number:
                    self._changed.wait()
                if error is None:
                    ticket._future.set_result(result)
                else:
                    ticket._future.set_exception(error)
                self._finished = number + 1
                self._changed.notify_all()
            del ticket, result, error
