"""Outputs: every event arrives, in order, whatever the receiver and the program do meanwhile."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpm_edge.errors import OutputError
from dpm_edge.runtime import Embeddings
from dpm_edge.watch import outputs
from dpm_edge.watch.events import Event
from dpm_edge.watch.outputs import Callback, Delivery, EventRefused, JsonLines, Mqtt, Webhook, make_output
from dpm_edge.watch.prometheus import exposition
from dpm_edge.watch.site_config import OutputConfig
from dpm_edge.watch.sources import SourceStatus
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.vectors import vector_json


def event(number: int, **more: Any) -> Event:
    fields = {"kind": "entered", "rule": "r", "camera": "door", "wall": 0.0, "seconds": 0.0, **more}
    return Event(id=f"event-{number}", **fields)


def wait_for(what: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class Receiver:
    """A real HTTP server that answers as told and remembers what came."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                code = receiver.answers.pop(0) if receiver.answers else 204
                receiver.got.append((self.path, dict(self.headers), body))
                self.send_response(code)
                if code == 302:
                    self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *arguments: Any) -> None: ...

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def ids(self) -> list[str]:
        return [json.loads(body)["id"] for _, _, body in self.got]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    one = Receiver()
    yield one
    one.close()


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "FIRST_PAUSE", 0.02)
    monkeypatch.setattr(outputs, "LONGEST_PAUSE", 0.1)


