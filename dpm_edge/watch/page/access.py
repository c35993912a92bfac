"""Who may use the page: a token beyond loopback, no foreign sites, no foreign names for this machine."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

COOKIE = "dpm_edge_token"
MARK = "x-dpm-edge"
"""A header that every change must carry: a foreign site cannot send it without this one's leave."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")
OPEN = ("/static/style.css", "/healthz")
"""What anybody may see without a token."""
HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
SIGN_IN = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>dpm-edge watch</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="stylesheet" href="/static/style.css"></head><body class="sign-in"><main><h1>dpm-edge watch</h1>
<form method="get" action="/"><label for="token">Token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button>Open</button></form>
<p>The command <code>dpm-edge watch</code> printed it when it started.</p></main></body></html>"""

Scope = dict[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


class Access:
    """Middleware that lets in who may come in.

    Args:
        app: what it guards.
        token: asked for when not empty.
        loopback: whether only this machine reaches the server; then its names must be this machine's own, so that no
            foreign site gets in by having its name lead here (DNS rebinding).
    """

    def __init__(self, app: App, *, token: str, loopback: bool) -> None:
        self._app, self._token, self._loopback = app, token, loopback

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer, or refuse."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(HTTPConnection(scope))
        if refusal is None:
            await self._app(scope, receive, _with_headers(send))
        elif scope["type"] == "http":
            await refusal(scope, receive, _with_headers(send))
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})

    def _refusal(self, request: HTTPConnection) -> Response | None:
        headers, path = request.headers, request.scope["path"]
        host = headers.get("host", "")
        if self._loopback and host.rsplit(":", 1)[0] not in LOOPBACK_NAMES and host not in LOOPBACK_NAMES:
            return _error(421, f"expected a request to localhost, got one to {host!r:.80}. Open the address as printed")
        origin = headers.get("origin")
        if origin is not None and origin.split("://", 1)[-1] != host:
            return _error(403, f"expected a request of this page, got one of {origin!r:.80}")
        changes = request.scope["type"] == "http" and request.scope["method"] not in SAFE
        if changes and MARK not in headers:
            return _error(403, f"expected the header {MARK} with every change, got none. Send {MARK}: 1")
        if not self._token or path in OPEN:
            return None
        if self._is_right(_bearer(headers)) or self._is_right(request.cookies.get(COOKIE, "")):
            return None
        given = request.query_params.get("token", "") if path == "/" else ""
        if self._is_right(given):
            rest = [(k, v) for k, v in parse_qsl(request.url.query, keep_blank_values=True) if k != "token"]
            answer = RedirectResponse("/" + (f"?{urlencode(rest)}" if rest else ""), 303)
            answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", max_age=30 * 86_400)
            return answer
        if path == "/":
            return HTMLResponse(SIGN_IN, 401)
        return _error(401, "expected a token, got none or a wrong one. Send Authorization: Bearer TOKEN")

    def _is_right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _bearer(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse({"error": message}, status)


def _with_headers(send: Any) -> Any:
    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in given]
            if b"cache-control" not in given:
                more.append((b"cache-control", b"no-store"))
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending
