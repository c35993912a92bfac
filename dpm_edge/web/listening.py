"""Where a server listens, by whom it may be reached, and the thread that serves."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from dpm_edge.errors import DpmError

START_SECONDS = 20.0


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def needed_token(host: str, given: str) -> str:
    """The token that a server at an address asks for: the given one; beyond loopback a new one where none is given."""
    return given or ("" if is_loopback(host) else secrets.token_urlsafe(24))


def shown_address(host: str, port: int) -> str:
    """http://…/ as somebody opens it."""
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def bind(host: str, port: int, what: str) -> socket.socket:
    """A listening socket.

    Args:
        host, port: 0 takes a free one.
        what: named in errors, as "the page".

    Raises:
        DpmError: the address is taken, or is none of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DpmError(f"expected an address of this machine for {what}, got {host!r}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise DpmError(
            f"expected a free address for {what}, got {host}:{port}: {error.strerror}. Choose another: --port 0"
        ) from error
    return bound


class ServingThread:
    """An ASGI application served on a thread of its own while the block runs.

    Args:
        app: the application.
        listening: the socket, as `bind` gives it; closed after the block.
        what: named in errors, as "the page".
        finish_seconds: how long requests that are running may take to end after the block.
        ending: called when the block ends, before anything waits.
        options: more for `uvicorn.Config`.

    Raises:
        ImportError: uvicorn is not installed.
        DpmError: on entering, when it does not start.
    """

    def __init__(
        self, app: Any, listening: socket.socket, *, what: str, finish_seconds: float,
        ending: Callable[[], Any] = lambda: None, **options: Any,
    ) -> None:  # fmt: skip
        import uvicorn

        self._socket, self._what, self._finish_seconds, self._ending = listening, what, finish_seconds, ending
        # uvicorn's own log_config would close every handler that the application around us has set up
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, lifespan="off",
            timeout_graceful_shutdown=int(finish_seconds), **options,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="web", daemon=True)

    def __enter__(self) -> ServingThread:
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        if not self._server.started:
            raise DpmError(f"expected {self._what} to start within {START_SECONDS:g} s, got none. Try again")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ending()
        self._server.should_exit = True
        self._thread.join(self._finish_seconds + 3)
        self._socket.close()