def test_json_lines_are_one_event_a_line(tmp_path: Path) -> None:
    out = JsonLines(tmp_path / "deep" / "events.jsonl")
    out.send(event(1, camera="Tür"))
    out.send(event(2))
    lines = (tmp_path / "deep" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["event-1", "event-2"] and "Tür" in lines[0]


@pytest.mark.parametrize("left", [b'{"id": "event-1", "ki', b'{"id": "event-0"}\n{"id": "event-1", "ki', b""])
def test_a_line_that_a_kill_cut_short_is_taken_away(tmp_path: Path, left: bytes) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(left)
    JsonLines(path).send(event(1))
    ids = [json.loads(line)["id"] for line in path.read_text().splitlines()]
    assert ids == (["event-0", "event-1"] if b"event-0" in left else ["event-1"])


VECTOR = {"feature": "AACAPwAAAAA=", "dimension": 2, "model": "f" * 64, "centred": False, "visibility": 0.75}


def test_a_vector_is_sent_only_where_it_is_asked_for(tmp_path: Path, receiver: Receiver) -> None:
    for vectors in (False, True):
        make_output(OutputConfig(name="a", kind="jsonl", path=tmp_path / "e.jsonl", vectors=vectors)).send(
            event(1, vector=VECTOR)
        )
        make_output(OutputConfig(name="b", kind="webhook", url=receiver.url, vectors=vectors)).send(
            event(1, vector=VECTOR)
        )
    lines = [json.loads(line) for line in (tmp_path / "e.jsonl").read_text().splitlines()]
    posts = [json.loads(body) for _, _, body in receiver.got]
    assert [one.get("vector") for one in lines] == [one.get("vector") for one in posts] == [None, VECTOR]
    assert "vector" not in event(1).as_json(vector=True)


def test_vectors_wait_in_the_store_over_a_restart(tmp_path: Path) -> None:
    with WatchStore(tmp_path / "s.sqlite3") as store:
        store.add_events([event(1, vector=VECTOR)])
    with WatchStore(tmp_path / "s.sqlite3") as store:
        ((_, kept),) = store.events()
    assert kept.vector == VECTOR and "vector" not in kept.as_json()


def test_a_file_that_cannot_be_written_is_an_output_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        JsonLines(tmp_path / "file" / "events.jsonl").send(event(1))


def test_webhook_posts_json_with_id_and_signature(receiver: Receiver) -> None:
    Webhook(receiver.url, secret="geheim", headers=[("Authorization", "Bearer x")]).send(event(1))
    ((path, headers, body),) = receiver.got
    assert (path, headers["X-Event-Id"], headers["Authorization"]) == ("/hook", "event-1", "Bearer x")
    assert json.loads(body) == event(1).as_json()
    expected = hmac.new(b"geheim", body, hashlib.sha256).hexdigest()
    assert headers["X-Signature-256"] == f"sha256={expected}"


@pytest.mark.parametrize(
    ("code", "error"), [(500, OutputError), (404, OutputError), (429, OutputError), (422, EventRefused)]
)
def test_webhook_tells_what_may_be_tried_again(receiver: Receiver, code: int, error: type[Exception]) -> None:
    receiver.answers = [code]
    with pytest.raises(OutputError) as raised:
        Webhook(receiver.url).send(event(1))
    assert type(raised.value) is error


def test_webhook_follows_no_redirect_and_says_where_it_leads(receiver: Receiver) -> None:
    receiver.answers = [302]
    with pytest.raises(OutputError, match="Set url to where it leads: /elsewhere"):
        Webhook(receiver.url).send(event(1))
    assert len(receiver.got) == 1


def test_webhook_shows_no_password_of_its_address() -> None:
    with pytest.raises(OutputError) as raised:
        Webhook("http://me:geheim@127.0.0.1:9/hook?token=geheim").send(event(1))
    assert "geheim" not in str(raised.value)


def test_failing_receiver_gets_every_event_in_order_in_the_end(receiver: Receiver) -> None:
    receiver.answers = [500, 503, 204, 500, 204]
    with WatchStore(":memory:", run="") as store:
        delivery = Delivery("hook", Webhook(receiver.url), store)
        store.add_events([event(n) for n in range(5)])
        assert delivery.drain(15) == 0
        delivery.close()
        assert delivery.status().failures == 3
    taken = list(dict.fromkeys(receiver.ids()))
    assert taken == [f"event-{n}" for n in range(5)] and len(receiver.got) == 8


def test_refused_event_is_noted_and_the_next_one_goes_out(receiver: Receiver) -> None:
    receiver.answers = [422]
    with WatchStore(":memory:", run="") as store:
        delivery = Delivery("hook", Webhook(receiver.url), store)
        store.add_events([event(1), event(2)])
        assert delivery.drain(15) == 0
        delivery.close()
        ((seq, reason),) = store.refused("hook")
    assert seq == 1 and "HTTP 422" in reason and receiver.ids() == ["event-1", "event-2"]


def test_events_wait_over_a_restart_for_a_receiver_that_is_away(tmp_path: Path, receiver: Receiver) -> None:
    with WatchStore(tmp_path / "s.sqlite3") as store:
        delivery = Delivery("hook", Webhook("http://127.0.0.1:9/"), store)
        store.add_events([event(1), event(2)])
        assert delivery.drain(0.2) == 2
        delivery.close()
    with WatchStore(tmp_path / "s.sqlite3") as store:
        delivery = Delivery("hook", Webhook(receiver.url), store)
        assert delivery.drain(15) == 0
        delivery.close()
    assert receiver.ids() == ["event-1", "event-2"]


def test_only_the_wanted_kinds_are_sent() -> None:
    got: list[str] = []
    with WatchStore(":memory:", run="") as store:
        delivery = Delivery("mine", Callback(lambda one: got.append(one.id)), store, kinds=["left"])
        store.add_events([event(1), event(2, kind="left"), event(3)])
        assert delivery.drain(15) == 0
        delivery.close()
    assert got == ["event-2"]


def test_callback_that_raises_gets_the_event_again() -> None:
    got: list[str] = []

    def take(one: Event) -> None:
        got.append(one.id)
        if len(got) == 1:
            raise ValueError("not yet")

    with WatchStore(":memory:", run="") as store:
        delivery = Delivery("mine", Callback(take), store)
        store.add_events([event(1), event(2)])
        assert delivery.drain(15) == 0
        delivery.close()
    assert got == ["event-1", "event-1", "event-2"]


def test_one_output_that_hangs_holds_no_other_up() -> None:
    released, got = threading.Event(), []
    with WatchStore(":memory:", run="") as store:
        slow = Delivery("slow", Callback(lambda one: released.wait() and None), store)
        quick = Delivery("quick", Callback(lambda one: got.append(one.id)), store)
        store.add_events([event(1)])
        assert quick.drain(15) == 0 and slow.status().backlog == 1
        released.set()
        slow.close()
        quick.close()
    assert got == ["event-1"]


MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[int]:
    """Port of a real mosquitto."""
    pytest.importorskip("paho.mqtt", reason="paho-mqtt is not installed")
    if MOSQUITTO is None:
        pytest.skip("mosquitto is not installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (tmp_path / "m.conf").write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")
    process = subprocess.Popen([MOSQUITTO, "-c", str(tmp_path / "m.conf")], stderr=subprocess.DEVNULL)
    yield port
    process.kill()
    process.wait()


@contextlib.contextmanager
def listening(port: int, take: Callable[[Any], None]) -> Iterator[None]:
    """A client of a broker that is given every message below site/."""
    from paho.mqtt import client as paho

    listener = paho.Client(paho.CallbackAPIVersion.VERSION2)
    listener.on_connect = lambda client, *_: client.subscribe("site/#", qos=1)
    subscribed = threading.Event()
    listener.on_subscribe = lambda *_: subscribed.set()
    listener.on_message = lambda client, data, message: take(message)
    wait_for(lambda: _connects(port))
    listener.connect("127.0.0.1", port)
    listener.loop_start()
    assert subscribed.wait(10)
    yield
    listener.loop_stop()


def test_mqtt_brings_every_event_in_order_through_a_real_broker(broker: int) -> None:
    got: list[tuple[str, str]] = []
    with (
        listening(broker, lambda message: got.append((message.topic, json.loads(message.payload)["id"]))),
        WatchStore(":memory:", run="") as store,
    ):
        delivery = Delivery("mqtt", Mqtt("127.0.0.1", port=broker, topic="site"), store)
        store.add_events([event(n, camera="a/b") for n in range(100)])
        assert delivery.drain(30) == 0
        delivery.close()
        wait_for(lambda: len(got) >= 100)
    assert got == [("site/a_b/entered", f"event-{n}") for n in range(100)]


def test_the_documents_lines_read_a_vector_that_came_through_a_real_broker(
    broker: int, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "watch.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n(import base64.*?)```", page, re.S)
    feature = np.array([0.6, -0.8, 0.0], np.float32)
    row = Embeddings(
        features=feature[None], masks=np.ones((1, 3), np.float32), visibility=np.array([0.75]), rows=np.zeros(1, int),
        fingerprint="abcdef" * 10,
    )  # fmt: skip
    got: list[bytes] = []
    with listening(broker, lambda message: got.append(message.payload)), WatchStore(":memory:", run="") as store:
        config = OutputConfig(name="m", kind="mqtt", host="127.0.0.1", port=broker, topic="site", vectors=True)
        delivery = Delivery("mqtt", make_output(config), store)
        store.add_events([event(1, identity="P4", vector=vector_json(row))])
        assert delivery.drain(30) == 0
        delivery.close()
        wait_for(lambda: len(got) == 1)
    names: dict[str, Any] = {"message": got[0]}
    exec(lines, names)
    assert names["feature"].dtype == np.float32 and (names["feature"] == feature).all()
    assert capsys.readouterr().out == "P4 3 abcdefabcdef 0.75\n"


def test_mqtt_without_a_broker_is_an_output_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("paho.mqtt", reason="paho-mqtt is not installed")
    monkeypatch.setattr(outputs, "SEND_SECONDS", 0.2)
    output = Mqtt("127.0.0.1", port=9)
    with pytest.raises(OutputError, match="got no connection"):
        output.send(event(1))
    output.close()


def _connects(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def test_a_site_files_outputs_are_made(tmp_path: Path) -> None:
    assert isinstance(make_output(OutputConfig(name="a", kind="jsonl", path=tmp_path / "e.jsonl")), JsonLines)
    assert isinstance(make_output(OutputConfig(name="a", kind="webhook", url="http://a")), Webhook)


def test_metrics_are_the_text_that_prometheus_reads() -> None:
    camera = SourceStatus(camera='do"or', address="x", state="live", frames=7, dropped=2, clock_offset=0.125)
    text = exposition([camera], [], {"moved": 3}, {'do"or': 5}, {}, {'do"or': 0.25}, {'do"or': 2})
    assert 'dpm_edge_camera_frames_total{camera="do\\"or"} 7\n' in text
    assert 'dpm_edge_camera_state{camera="do\\"or",state="live"} 1\n' in text
    assert 'dpm_edge_camera_state{camera="do\\"or",state="lost"} 0\n' in text
    assert 'dpm_edge_events_total{kind="moved"} 3\n' in text
    assert 'dpm_edge_camera_detect_every{camera="do\\"or"} 2\n' in text
    assert 'dpm_edge_camera_drift{camera="do\\"or"} 0.25\n' in text
    assert 'dpm_edge_camera_clock_offset_seconds{camera="do\\"or"} 0.125\n' in text
    names = [line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names))
