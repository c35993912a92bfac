"""Serves the page and its API beside a running watch, in a thread of its own."""

from __future__ import annotations

import threading
from types import TracebackType

from dpm_edge.errors import MissingLibrary
from dpm_edge.watch.watch_site import WatchSite
from dpm_edge.web.listening import ServingThread, bind, is_loopback, needed_token, shown_address

INSTALL = "pip install 'dpm-edge[watch]'"


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
            import uvicorn  # noqa: F401
            import websockets  # noqa: F401  uvicorn answers WebSockets with it

            from dpm_edge.watch.page.app import make_app
        except ImportError as error:
            raise MissingLibrary(error.name or "starlette", "the page (or watch with --no-page)", INSTALL) from error
        host = watch.site.host
        self.token = needed_token(host, watch.site.token)
        self._socket = bind(host, watch.site.port, "the page")
        address = shown_address(host, self._socket.getsockname()[1])
        self.address = address + (f"?token={self.token}" if self.token else "")
        """What to open in a browser; with the token where one is needed."""
        ending = threading.Event()
        app = make_app(watch, token=self.token, loopback=is_loopback(host), ending=ending)
        self._serving = ServingThread(
            app, self._socket, what="the page", finish_seconds=2, ending=ending.set, ws_max_size=1 << 16
        )

    def __enter__(self) -> PageServer:
        self._serving.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._serving.__exit__(kind, error, at)
