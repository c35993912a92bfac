"""Routes of the page and its API, version 1. `openapi.py` describes them."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from dpm_edge import __version__
from dpm_edge.errors import DpmError, NotSeen
from dpm_edge.images import decode_image
from dpm_edge.watch.events import KINDS
from dpm_edge.watch.page.openapi import document
from dpm_edge.watch.page.pictures import JpegCache, describe
from dpm_edge.watch.page.sign_in import RULES
from dpm_edge.watch.prometheus import exposition
from dpm_edge.watch.watch_site import WatchSite
from dpm_edge.web.access import Access
from dpm_edge.web.prometheus_text import CONTENT_TYPE

STATIC = Path(__file__).parent / "static"
LARGEST_PICTURE = 16 << 20
"""Bytes of a picture to search with."""
LARGEST_BODY = 1 << 16
"""Bytes of any other body."""
LOOK_SECONDS = 0.02
"""How often a live picture looks whether there is a newer one."""
PING_SECONDS = 10.0
"""A live connection says something at least so often."""


def make_app(watch: WatchSite, *, token: str = "", loopback: bool = True, ending: threading.Event | None = None) -> Any:
    """The page and API of a watch, as an ASGI application.

    Args:
        watch: whose page it is.
        token: asked for when not empty.
        loopback: whether only this machine reaches it.
        ending: set when the server ends, so that live connections end too.
    """
    page = _Page(watch, ending or threading.Event())
    answer = page.answering
    v1 = [
        Route("/site", answer(page.site)),
        Route("/cameras", answer(page.cameras)),
        Route("/cameras/{camera}/snapshot.jpg", answer(page.snapshot)),
        Route("/cameras/{camera}/stream.mjpg", page.mjpeg),
        Route("/people", answer(page.people)),
        Route("/people/{identity}", answer(page.person), methods=["GET"]),
        Route("/people/{identity}", answer(page.rename), methods=["PATCH"]),
        Route("/people/{identity}", answer(page.forget), methods=["DELETE"]),
        Route("/people/{identity}/merge", answer(page.merge), methods=["POST"]),
        Route("/people/{identity}/split", answer(page.split), methods=["POST"]),
        Route("/people/{identity}/thumbnail.jpg", answer(page.thumbnail)),
        Route("/events", answer(page.events)),
        Route("/search", answer(page.search, largest=LARGEST_PICTURE), methods=["POST"]),
        Route("/outputs", answer(page.outputs)),
        Route("/openapi.json", answer(page.openapi)),
        WebSocketRoute("/cameras/{camera}/live", page.live),
        WebSocketRoute("/events/live", page.live_events),
    ]
    routes = [
        Route("/", lambda request: FileResponse(STATIC / "index.html")),
        Route("/healthz", answer(page.health)),
        Route("/metrics", answer(page.metrics)),
        Mount("/api/v1", routes=v1),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _broken})
    return Access(app, token=token, loopback=loopback, rules=RULES)


class _Page:
    """What each route answers."""

    def __init__(self, watch: WatchSite, ending: threading.Event) -> None:
        self.watch, self.jpegs, self._ending = watch, JpegCache(), ending

    def _ended(self) -> bool:
        return self._ending.is_set() or self.watch.stopped

    def answering(self, work: Callable[[Request, bytes], Response], largest: int = LARGEST_BODY) -> Any:
        """An endpoint: reads a limited body, then works in a thread; errors on purpose become a sentence."""

        async def endpoint(request: Request) -> Response:
            body = await _limited_body(request, largest)
            try:
                return await asyncio.to_thread(work, request, body)
            except NotSeen as error:
                return JSONResponse({"error": str(error)}, 404)
            except DpmError as error:
                return JSONResponse({"error": str(error)}, 400)

        return endpoint

    def site(self, request: Request, body: bytes) -> Response:
        site = self.watch.site
        return JSONResponse(
            {
                "name": site.name,
                "version": __version__,
                "cameras": [camera.name for camera in site.cameras],
                "zones": [{"name": z.name, "camera": z.camera, "points": z.points} for z in site.zones],
                "lines": [{"name": n.name, "camera": n.camera, "points": [n.begin, n.end]} for n in site.lines],
                "kinds": KINDS,
                "thumbnails": site.thumbnails,
                "ready": self.watch.seeing is not None,
            }
        )

    def cameras(self, request: Request, body: bytes) -> Response:
        return JSONResponse(self.watch.status())

    def snapshot(self, request: Request, body: bytes) -> Response:
        camera = request.path_params["camera"]
        view = self._view(camera)
        return Response(self.jpegs.encode(camera, view, _width(request.query_params)), media_type="image/jpeg")

    def _view(self, camera: str) -> Any:
        if camera not in self.watch.processed():
            raise HTTPException(404, f"expected one of {', '.join(self.watch.processed())}, got {camera!r:.80}")
        view = self.watch.view(camera)
        if view is None:
            raise HTTPException(404, f"expected a picture of {camera}, got none yet. Try again in a moment")
        return view

    def people(self, request: Request, body: bytes) -> Response:
        limit = int(_number(request, "limit", 200, 1, 1000))
        return JSONResponse(self.watch.store.people(limit=limit))

    def person(self, request: Request, body: bytes) -> Response:
        identity = request.path_params["identity"]
        tracks = self.watch.store.tracks(identity=identity, limit=200)
        if not tracks:
            raise HTTPException(404, f"expected an identity that was seen, got {identity!r:.80}")
        events = self.watch.store.events(identity=identity, newest=True, limit=200)
        return JSONResponse(
            {
                "identity": identity,
                "name": self.watch.store.names().get(identity),
                "tracks": [
                    {
                        "camera": one.camera,
                        "track": one.track,
                        "first": one.first,
                        "last": one.last,
                        "uncertainty_s": one.uncertainty,
                        "state": one.state,
                        "probability": one.probability,
                        "visibility": one.visibility,
                    }
                    for one in tracks
                ],
                "events": [_event(seq, event) for seq, event in events],
            }
        )

    def rename(self, request: Request, body: bytes) -> Response:
        self.watch.name(request.path_params["identity"], _texts(body, "name")["name"])
        return JSONResponse({"ok": True})

    def merge(self, request: Request, body: bytes) -> Response:
        identity, into = request.path_params["identity"], _texts(body, "into")["into"]
        if identity == into:
            raise HTTPException(409, f"expected two identities to merge, got {identity!r:.80} twice")
        self.watch.merge(identity, into)
        return JSONResponse({"ok": True})

    def split(self, request: Request, body: bytes) -> Response:
        given = _texts(body, "camera", "track")
        new = self.watch.split(given["camera"], given["track"], request.path_params["identity"])
        return JSONResponse({"identity": new})

    def forget(self, request: Request, body: bytes) -> Response:
        return JSONResponse({"deleted": self.watch.forget(request.path_params["identity"])})

    def thumbnail(self, request: Request, body: bytes) -> Response:
        data = self.watch.store.thumbnail(request.path_params["identity"])
        if data is None:
            raise HTTPException(404, "expected a thumbnail, got none. They are kept with [site] thumbnails = true")
        return Response(data, media_type="image/jpeg")

    def events(self, request: Request, body: bytes) -> Response:
        query = request.query_params
        kinds = query.getlist("kind")
        unknown = [kind for kind in kinds if kind not in KINDS]
        if unknown:
            raise HTTPException(400, f"expected kinds of events ({', '.join(KINDS)}), got {unknown[0]!r:.80}")
        found = self.watch.store.events(
            after=int(_number(request, "after", 0, 0, 2**53)),
            limit=int(_number(request, "limit", 100, 1, 1000)),
            newest=query.get("order", "newest") != "oldest",
            kinds=kinds,
            camera=query.get("camera"),
            identity=query.get("identity"),
            since=_number(request, "since", None, 0, 1e10),
            until=_number(request, "until", None, 0, 1e10),
        )
        return JSONResponse([_event(seq, event) for seq, event in found])

    def search(self, request: Request, body: bytes) -> Response:
        if not body:
            raise HTTPException(400, "expected the bytes of a picture file as the body, got none")
        found = self.watch.search(decode_image(body, what="the picture"), int(_number(request, "limit", 10, 1, 100)))
        names = self.watch.store.names()
        for metric in ("masked", "plain"):
            for one in found[metric]:
                one["name"] = names.get(one["identity"])
        return JSONResponse(found)

    def outputs(self, request: Request, body: bytes) -> Response:
        return JSONResponse([vars(delivery.status()) for delivery in self.watch.deliveries])

    def openapi(self, request: Request, body: bytes) -> Response:
        return JSONResponse(document())

    def health(self, request: Request, body: bytes) -> Response:
        return JSONResponse({"ready": self.watch.seeing is not None})

    def metrics(self, request: Request, body: bytes) -> Response:
        watch = self.watch
        outputs = [delivery.status() for delivery in watch.deliveries]
        text = exposition(
            watch.source_statuses(),
            outputs,
            watch.counts,
            watch.processed(),
            watch.latency(),
            watch.drift(),
            watch.detect_every(),
        )
        return Response(text, headers={"content-type": CONTENT_TYPE})

    async def mjpeg(self, request: Request) -> Response:
        """Motion JPEG, for programs that know no WebSockets."""
        camera, width = request.path_params["camera"], _width(request.query_params)
        self._view(camera)

        async def parts() -> AsyncIterator[bytes]:
            last = None
            while not self._ended():
                view = self.watch.view(camera)
                if view is not None and view is not last:
                    last = view
                    data = await asyncio.to_thread(self.jpegs.encode, camera, view, width)
                    yield b"--frame\r\nContent-Type: image/jpeg\r\n\r\n" + data + b"\r\n"
                await asyncio.sleep(LOOK_SECONDS)

        return StreamingResponse(parts(), media_type="multipart/x-mixed-replace; boundary=frame")

    async def live(self, socket: WebSocket) -> None:
        """A description, then its JPEG; the next pair once the viewer has answered, so that only one is under way."""
        camera = socket.path_params["camera"]
        if camera not in self.watch.processed():
            await socket.close(1008, "no such camera")
            return
        width = _width(socket.query_params)
        await socket.accept()
        last: tuple[int, float] | None = None
        quiet = 0.0
        try:
            while not self._ended():
                view = self.watch.view(camera)
                mark = None if view is None else (view.number, view.seconds)
                if view is None or mark == last:
                    await asyncio.sleep(LOOK_SECONDS)
                    quiet += LOOK_SECONDS
                    if quiet > PING_SECONDS:  # nobody answers this; a viewer that is gone is noticed
                        quiet = 0.0
                        await socket.send_text(json.dumps({"camera": camera, "quiet": True}))
                    continue
                last, quiet = mark, 0.0
                names = await asyncio.to_thread(self.watch.store.names)
                data = await asyncio.to_thread(self.jpegs.encode, camera, view, width)
                await socket.send_text(json.dumps(describe(camera, view, names)))
                await socket.send_bytes(data)
                if not await self._answered(socket):
                    break
            await socket.close()
        except (WebSocketDisconnect, RuntimeError):
            return

    async def _answered(self, socket: WebSocket) -> bool:
        """Wait for a viewer's answer; False when the server ends first."""
        answer = asyncio.create_task(socket.receive_text())
        while not answer.done():
            await asyncio.wait({answer}, timeout=0.5)
            if not answer.done() and self._ended():
                answer.cancel()
                return False
        await answer
        return True

    async def live_events(self, socket: WebSocket) -> None:
        """Every event from now on, or after number `after`, as one JSON text each."""
        store = self.watch.store
        given = socket.query_params.get("after", "")
        await socket.accept()
        after = int(given) if given.isdecimal() and len(given) < 16 else await asyncio.to_thread(store.last_seq)
        listening = asyncio.create_task(_until_closed(socket))
        try:
            while not self._ended() and not listening.done():
                for seq, event in await asyncio.to_thread(partial(store.events, after=after)):
                    after = seq
                    await socket.send_text(json.dumps(_event(seq, event)))
                await asyncio.sleep(0.1)
            if not listening.done():
                await socket.close()
        except (WebSocketDisconnect, RuntimeError):
            return
        finally:
            listening.cancel()


