"""Who may use a server: a token beyond loopback, no foreign sites, no foreign names for this machine."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response

COOKIE = "dpm_edge_token"
MARK = "x-dpm-edge"
"""A header that a change must carry where a cookie signs in: a foreign site cannot send it without this one's leave."""
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]", "::1")
SAFE = ("GET", "HEAD", "OPTIONS")
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer."""

Scope = dict[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class AccessRules:
    """What differs from one server to another."""

    open_paths: tuple[str, ...] = ("/healthz",)
    """What anybody may see without a token."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of every answer, beside HEADERS, where the answer has none of that name."""
    sign_in: str | None = None
    """The HTML page at / that asks a browser for the token. It is kept in a cookie, with which changes need MARK. None:
    programs alone are served, by the token in their header."""


class Access:
    """Middleware that lets in who may come in.

    A browser sends Origin with every request of a page that may change something, and a page cannot set it: a foreign
    one is refused. With a cookie, which the browser would add to such a request by itself, a change needs MARK as well.
    Without a cookie nothing is added by itself, so that a program needs no more than its token.

    Args:
        app: what it guards.
        token: asked for when not empty.
        loopback: whether only this machine reaches the server; then its names must be this machine's own, so that no
            foreign site gets in by having its name lead here (DNS rebinding).
        rules: of this server.
    """

    def __init__(self, app: App, *, token: str, loopback: bool, rules: AccessRules) -> None:
        self._app, self._token, self._loopback, self._rules = app, token, loopback, rules
        self._headers = {**HEADERS, "cache-control": "no-store", **rules.headers}

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer, or refuse."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal(HTTPConnection(scope))
        if refusal is None:
            await self._app(scope, receive, with_headers(send, self._headers))
        elif scope["type"] == "http":
            await refusal(scope, receive, with_headers(send, self._headers))
        else:
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "not allowed"})

    def _refusal(self, request: HTTPConnection) -> Response | None:
        headers, path = request.headers, request.scope["path"]
        host = headers.get("host", "")
        if self._loopback and host.rsplit(":", 1)[0] not in LOOPBACK_NAMES and host not in LOOPBACK_NAMES:
            return error_answer(
                421, f"expected a request to localhost, got one to {host!r:.80}. Open the address as printed"
            )
        origin = headers.get("origin")
        if origin is not None and origin.split("://", 1)[-1] != host:
            return error_answer(403, f"expected a request of this page, got one of {origin!r:.80}")
        signs_in = self._rules.sign_in is not None
        changes = request.scope["type"] == "http" and request.scope["method"] not in SAFE
        if signs_in and changes and MARK not in headers:
            return error_answer(403, f"expected the header {MARK} with every change, got none. Send {MARK}: 1")
        if not self._token or path in self._rules.open_paths or self._is_right(_bearer(headers)):
            return None
        if signs_in and self._is_right(request.cookies.get(COOKIE, "")):
            return None
        if signs_in and path == "/":
            return self._signed_in(request)
        return error_answer(
            401,
            "expected a token, got none or a wrong one. Send Authorization: Bearer TOKEN",
            {"www-authenticate": "Bearer"},
        )

    def _signed_in(self, request: HTTPConnection) -> Response:
        """Move a token in the address into a cookie, or ask for one."""
        if not self._is_right(request.query_params.get("token", "")):
            return HTMLResponse(self._rules.sign_in, 401)
        rest = [(k, v) for k, v in parse_qsl(request.url.query, keep_blank_values=True) if k != "token"]
        answer = RedirectResponse("/" + (f"?{urlencode(rest)}" if rest else ""), 303)
        answer.set_cookie(COOKIE, self._token, httponly=True, samesite="strict", max_age=30 * 86_400)
        return answer

    def _is_right(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


def _bearer(headers: Headers) -> str:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else ""


def error_answer(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error in the one form that every server here gives it."""
    return JSONResponse({"error": message}, status, headers)


def with_headers(send: Any, headers: Mapping[str, str]) -> Any:
    """A `send` that adds headers to an answer that does not have them."""

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message["headers"]}
            more = [(k.encode(), v.encode()) for k, v in headers.items() if k.encode() not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending
