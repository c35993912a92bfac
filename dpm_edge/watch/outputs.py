"""Where events go: JSON lines, webhooks, MQTT, and functions of your own.

Events wait in the store until an output has delivered them, in order, so that a restart loses none. Each is delivered
at least once: after a failure it may come again, with the same id.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from dpm_edge.errors import DpmError, MissingLibrary, OutputError
from dpm_edge.watch.addresses import redacted
from dpm_edge.watch.events import Event
from dpm_edge.watch.site_config import OutputConfig
from dpm_edge.watch.store import WatchStore

SEND_SECONDS = 10.0
"""Seconds that a receiver has to answer."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before an event is tried again: the pause doubles."""
REFUSALS = (400, 413, 415, 422)
"""HTTP answers that mean: this event will never be taken. Every other failure is tried again."""


class EventRefused(OutputError):
    """A receiver that answers, and does not want this event."""


class Output(Protocol):
    """A way to deliver events."""

    def send(self, event: Event) -> None:
        """Deliver one event; when this returns, the receiver has it.

        Raises:
            OutputError: it has not; the event will be tried again.
            EventRefused: it never will have it.
        """

    def close(self) -> None:
        """Let go of files and connections."""


class JsonLines:
    """Appends a line of JSON for each event to a file."""

    def __init__(self, path: Path, *, vectors: bool = False) -> None:
        """Append to `path`; a last line that a kill cut short is taken away, as its event comes again."""
        self._path, self._vectors = path, vectors

    def send(self, event: Event) -> None:
        """Write a line and bring it to the disk."""
        line = (json.dumps(event.as_json(vector=self._vectors), ensure_ascii=False) + "\n").encode()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with open(self._path, "r+b" if self._path.exists() else "w+b") as file:
                file.truncate(_end_of_last_line(file))
                file.seek(0, os.SEEK_END)
                file.write(line)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"expected room and the right to write {self._path}, got {error.strerror}") from error

    def close(self) -> None:
        """Nothing is open between events."""


