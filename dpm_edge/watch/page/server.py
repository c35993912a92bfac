"""Serves the page and its API beside a running watch, in a thread of its own."""

from __future__ import annotations

import ipaddress
import secrets
import socket
import threading
import time
from types import TracebackType

from dpm_edge.errors import DpmError, MissingLibrary
from dpm_edge.watch.watch_site import WatchSite

INSTALL = "pip install 'dpm-edge[watch]'"
START_SECONDS = 20.0


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class PageServer:
    """The page of a watch, served while the block runs.

        with PageServer(watch) as page:
            print(page.address)

    Args:
        watch: whose page it is; its site says host, port and token.

    Raises:
        MissingLibrary: starlette, uvicorn or websockets is not installed.
        DpmError: the address is taken, or is none of this machine.
    """

    def __init__(self, watch: WatchSite) -> None:
        try:
            import uvicorn
            import websockets  # noqa: F401  uvicorn answers WebSockets with it

            from dpm_edge.watch.page.app import make_app
        except ImportError as error:
            raise MissingLibrary(error.name or "starlette", "the page (or watch with --no-page)", INSTALL) from error
        host = watch.site.host
        self.token = watch.site.token or ("" if is_loopback(host) else secrets.token_urlsafe(24))
        self._socket = _bind(host, watch.site.port)
        port = self._socket.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        if host in ("0.0.0.0", "::"):
            shown = socket.gethostname()
        self.address = f"http://{shown}:{port}/" + (f"?token={self.token}" if self.token else "")
        """What to open in a browser; with the token where one is needed."""
        self._ending = threading.Event()
        app = make_app(watch, token=self.token, loopback=is_loopback(host), ending=self._ending)
        # uvicorn's own log_config would close every handler that the application around us has set up
        config = uvicorn.Config(
            app, log_config=None, log_level="warning", access_log=False, ws_max_size=1 << 16,
            timeout_graceful_shutdown=2, lifespan="off",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="page", daemon=True)

    def __enter__(self) -> PageServer:
        self._thread.start()
        end = time.monotonic() + START_SECONDS
        while not self._server.started and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        if not self._server.started:
            raise DpmError(f"expected the page to start within {START_SECONDS:g} s, got none. Run with --no-page")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ending.set()
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()


def _bind(host: str, port: int) -> socket.socket:
    """A listening socket, or what is in the way."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise DpmError(f"expected an address of this machine for the page, got {host!r}: {error.strerror}") from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(128)
    except OSError as error:
        bound.close()
        raise DpmError(
            f"expected a free address for the page, got {host}:{port}: {error.strerror}. Choose another: --port 0"
        ) from error
    return bound