async def _until_closed(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _limited_body(request: Request, largest: int) -> bytes:
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > largest:
            raise HTTPException(413, f"expected at most {largest} bytes, got more")
    return data


def _event(seq: int, event: Any) -> dict[str, Any]:
    return {"seq": seq, **event.as_json(), "sentence": event.sentence()}


def _texts(body: bytes, *keys: str) -> dict[str, str]:
    """The texts of a JSON object."""
    try:
        given = json.loads(body)
    except ValueError:
        given = None
    if not isinstance(given, dict) or not all(isinstance(given.get(key), str) for key in keys):
        wanted = ", ".join(f'"{key}": "…"' for key in keys)
        raise HTTPException(400, f"expected JSON {{{wanted}}}, got {body[:80]!r}")
    return given


def _number(request: Request, key: str, default: Any, low: float, high: float) -> Any:
    text = request.query_params.get(key)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        raise HTTPException(400, f"expected {key} in {low:g}..{high:g}, got {text!r:.80}")
    return value


def _width(query: Any) -> int:
    text = query.get("width", "960")
    return min(int(text), 1920) if text.isdecimal() and len(text) < 6 else 960


def _http_error(request: Request, error: Any) -> Response:
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _broken(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"expected no such error, got {type(error).__name__}. Report it"}, 500)