class Webhook:
    """Posts each event as JSON to an address; any 2xx answer takes it.

    Headers: `X-Event-Id` is the event's id; with a secret, `X-Signature-256` is "sha256=" and the HMAC of the body.
    """

    def __init__(
        self, url: str, *, secret: str = "", headers: Iterable[tuple[str, str]] = (), vectors: bool = False
    ) -> None:
        """Post to `url`, with headers of your own, and with the tracks' vectors or without."""
        self._vectors = vectors
        self._url, self._secret, self._headers = url, secret, tuple(headers)
        self._opener = urllib.request.build_opener(_NoRedirects())

    def send(self, event: Event) -> None:
        """Post one event and wait for the answer."""
        body = json.dumps(event.as_json(vector=self._vectors), ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json", "X-Event-Id": event.id, "User-Agent": "dpm-edge"}
        if self._secret:
            headers["X-Signature-256"] = f"sha256={hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()}"
        request = urllib.request.Request(self._url, body, {**headers, **dict(self._headers)}, method="POST")
        where = redacted(self._url)
        try:
            with self._opener.open(request, timeout=SEND_SECONDS):
                return
        except urllib.error.HTTPError as error:
            kind = EventRefused if error.code in REFUSALS else OutputError
            to = error.headers.get("Location")
            hint = f". Set url to where it leads: {redacted(to)}" if to and 300 <= error.code < 400 else ""
            raise kind(f"expected {where} to take an event, got HTTP {error.code} {error.reason}{hint}") from error
        except (OSError, ValueError) as error:  # no connection, no answer in time, no HTTP
            reason = getattr(error, "reason", error)
            raise OutputError(f"expected an answer of {where}, got {reason}") from error
        except Exception as error:  # http.client's own: a connection that breaks within the answer
            raise OutputError(f"expected an answer of {where}, got {type(error).__name__}") from error

    def close(self) -> None:
        """Every event has a connection of its own."""


class Mqtt:
    """Publishes each event at TOPIC/CAMERA/KIND with quality of service 1."""

    def __init__(
        self, host: str, *, port: int = 1883, topic: str = "dpm-edge", user: str = "", password: str = "",
        tls: bool = False, vectors: bool = False,
    ) -> None:  # fmt: skip
        """Connect in the background, again and again; send events with the tracks' vectors or without.

        Raises:
            MissingLibrary: paho-mqtt is not installed.
        """
        try:
            from paho.mqtt import client as paho
        except ImportError as error:
            raise MissingLibrary("paho-mqtt", "sending events over MQTT", "pip install 'dpm-edge[mqtt]'") from error
        self._vectors = vectors
        self._where, self._topic = f"mqtt://{host}:{port}", topic.strip("/")
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self._refusal = ""
        self._client.on_connect = self._connected
        if user:
            self._client.username_pw_set(user, password or None)
        if tls:
            self._client.tls_set()
        self._client.reconnect_delay_set(1, int(LONGEST_PAUSE))
        self._client.connect_async(host, port, keepalive=30)
        self._client.loop_start()

    def _connected(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        self._refusal = f" ({reason})" if reason.is_failure else ""

    def send(self, event: Event) -> None:
        """Publish one event and wait until the broker has acknowledged it."""
        end = time.monotonic() + SEND_SECONDS
        while not self._client.is_connected():
            if time.monotonic() > end:
                raise OutputError(f"expected a broker at {self._where}, got no connection{self._refusal}")
            time.sleep(0.05)
        topic = f"{self._topic}/{_level(event.camera)}/{event.kind}"
        message = self._client.publish(
            topic, json.dumps(event.as_json(vector=self._vectors), ensure_ascii=False), qos=1
        )
        with contextlib.suppress(ValueError, RuntimeError):
            message.wait_for_publish(max(0.1, end - time.monotonic()))
        if not message.is_published():
            raise OutputError(f"expected {self._where} to acknowledge an event, got no answer")

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()


class Callback:
    """Calls a function of yours for each event; whatever it raises has the event come again."""

    def __init__(self, function: Callable[[Event], None]) -> None:
        """Call `function`, in the output's own thread."""
        self._function = function

    def send(self, event: Event) -> None:
        """Call the function."""
        try:
            self._function(event)
        except OutputError:
            raise
        except Exception as error:
            raise OutputError(f"expected the callback to take an event, got {type(error).__name__}: {error}") from error

    def close(self) -> None:
        """Nothing to let go of."""


@dataclass(frozen=True, kw_only=True)
class OutputStatus:
    """How an output is, for the page and the metrics."""

    name: str
    state: str = "idle"
    """idle, sending, waiting (to try again) or closed."""
    message: str = ""
    """Why it waits."""
    delivered: int = 0
    """Events delivered in this run."""
    refused: int = 0
    failures: int = 0
    backlog: int = 0
    """Events that wait."""


class Delivery:
    """Takes events out of the store and gives them to one output, in order, in a thread of its own."""

    def __init__(self, name: str, output: Output, store: WatchStore, kinds: Iterable[str] = ()) -> None:
        """Start; kinds: only these events, all without."""
        self.name = name
        self._output, self._store, self._kinds = output, store, frozenset(kinds)
        self._stop = threading.Event()
        self._status = OutputStatus(name=name)
        store.register_output(name)
        self._thread = threading.Thread(target=self._serve, name=f"output {name}", daemon=True)
        self._thread.start()

    def status(self) -> OutputStatus:
        """How it is at this moment."""
        return replace(self._status, backlog=self._store.backlog(self.name))

    def drain(self, timeout: float) -> int:
        """Wait until everything is delivered, at most so long; how many events are left for the next start."""
        end = time.monotonic() + timeout
        while (left := self._store.backlog(self.name)) and time.monotonic() < end:
            time.sleep(0.02)
        return left

    def close(self) -> None:
        """Stop after the event that is under way; the rest waits in the store."""
        self._stop.set()
        self._thread.join(SEND_SECONDS + 2)
        self._output.close()
        self._status = replace(self._status, state="closed")

    def _serve(self) -> None:
        pause, last = FIRST_PAUSE, 0
        while not self._stop.is_set():
            try:
                if not self._store.wait_for_events(last, 0.5):
                    continue
                for seq, event in self._store.undelivered(self.name):
                    if self._stop.is_set():
                        return
                    if not self._kinds or event.kind in self._kinds:
                        self._send(seq, event)
                    else:
                        self._store.delivered(self.name, seq)
                    pause, last = FIRST_PAUSE, seq
                last = max(last, self._store.last_seq() if not self._store.undelivered(self.name, 1) else last)
            except Exception as error:  # a closed or full store, a failing output: nothing may end deliveries for good
                reason = str(error) if isinstance(error, DpmError) else f"{type(error).__name__}: {error}"
                failures = self._status.failures + 1
                self._status = replace(self._status, state="waiting", message=reason, failures=failures)
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self, seq: int, event: Event) -> None:
        self._status = replace(self._status, state="sending")
        try:
            self._output.send(event)
        except EventRefused as error:
            self._store.delivered(self.name, seq, refused=str(error))
            self._status = replace(self._status, state="idle", message=str(error), refused=self._status.refused + 1)
            return
        self._store.delivered(self.name, seq)
        self._status = replace(self._status, state="idle", message="", delivered=self._status.delivered + 1)


def make_output(config: OutputConfig) -> Output:
    """Make the output that a site file describes.

    Raises:
        MissingLibrary: it needs a library that is not installed.
    """
    if config.kind == "webhook":
        return Webhook(config.url, secret=config.secret, headers=config.headers, vectors=config.vectors)
    if config.kind == "mqtt":
        return Mqtt(
            config.host,
            port=config.port,
            topic=config.topic,
            user=config.user,
            password=config.password,
            tls=config.tls,
            vectors=config.vectors,
        )
    assert config.path is not None, "a site file's JSON lines have a path"
    return JsonLines(config.path, vectors=config.vectors)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Refuses redirects: they would turn a POST into a GET, and the event would be gone."""

    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        """Follow nothing."""


def _level(name: str) -> str:
    """A name as one level of a topic."""
    return name.replace("/", "_").replace("+", "_").replace("#", "_")


def _end_of_last_line(file: Any) -> int:
    """Where the last whole line of an open file ends."""
    end = file.seek(0, os.SEEK_END)
    at = end
    while at > 0:
        begin = max(0, at - 65536)
        file.seek(begin)
        found = file.read(at - begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        at = begin
    return 0
