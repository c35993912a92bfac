"""Work handed in now and collected later: `Engine.submit` gives a Ticket, `Ticket.result` waits for it.

Jobs start in the order in which they came, on as many threads as the engine has lanes, and end in that order too: when
a ticket is done, so are all before it.

Threads do not survive a fork: in a forked child the queue starts anew with threads of its own, and what was handed in
before the fork is done by the parent alone.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from types import TracebackType
from typing import Generic, TypeVar

from dpm_edge.errors import EngineError

Result = TypeVar("Result")
WAITING = 64
"""Jobs that may wait for a lane; beyond it `submit` waits for room."""
LONGEST_END = 60.0
"""Seconds that the end of Python waits for calls that are under way."""


class Ticket(Generic[Result]):
    """One piece of work that was handed in."""

    def __init__(self) -> None:
        self._future: Future[Result] = Future()
        self._process = os.getpid()

    def __repr__(self) -> str:
        return f"Ticket({'done' if self.done() else 'not done yet'})"

    def result(self, timeout: float | None = None) -> Result:
        """What came of it, waiting at most `timeout` seconds (None: as long as it takes); may be called again.

        Raises:
            TimeoutError: it is not done yet; it goes on, and may be asked for again.
            EngineError: it was handed in before this process was forked, so its parent does it; or Python ended first.
            Exception: whatever the work itself raised, as `embed` would have.
        """
        if self._process != os.getpid() and not self._future.done():
            raise EngineError(
                f"expected work of this process, got a ticket of process {self._process}, which was forked. Ask for "
                "the result there, or submit again here"
            )
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
        self._closed = self._ending = False
        self._start_anew()

    def submit(self, job: Callable[[], Result]) -> Ticket[Result]:
        """Queue a job; waits for room where WAITING jobs wait already.

        Raises:
            EngineError: `close` was called.
        """
        ticket: Ticket[Result] = Ticket()
        self._mind_forks()
        with self._changed:
            while len(self._jobs) >= WAITING and not self._closed:
                self._changed.wait()
            if self._ending and threading.current_thread().daemon:
                self._changed.wait_for(lambda: False)  # Python is ending, and this thread ends with it
            if self._closed:
                raise EngineError("this engine is closed. Submit before close()")
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
        self._mind_forks()
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def abandon(self) -> None:
        """Finish what is running, drop what waits, then stop: for the end of the interpreter."""
        self._mind_forks()
        with self._changed:
            self._ending = True
            while self._jobs:
                _, _, ticket = self._jobs.pop()
                ticket._future.set_exception(EngineError("Python ended before this work was started"))
        self.close()

    def _start_anew(self) -> None:
        """No thread and no job, in this process."""
        self._process = os.getpid()
        self._threads: list[threading.Thread] = []
        self._jobs: deque[tuple[int, Callable[[], object], Ticket]] = deque()
        self._changed = threading.Condition()
        self._handed_in = self._finished = 0

    def _mind_forks(self) -> None:
        """Start anew in a forked child: it has none of the threads, and its copy of the lock may be held forever."""
        if self._process != os.getpid():
            self._start_anew()

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


class Calls:
    """Counts an engine's calls that are under way: `with calls: …`. `close` and the end of Python wait for them.

    A daemon thread that is inside an engine's library when Python ends aborts the process, and the application's exit
    code is lost. So the end waits for what is running, drops what was only handed in, and holds daemon threads that
    come for more.

    In a forked child the count starts anew, and the engine's library is never taken apart: it would wait for its own
    threads, which the child does not have.
    """

    def __init__(self, submitted: InOrder, library: object) -> None:
        self._submitted, self._library = submitted, library
        self._ending = False
        self.forked = False
        """Whether this process is a forked child of the one that opened the engine."""
        self._start_anew()
        _watch_the_process()
        _COUNTED.add(self)

    def __enter__(self) -> None:
        if self._ending and threading.current_thread().daemon:
            threading.Event().wait()  # forever: Python is ending, and this thread ends with it
        with self._idle:
            self._count += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._idle:
            self._count -= 1
            self._idle.notify_all()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until no call is under way, at most `timeout` seconds."""
        with self._idle:
            self._idle.wait_for(lambda: not self._count, timeout)

    def end(self) -> None:
        """Let running work finish and let no more begin, for the end of Python."""
        self._ending = True
        self._submitted.abandon()
        self.wait(LONGEST_END)

    def fork(self) -> None:
        """Start anew in a forked child, and keep the library's objects for good."""
        self._start_anew()
        if not self.forked:
            self.forked = True
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._library))

    def _start_anew(self) -> None:
        self._count = 0
        self._idle = threading.Condition()


_COUNTED: weakref.WeakSet[Calls] = weakref.WeakSet()
"""Calls of every engine that is not collected yet."""


@functools.cache
def _watch_the_process() -> None:
    """Have the end of Python and forked children looked after, from the first engine on."""

    def end() -> None:
        for calls in list(_COUNTED):
            calls.end()

    def fork() -> None:
        for calls in list(_COUNTED):
            calls.fork()

    atexit.register(end)
    os.register_at_fork(after_in_child=fork)
