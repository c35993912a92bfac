"""Objects in processes of their own: answers, errors, and processes that die."""

from __future__ import annotations

import os
import time

import pytest

from dpm_edge.bench.worker import WorkerProcess
from dpm_edge.errors import DpmError, EngineError


class CountsCalls:
    """Something to be made in another process."""

    def __init__(self, start: int) -> None:
        if start < 0:
            raise EngineError("below zero")
        self.count = start

    def add(self, more: int) -> tuple[int, int]:
        self.count += more
        return self.count, os.getpid()

    def divide(self) -> float:
        return 1 / 0

    def die(self) -> None:
        os._exit(7)

    def hang(self) -> None:
        time.sleep(600)


def test_a_call_gives_the_answer_or_the_error_and_death_is_named() -> None:
    with WorkerProcess(CountsCalls, 5, name="a counter") as counter:
        count, process = counter.call("add", 2)
        assert count == 7 and process != os.getpid()
        with pytest.raises(DpmError, match=r"a counter: ZeroDivisionError"):
            counter.call("divide")
        assert counter.call("add", 1)[0] == 8, "an error in a call must not end the object"
        with pytest.raises(DpmError, match=r"a counter ended by itself, with exit code 7"):
            counter.call("die")
        with pytest.raises(DpmError, match=r"ended by itself"):
            counter.call("add", 1)
    counter.close()


def test_what_cannot_be_made_says_why() -> None:
    with pytest.raises(DpmError, match=r"^a counter: below zero$"):
        WorkerProcess(CountsCalls, -1, name="a counter")


def test_leaving_in_the_middle_of_a_call_ends_the_process() -> None:
    with pytest.raises(KeyboardInterrupt), WorkerProcess(CountsCalls, 0, name="a counter") as counter:
        process = counter.call("add", 0)[1]
        counter._pipe.send(("hang", ()))
        raise KeyboardInterrupt
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
