"""What a server takes at once: bytes of bodies, crops that wait, requests of a client."""

from __future__ import annotations

import ipaddress
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpm_edge.errors import DpmError
from dpm_edge.web.access import App, Scope, error_answer

MOST_CLIENTS = 4096
"""Clients whose rate is remembered; beyond it those are forgotten that may send their whole burst again."""


class RequestRefused(DpmError):
    """A request that is not served, with its HTTP status."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})


def overloaded(message: str) -> RequestRefused:
    """503: a request that may be sent again in a moment."""
    return RequestRefused(503, f"{message}. Send it again in a moment", {"retry-after": "1"})


@dataclass(frozen=True, kw_only=True)
class ServeLimits:
    """Limits of a server.

    Raises:
        DpmError: on construction, when one of them lets nothing through.
    """

    body_bytes: int = 16_000_000
    """Of one request."""
    all_bodies: int = 32
    """The bodies of all requests that are running take at most so many times `body_bytes`."""
    body_seconds: float = 30.0
    """How long a client may take to send a body."""
    crops: int = 64
    """Pictures, or boxes in pictures, of one request."""
    queue: int = 256
    """Crops of all requests that are running."""
    rate: float | None = None
    """Requests a second of one client; None: no limit."""

    def __post_init__(self) -> None:
        low = [name for name in ("body_bytes", "all_bodies", "crops", "queue") if getattr(self, name) < 1]
        if low or self.body_seconds <= 0 or (self.rate is not None and not self.rate > 0):
            raise DpmError(f"expected limits of a server above 0, got {self}")


class BodyBytes:
    """Bytes of bodies that are in memory now. For one event loop."""

    def __init__(self, limits: ServeLimits) -> None:
        self._most, self.now = limits.body_bytes * limits.all_bodies, 0

    def take(self, count: int) -> None:
        """Count some more.

        Raises:
            RequestRefused: 503, they are too many; they are not counted.
        """
        if self.now + count > self._most:
            raise overloaded(f"expected at most {self._most} bytes of requests at once, got more")
        self.now += count

    def give_back(self, count: int) -> None:
        """They are in memory no longer."""
        self.now -= count


class ClientRates:
    """Requests of each client by a token bucket: `rate` a second, and as many at once as a second brings.

    Args:
        rate: requests a second.
        clock: seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, max(1.0, rate), clock
        self._left: dict[str, tuple[float, float]] = {}  # client → requests that it may send, as of when

    def wait_of(self, client: str) -> float:
        """Count a request; 0, or the seconds after which the client may send it again."""
        now = self._clock()
        left, then = self._left.get(client, (self._burst, now))
        left = min(self._burst, left + (now - then) * self._rate)
        if left < 1:
            self._left[client] = (left, now)
            return (1 - left) / self._rate
        if client not in self._left and len(self._left) >= MOST_CLIENTS:
            self._forget(now)
        self._left[client] = (left - 1, now)
        return 0.0

    def _forget(self, now: float) -> None:
        """Forget clients whose burst is whole again, or all where none is."""
        kept = {
            name: (left, then)
            for name, (left, then) in self._left.items()
            if left + (now - then) * self._rate < self._burst
        }
        self._left = kept if len(kept) < MOST_CLIENTS else {}


def client_of(scope: Mapping[str, Any]) -> str:
    """Who sends a request: the address, of IPv6 its first 64 bits, which one subscriber has to himself."""
    host = (scope.get("client") or ("", 0))[0]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)


class RateLimit:
    """Middleware that answers 429 to clients that send too many requests; /healthz is free."""

    def __init__(self, app: App, rate: float) -> None:
        self._app, self._rate, self._rates = app, rate, ClientRates(rate)

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Answer, or refuse."""
        wait = 0.0
        if scope["type"] == "http" and scope["path"] != "/healthz":
            wait = self._rates.wait_of(client_of(scope))
        if not wait:
            await self._app(scope, receive, send)
            return
        refusal = error_answer(
            429,
            f"expected at most {self._rate:g} requests a second of one client, got more. "
            f"Send it again in {math.ceil(wait)} s",
            {"retry-after": str(math.ceil(wait)), "x-content-type-options": "nosniff", "cache-control": "no-store"},
        )
        await refusal(scope, receive, send)
