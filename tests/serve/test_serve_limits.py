"""What the server takes at once, and that it gives everything back."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_engine

from dpm_edge.errors import DpmError

pytest.importorskip("fastapi", reason="fastapi is not installed (the extra `serve`)")
pytest.importorskip("httpx", reason="httpx is not installed")

import httpx
from served import API, PNG, application, client_of, files, png, serving

from dpm_edge.serve.app import ServeApp
from dpm_edge.serve.limits import ClientRates, ServeLimits
from dpm_edge.serve.limits import client_of as client_name

PEOPLE = tiny_engine.people(6)


def until(true: Callable[[], bool]) -> None:
    """Wait for something that happens soon."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_a_body_that_says_it_is_too_long_is_refused(folder: Path) -> None:
    with application(folder, limits=ServeLimits(body_bytes=1000)) as app:
        answer = client_of(app).post(f"{API}/embed", content=b"x" * 1001, headers=PNG)
    assert answer.status_code == 413 and "expected at most 1000 bytes" in answer.json()["error"]


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=x"])
def test_a_body_that_does_not_say_how_long_it_is_is_refused_when_it_is_too_long(folder: Path, kind: str) -> None:
    def parts() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="pictures"; filename="a"\r\n\r\n'
        for _ in range(100):
            yield b"x" * 1000

    with application(folder, limits=ServeLimits(body_bytes=5000)) as app, serving(app) as address:
        answer = httpx.post(f"{address}{API}/embed", content=parts(), headers={"content-type": kind})
        assert answer.status_code == 413 and app._bodies.now == 0


def test_more_pictures_or_boxes_than_a_request_may_have(folder: Path) -> None:
    with application(folder, limits=ServeLimits(crops=3)) as app:
        client = client_of(app)
        assert client.post(f"{API}/embed", files=files(PEOPLE[:3])).status_code == 200
        many = client.post(f"{API}/embed", files=files(PEOPLE[:4]))
        boxes = "[[0, 0, 9, 9], [1, 1, 9, 9], [2, 2, 9, 9], [3, 3, 9, 9]]"
        boxed = client.post(f"{API}/embed", content=png(PEOPLE[0]), headers=PNG, params={"boxes": boxes})
    assert many.status_code == 413 and "at most 3 pictures in a request" in many.json()["error"]
    assert boxed.status_code == 413 and "at most 3 crops in a request, got 4" in boxed.json()["error"]


def test_a_client_that_sends_too_fast_is_told_when_to_come_again(folder: Path) -> None:
    with application(folder, limits=ServeLimits(rate=2)) as app:
        client = client_of(app)
        answers = [client.get(f"{API}/model") for _ in range(4)]
        assert [one.status_code for one in answers] == [200, 200, 429, 429]
        assert (
            answers[-1].headers["retry-after"] == "1" and "at most 2 requests a second" in answers[-1].json()["error"]
        )
        assert client.get("/healthz").status_code == 200
        assert 'status="429"' not in client.get("/metrics").text  # itself refused


@pytest.mark.parametrize(("proxy", "wanted"), [(True, [200, 200, 429]), (False, [200, 429, 429])])
def test_clients_are_told_apart_by_the_header_of_a_proxy_that_is_there(
    folder: Path, proxy: bool, wanted: list[int]
) -> None:
    with application(folder, limits=ServeLimits(rate=1)) as app, serving(app, proxy_headers=proxy) as address:
        sent = [
            httpx.get(f"{address}{API}/model", headers={"X-Forwarded-For": client}).status_code
            for client in ("10.0.0.1", "10.0.0.2", "10.0.0.1")
        ]
    assert sent == wanted


def test_a_bucket_gives_as_many_requests_as_its_rate_over_a_long_time() -> None:
    now = [0.0]
    rates, passed = ClientRates(2.5, clock=lambda: now[0]), 0
    for step in range(10_000):
        now[0] = step / 100
        passed += rates.wait_of("one") == 0
    assert passed == pytest.approx(2.5 * 100 + 2.5, abs=1)
    assert rates.wait_of("another") == 0


