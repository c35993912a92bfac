"""Work that is submitted and collected later: order, errors, closing; on CPU engines and on the fake GPU."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gpu_machine
import numpy as np
import pytest
import tiny_engine

from dpm_edge import Engine
from dpm_edge.errors import EngineError, ImageError
from dpm_edge.runtime import tickets
from dpm_edge.runtime.tickets import InOrder, Ticket


@pytest.fixture(params=["onnxruntime", "openvino", "gpu"])
def any_engine(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    if request.param == "gpu":
        machine = gpu_machine.make(tmp_path, monkeypatch)
        with machine.open() as engine:
            yield engine
        assert machine.cuda.violations == []
    else:
        with Engine.load(tiny_engine.write_engine(tmp_path / "engine", request.param), threads=1) as engine:
            yield engine


def test_tickets_give_what_embed_gives_each_its_own(any_engine: Engine) -> None:
    work = [tiny_engine.people(1 + seed % 9, seed) for seed in range(20)]
    waiting = [any_engine.submit(images) for images in work]
    for images, ticket in zip(work, waiting):
        np.testing.assert_allclose(ticket.result(60).features, tiny_engine.expected(images)[0], atol=2e-3)
        assert ticket.done() and ticket.result() is ticket.result()
    frame = np.random.default_rng(1).integers(0, 256, (100, 80, 3), np.uint8)
    boxes = [[1, 1, 50, 90], [5, 5, 5, 6]]
    got, wanted = any_engine.submit(frame, boxes).result(60), any_engine.embed(frame, boxes)
    np.testing.assert_array_equal(got.features, wanted.features)
    assert got.skipped == wanted.skipped and len(got.skipped) == 1


def test_an_error_belongs_to_its_own_ticket(any_engine: Engine) -> None:
    images = tiny_engine.people(2)
    jobs: list[Any] = [images, "no pictures", images, [np.zeros((0, 3, 3), np.uint8)], images]
    waiting = [any_engine.submit(job) for job in jobs]
    for job, ticket in zip(jobs, waiting):
        if job is images:
            assert len(ticket.result(60)) == 2
        else:
            with pytest.raises(ImageError, match="image 0"):
                ticket.result(60)


def test_closing_finishes_what_was_submitted_and_refuses_more(any_engine: Engine) -> None:
    waiting = [any_engine.submit(tiny_engine.people(3, seed)) for seed in range(12)]
    any_engine.close()
    assert all(ticket.done() and len(ticket.result(0)) == 3 for ticket in waiting)
    with pytest.raises(EngineError, match="closed"):
        any_engine.submit(tiny_engine.people(1))


def test_threads_may_submit_at_once(any_engine: Engine) -> None:
    results: dict[int, np.ndarray] = {}

    def camera(number: int) -> None:
        waiting = [(seed, any_engine.submit(tiny_engine.people(2, seed))) for seed in range(number, 40, 4)]
        results.update({seed: ticket.result(60).features for seed, ticket in waiting})

    threads = [threading.Thread(target=camera, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, features in results.items():
        np.testing.assert_allclose(features, tiny_engine.expected(tiny_engine.people(2, seed))[0], atol=2e-3)
    assert len(results) == 40


def test_jobs_start_and_end_in_order_though_later_ones_are_faster() -> None:
    queue, started, ended = InOrder(lanes=3), [], []

    def job(number: int) -> int:
        started.append(number)
        time.sleep(0.05 if number % 3 == 0 else 0.0)
        return number

    waiting = [queue.submit(lambda n=n: job(n)) for n in range(12)]
    for number, ticket in enumerate(waiting):
        ticket._future.add_done_callback(lambda _, n=number: ended.append(n))
    assert [ticket.result(10) for ticket in waiting] == list(range(12))
    queue.close()
    assert ended == sorted(ended)
    assert all(abs(number - place) < 3 for place, number in enumerate(started))


def test_two_lanes_work_at_the_same_time() -> None:
    meeting, queue = threading.Barrier(2, timeout=10), InOrder(lanes=2)
    first, second = queue.submit(meeting.wait), queue.submit(meeting.wait)
    assert sorted([first.result(10), second.result(10)]) == [0, 1]
    queue.close()


def test_a_result_that_is_not_there_yet_can_be_asked_for_again() -> None:
    queue, gate = InOrder(1), threading.Event()
    ticket: Ticket[bool] = queue.submit(gate.wait)
    assert not ticket.done()
    with pytest.raises(TimeoutError, match=r"not done after 0\.02 s"):
        ticket.result(0.02)
    gate.set()
    assert ticket.result(10) is True

    def late() -> None:
        raise TimeoutError("of the work itself")

    with pytest.raises(TimeoutError, match="of the work itself"):
        queue.submit(late).result(10)
    queue.close()


def test_submit_waits_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "WAITING", 2)
    queue, gate = InOrder(1), threading.Event()
    running = queue.submit(gate.wait)
    while queue._jobs:
        time.sleep(0.001)
    for _ in range(2):
        queue.submit(int)
    late: list[Ticket] = []
    thread = threading.Thread(target=lambda: late.append(queue.submit(int)))
    thread.start()
    time.sleep(0.05)
    assert not late, "a third job was taken while two waited"
    gate.set()
    thread.join(10)
    assert running.result(10) and late[0].result(10) == 0
    queue.close()


def test_closing_from_elsewhere_lets_a_waiting_submit_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tickets, "WAITING", 1)
    queue, gate, refused = InOrder(1), threading.Event(), []
    queue.submit(gate.wait)
    while queue._jobs:
        time.sleep(0.001)
    queue.submit(int)

    def late() -> None:
        try:
            queue.submit(int)
        except EngineError as error:
            refused.append(str(error))

    thread = threading.Thread(target=late)
    thread.start()
    closing = threading.Thread(target=queue.close)
    closing.start()
    thread.join(10)
    assert refused and "closed" in refused[0]
    gate.set()
    closing.join(10)
    assert not closing.is_alive()
