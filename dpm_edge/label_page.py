"""The page that asks "same person?": a server on this machine alone, and the labels file that it writes.

GET /state, POST /answer, /undo and /done answer with what the page shows; GET /crop/TRACK/NUMBER with a picture.
"""

from __future__ import annotations

import json
import mimetypes
import re
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dpm_edge.errors import DataError, DpmError
from dpm_edge.label_questions import Questions
from dpm_edge.shipped import ASSETS
from dpm_edge.track_answers import DIFFERENT, SAME, write_answers

HOST = "127.0.0.1"
PICTURES = 3
"""Crops of a track that are shown."""
UNSURE = "unsure"
CROP = re.compile(r"/crop/(\d+)/(\d+)")
LONGEST = 4096
"""Bytes of a request; the page sends less."""


class LabelPage:
    """Questions on a page, until they are answered or somebody finishes. Use it in a `with`."""

    def __init__(self, questions: Questions, crops: list[list[Path]], out: Path, *, port: int = 0, most: int = 100):
        """Listen; nothing is served before the block begins.

        Args:
            questions: what is asked.
            crops: (T,) files of each track, of which some are shown.
            out: the labels file, written anew after each answer.
            port: 0 takes a free one.
            most: answers after which the page finishes by itself.

        Raises:
            DataError: the port is taken.
        """
        self.questions, self.crops, self.out, self.most = questions, crops, out, most
        self.finished = threading.Event()
        """Set when nothing more is asked."""
        self.served_last = threading.Event()
        """Set when the page has been told so."""
        self._lock, self._before = threading.Lock(), len(questions.answers)
        try:
            self._server = ThreadingHTTPServer((HOST, port), _handler(self))
        except OSError as error:
            raise DataError(
                f"expected a free port to listen on, got {port} ({error.strerror}). Give another --port"
            ) from (error)
        self._server.daemon_threads = True
        self.port = int(self._server.server_address[1])
        self.url = f"http://{HOST}:{self.port}/"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> LabelPage:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def state(self) -> dict[str, Any]:
        """Return what the page shows now."""
        given = len(self.questions.answers)
        pair = None if self.finished.is_set() else self.questions.next()
        left = min(len(self.questions), max(0, self.most - (given - self._before)))
        return {
            "answered": given,
            "left": left,
            "file": str(self.out),
            "finished": self.finished.is_set(),
            "question": None if pair is None else {"one": self._track(pair[0]), "other": self._track(pair[1])},
        }

    def answer(self, one: str, other: str, answer: str) -> None:
        """Take an answer and write the file.

        Raises:
            DataError: the answer or a track is none, or contradicts the others.
            DpmError: the file cannot be written; the answer is not kept.
        """
        if answer not in (SAME, DIFFERENT, UNSURE):
            raise DataError(f"expected {SAME}, {DIFFERENT} or {UNSURE}, got {answer!r}")
        before = len(self.questions.answers)
        if not self.questions.answer(one, other, None if answer == UNSURE else answer == SAME):
            raise DataError(
                f"expected two tracks of this site and an answer that fits the others, got {one} and {other}"
            )
        if len(self.questions.answers) > before:
            self._write(undo=True)
        if len(self.questions.answers) - self._before >= self.most:
            self.finished.set()

    def undo(self) -> None:
        """Take the last answer back and write the file."""
        if self.questions.undo() is not None:
            self._write()

    def crop(self, track: int, number: int) -> Path | None:
        """Return the file of a crop that the page shows."""
        shown = self._shown(track) if track < len(self.crops) else []
        return shown[number] if number < len(shown) else None

    def _write(self, *, undo: bool = False) -> None:
        try:
            write_answers(self.out, self.questions.answers)
        except (DpmError, OSError):
            if undo:
                self.questions.undo()
            raise

    def _shown(self, track: int) -> list[Path]:
        some = self.crops[track]
        count = min(PICTURES, len(some))
        return [some[round(i * (len(some) - 1) / max(1, count - 1))] for i in range(count)]

    def _track(self, track: int) -> dict[str, Any]:
        pictures = [f"/crop/{track}/{i}" for i in range(len(self._shown(track)))]
        return {"name": self.questions.names[track], "pictures": pictures}


def _handler(page: LabelPage) -> type[BaseHTTPRequestHandler]:
    """A class of handlers for one page."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._from_here():
                return
            path = urlsplit(self.path).path
            found = CROP.fullmatch(path)
            if path == "/":
                self._send((ASSETS / "label.html").read_bytes(), "text/html; charset=utf-8")
            elif path == "/state":
                with page._lock:
                    self._json(page.state())
            elif found and (file := page.crop(int(found[1]), int(found[2]))) is not None:
                kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
                try:
                    self._send(file.read_bytes(), kind)
                except OSError:
                    self._json({"error": f"{file} cannot be read"}, HTTPStatus.NOT_FOUND)
            else:
                self._json({"error": f"expected a page of this server, got {path}"}, HTTPStatus.NOT_FOUND)

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            if not self._from_here():
                return
            if not length.isdigit() or int(length) > LONGEST:
                self.close_connection = True
                self._json({"error": f"expected at most {LONGEST} bytes, got another length"}, HTTPStatus.BAD_REQUEST)
                return
            text = self.rfile.read(int(length))
            if self.headers.get("Content-Type") != "application/json":  # another site's form cannot send this
                self._json({"error": "expected application/json"}, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
                return
            with page._lock:
                try:
                    said = json.loads(text)
                    if self.path == "/answer":
                        page.answer(str(said["one"]), str(said["other"]), str(said["answer"]))
                    elif self.path == "/undo":
                        page.undo()
                    elif self.path == "/done":
                        page.finished.set()
                    else:
                        self._json(
                            {"error": f"expected /answer, /undo or /done, got {self.path}"}, HTTPStatus.NOT_FOUND
                        )
                        return
                    self._json(page.state())
                    if page.finished.is_set():
                        page.served_last.set()
                except (DpmError, OSError) as error:
                    self._json({"error": str(error)}, HTTPStatus.CONFLICT)
                except (ValueError, KeyError, TypeError) as error:
                    self._json({"error": f"expected an answer as JSON, got another ({error})"}, HTTPStatus.BAD_REQUEST)

        def _from_here(self) -> bool:
            """Refuse names other than this machine's, which a foreign page could point here (DNS rebinding)."""
            if self.headers.get("Host") in (f"{HOST}:{page.port}", f"localhost:{page.port}"):
                return True
            self._json({"error": "expected a request to this machine by its own address"}, HTTPStatus.FORBIDDEN)
            return False

        def _json(self, data: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
            self._send(json.dumps(data).encode(), "application/json", status)

        def _send(self, data: bytes, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing of requests."""

    return Handler