def test_the_wait_is_the_time_until_the_next_request_passes() -> None:
    now = [0.0]
    rates = ClientRates(0.5, clock=lambda: now[0])
    assert rates.wait_of("one") == 0 and rates.wait_of("one") == pytest.approx(2)
    now[0] = 1.99
    assert rates.wait_of("one") > 0
    now[0] = 2.001
    assert rates.wait_of("one") == 0


def test_clients_that_come_and_go_do_not_fill_the_memory() -> None:
    now = [0.0]
    rates = ClientRates(1, clock=lambda: now[0])
    for i in range(20_000):
        now[0] += 0.001
        rates.wait_of(str(i))
    assert len(rates._left) <= 4096


@pytest.mark.parametrize(
    ("host", "name"),
    [("10.0.0.7", "10.0.0.7"), ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"), ("testclient", "testclient")],
)
def test_a_client_is_an_address_or_a_subscribers_network(host: str, name: str) -> None:
    assert client_name({"client": (host, 1)}) == name


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"queue": 0}, {"body_bytes": 0}, {"rate": float("nan")}])
def test_limits_that_let_nothing_through_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DpmError, match="above 0"):
        ServeLimits(**wrong)


class Stopped:
    """The application's engine, waiting at a gate."""

    def __init__(self, app: ServeApp, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate, real = threading.Event(), app.engine.embed

        def embed(images: Any, *more: Any) -> Any:
            self.gate.wait(20)
            return real(images, *more)

        monkeypatch.setattr(app.engine, "embed", embed)


def test_a_full_queue_answers_503_and_loses_nothing_that_was_taken(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with application(folder, limits=ServeLimits(queue=6)) as app, serving(app) as address:
        stopped = Stopped(app, monkeypatch)
        with ThreadPoolExecutor(3) as pool:
            taken = [
                pool.submit(httpx.post, f"{address}{API}/embed", files=files(PEOPLE[i : i + 2])) for i in (0, 2, 4)
            ]
            until(lambda: app.embedder.under_way == 6)
            refused = httpx.post(f"{address}{API}/embed", content=png(PEOPLE[0]), headers=PNG)
            assert refused.status_code == 503 and refused.headers["retry-after"] == "1"
            assert "expected at most 6 crops under way" in refused.json()["error"]
            stopped.gate.set()
            for i, one in zip((0, 2, 4), taken):
                rows = one.result().json()["rows"]
                wanted = tiny_engine.expected(PEOPLE[i : i + 2])[0]
                np.testing.assert_allclose([row["feature"] for row in rows], wanted, rtol=0, atol=1e-5)
        assert httpx.post(f"{address}{API}/embed", content=png(PEOPLE[0]), headers=PNG).status_code == 200
        assert app.embedder.under_way == 0


def test_bodies_that_fill_the_memory_answer_503(folder: Path) -> None:
    limits = ServeLimits(body_bytes=50_000, all_bodies=1)
    with application(folder, limits=limits) as app, serving(app) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.sendall(f"POST {API}/embed HTTP/1.1\r\nHost: {host}\r\nContent-Length: 40000\r\n\r\n".encode())
            slow.sendall(b"x" * 30_000)
            until(lambda: app._bodies.now == 30_000)
            answer = httpx.post(f"{address}{API}/embed", content=b"y" * 40_000, headers=PNG)
            assert answer.status_code == 503 and "bytes of requests at once" in answer.json()["error"]
        until(lambda: app._bodies.now == 0)  # the slow client has gone
        assert httpx.post(f"{address}{API}/embed", content=png(PEOPLE[0]), headers=PNG).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(folder: Path) -> None:
    with application(folder, limits=ServeLimits(body_seconds=0.2)) as app, serving(app) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as slow:
            slow.settimeout(10)
            slow.sendall(f"POST {API}/embed HTTP/1.1\r\nHost: {host}\r\nContent-Length: 400\r\n\r\nx".encode())
            assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
        assert app._bodies.now == 0
