"""Numbers about a running server, for Prometheus."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from typing import Any

from dpm_edge.serve.crop_embedder import CropEmbedder
from dpm_edge.web.access import App, Scope
from dpm_edge.web.prometheus_text import family, histogram

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Upper ends of the histogram's buckets."""


class RequestMetrics:
    """Middleware that counts requests by path and status, and their seconds; for one event loop.

    Args:
        app: what it watches.
        paths: those that are told apart; all others count as "other".
    """

    def __init__(self, app: App, paths: frozenset[str]) -> None:
        self._app, self._paths = app, paths
        self.requests: Counter[tuple[str, str]] = Counter()
        self.running = 0
        self._seconds: dict[str, tuple[list[int], float]] = {}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer, and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path, start, status = scope["path"] if scope["path"] in self._paths else "other", time.monotonic(), "500"

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        self.running += 1
        try:
            await self._app(scope, receive, sending)
        finally:
            self.running -= 1
            self.requests[path, status] += 1
            counts, total = self._seconds.setdefault(path, ([0] * (len(SECONDS) + 1), 0.0))
            seconds = time.monotonic() - start
            counts[bisect_left(SECONDS, seconds)] += 1
            self._seconds[path] = (counts, total + seconds)

    def text(self, embedder: CropEmbedder, rows: int | None) -> str:
        """Everything at this moment; rows: of the gallery, None without one."""
        none: dict[str, str] = {}
        kept: list[tuple[dict[str, str], float]] = [] if rows is None else [(none, rows)]
        return "".join(
            [
                family(
                    "serve_requests_total", "counter", "Requests that were answered.",
                    [({"path": path, "status": status}, n) for (path, status), n in sorted(self.requests.items())],
                ),
                histogram(
                    "serve_request_seconds", "From a request's first byte to the end of its answer.", SECONDS,
                    [({"path": path}, counts, total) for path, (counts, total) in sorted(self._seconds.items())],
                ),
                family("serve_requests_running", "gauge", "Requests that are running.", [(none, self.running)]),
                family("serve_crops_under_way", "gauge", "Crops of running requests.", [(none, embedder.under_way)]),
                family("serve_crops_total", "counter", "Crops that were embedded.", [(none, embedder.crops)]),
                family("serve_batches_total", "counter", "Calls of the engine.", [(none, embedder.batches)]),
                family("serve_gallery_rows", "gauge", "Rows in the gallery.", kept),
            ]
        )  # fmt: skip
