"""The API of one engine and one gallery, version 1, as an ASGI application."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from numpy.typing import NDArray
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dpm_edge import __version__
from dpm_edge.errors import DpmError, EngineError, GalleryError, ImageError
from dpm_edge.gallery import Gallery
from dpm_edge.gallery.calibration import Calibration
from dpm_edge.runtime.batcher import QueueFull
from dpm_edge.runtime.engine import Engine
from dpm_edge.serve import schemas
from dpm_edge.serve.crop_embedder import CropEmbedder, RequestCrops
from dpm_edge.serve.limits import (
    BodyBytes,
    RateLimit,
    RequestRefused,
    ServeLimits,
    client_of,
    overloaded,
)
from dpm_edge.serve.metrics import RequestMetrics
from dpm_edge.serve.openapi import ERRORS, GET_ERRORS, METRICS_ANSWERS, describe, described_body
from dpm_edge.serve.options import (
    AddOptions,
    EmbedOptions,
    Options,
    SearchOptions,
    WhoOptions,
    merged,
    sentence_of,
)
from dpm_edge.serve.request_body import request_body
from dpm_edge.serve.served_gallery import NO_GALLERY, ServedGallery
from dpm_edge.telemetry import is_allowed
from dpm_edge.web.access import Access, AccessRules, error_answer
from dpm_edge.web.prometheus_text import CONTENT_TYPE

API = "/api/v1"
TELEMETRY: Any = dict.fromkeys(("auto_configure", "tracing", "metrics", "logs", "operation_spans"), False)
"""FastAPI's own, off: it would send requests' fields to wherever OTEL_… in the environment points."""


class ServeApp:
    """One engine and one gallery as an ASGI application; `close` it when its server has ended.

    Args:
        engine: stays yours to close.
        gallery: of the engine's model; None: search, who and add answer 409. Stays yours to close.
        add: whether rows may be added.
        calibration: for searches under its metric; else what the gallery keeps.
        token: asked for when not empty.
        loopback: whether only this machine reaches it.
        limits: of bodies, crops and requests.

    Raises:
        GalleryError: the gallery or the calibration is of another model than the engine.
    """

    def __init__(
        self, engine: Engine, gallery: Gallery | None = None, *, add: bool = True,
        calibration: Calibration | None = None, token: str = "", loopback: bool = True,
        limits: ServeLimits | None = None,
    ) -> None:  # fmt: skip
        self.engine, self.limits = engine, limits or ServeLimits()
        self._gallery = None if gallery is None else ServedGallery(gallery, engine, add=add, calibration=calibration)
        self.embedder, self._bodies = CropEmbedder(engine, self.limits), BodyBytes(self.limits)
        self.api = self._routes()
        app: Any = Access(self.api, token=token, loopback=loopback, rules=AccessRules())
        if self.limits.rate is not None:
            app = RateLimit(app, self.limits.rate)
        paths = frozenset(str(getattr(route, "path", "")) for route in self.api.routes)
        self.metrics = RequestMetrics(app, paths)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        await self.metrics(scope, receive, send)

    def close(self) -> None:
        """Finish what was begun and end the threads."""
        self.embedder.close()
        if self._gallery is not None:
            self._gallery.close()

    def _routes(self) -> FastAPI:
        api = FastAPI(
            title="dpm-edge serve",
            version=__version__,
            summary="Embed people, search them in a gallery, add them to it.",
            openapi_url=f"{API}/openapi.json",
            docs_url=None,  # Swagger UI and ReDoc load scripts of another site
            redoc_url=None,
            exception_handlers=HANDLERS,
            telemetry=None if is_allowed() else TELEMETRY,
        )
        post: dict[str, Any] = {"responses": ERRORS, "methods": ["POST"]}
        get: dict[str, Any] = {"responses": {code: ERRORS[code] for code in GET_ERRORS}, "methods": ["GET"]}
        for name, work, options, answer in (
            ("embed", self.embed, EmbedOptions, schemas.EmbedAnswer),
            ("search", self.search, SearchOptions, schemas.SearchAnswer),
            ("who", self.who, WhoOptions, schemas.SearchAnswer),
            ("add", self.add, AddOptions, schemas.AddAnswer),
        ):
            body = described_body(options)
            api.add_api_route(f"{API}/{name}", work, response_model=answer, openapi_extra=body, **post)
        api.add_api_route(f"{API}/model", self.model, response_model=schemas.ModelAnswer, **get)
        api.add_api_route(f"{API}/gallery", self.gallery, response_model=schemas.GalleryAnswer, **get)
        api.add_api_route("/healthz", self.healthz, response_model=schemas.ReadyAnswer, **get)
        api.add_api_route("/metrics", self.prometheus, responses=METRICS_ANSWERS, response_class=PrometheusAnswer)
        describe(api)
        return api

    async def embed(self, request: Request, options: Annotated[EmbedOptions, Query()]) -> Response:
        """Features of people.

        The body is a picture, a crop of one person, or a form with several of them in `pictures`; `boxes` cuts people
        out of a picture.
        """
        async with self._crops(request, options) as (crops, chosen):
            return _json(self._embedded(crops, chosen))

    async def search(self, request: Request, options: Annotated[SearchOptions, Query()]) -> Response:
        """The gallery's nearest rows for each crop."""
        gallery = self._require_gallery()
        async with self._crops(request, options) as (crops, chosen):
            return _json({"results": await gallery.search(crops, chosen), "skipped": crops.skipped})

    async def who(self, request: Request, options: Annotated[WhoOptions, Query()]) -> Response:
        """The people of the gallery that each crop is most like."""
        gallery = self._require_gallery()
        async with self._crops(request, options) as (crops, chosen):
            return _json({"results": await gallery.who(crops, chosen), "skipped": crops.skipped})

    async def add(self, request: Request, options: Annotated[AddOptions, Query()]) -> Response:
        """Add a row for each crop to the gallery, or none where one cannot be used.

        In a gallery in a folder the rows are on the disk when this answers.
        """
        gallery = self._require_gallery()
        gallery.require_adding()
        async with self._crops(request, options) as (crops, chosen):
            return _json(await gallery.add(crops, chosen))

    async def model(self) -> Response:
        """What engine this is."""
        manifest, batch = self.engine.manifest, self.engine.batch
        return _json(
            {
                "version": __version__,
                "name": manifest.spec.name,
                "fingerprint": self.engine.fingerprint,
                "dimension": self.engine.dimension,
                "masks": manifest.spec.masks,
                "backend": manifest.backend,
                "precision": manifest.precision,
                "device": self.engine.device,
                "batch": {"low": batch.low, "best": batch.best, "high": batch.high},
                "spec": manifest.spec.to_dict(),
            }
        )

    async def gallery(self) -> Response:
        """Rows, people and cameras of the gallery; reads every row's labels."""
        return _json(await self._require_gallery().describe())

    async def healthz(self) -> Response:
        """Whether the server is up; needs no token."""
        return _json({"ready": True})

    async def prometheus(self) -> Response:
        """Numbers about the server, as Prometheus reads them."""
        rows = None if self._gallery is None else await self._gallery.count()
        return PrometheusAnswer(self.metrics.text(self.embedder, rows))

    @asynccontextmanager
    async def _crops(self, request: Request, options: Options) -> AsyncIterator[tuple[RequestCrops, Options]]:
        """The crops of a request, embedded, and its options out of query and form."""
        async with request_body(request, self.limits, self._bodies) as body:
            chosen = merged(options, body.fields, request.query_params.keys())
            crops = await self.embedder.embed(body.pictures, chosen.boxes, client_of(request.scope))
        yield crops, chosen

    def _require_gallery(self) -> ServedGallery:
        if self._gallery is None:
            raise RequestRefused(409, NO_GALLERY)
        return self._gallery

    def _embedded(self, crops: RequestCrops, options: EmbedOptions) -> dict[str, Any]:
        found, encode = crops.embeddings, ENCODINGS[options.encoding]
        with_masks = options.masks and found.has_masks
        return {
            "fingerprint": self.engine.fingerprint,
            "dimension": self.engine.dimension,
            "rows": [
                {
                    "picture": picture,
                    "box": box,
                    "name": found.sources[i],
                    "feature": encode(found.features[i]),
                    "visibility": None if found.visibility is None else float(found.visibility[i]),
                    "mask": encode(found.masks[i]) if with_masks else None,
                }
                for i, (picture, box) in enumerate(crops.places)
            ],
            "skipped": crops.skipped,
        }


class PrometheusAnswer(Response):
    """Prometheus's text."""

    media_type = CONTENT_TYPE


def _base64(values: NDArray[np.float32]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


ENCODINGS: dict[str, Callable[[NDArray[np.float32]], Any]] = {"list": lambda values: values.tolist(), "base64": _base64}


def _json(answer: dict[str, Any]) -> Response:
    """Written once, without a check against its schema: tests compare the two."""
    return Response(to_json(answer), media_type="application/json")


async def _refused(request: Request, error: Any) -> Response:
    return error_answer(error.status, str(error), error.headers)


async def _queue_full(request: Request, error: Any) -> Response:
    return await _refused(request, overloaded(f"expected room in the queue, got none ({error})"))


async def _bad_request(request: Request, error: Any) -> Response:
    return error_answer(400, str(error))


async def _gallery_fault(request: Request, error: Any) -> Response:
    """What a client asks for was checked before: its server does not answer, or its files are damaged."""
    return error_answer(503, str(error))


async def _own_fault(request: Request, error: Any) -> Response:
    return error_answer(500, str(error))


async def _bad_field(request: Request, error: Any) -> Response:
    return error_answer(422, sentence_of(error.errors()))


async def _http_error(request: Request, error: Any) -> Response:
    sentences = {
        404: f"expected a path of this API, got {request.url.path!r:.80}. GET {API}/openapi.json lists them",
        405: f"expected another method for {request.url.path!r:.80}, got {request.method}. "
        f"GET {API}/openapi.json lists them",
    }
    return error_answer(error.status_code, sentences.get(error.status_code, str(error.detail)), error.headers)


async def _broken(request: Request, error: Exception) -> Response:
    return error_answer(500, f"expected no such error, got {type(error).__name__}. Report it")


HANDLERS: dict[Any, Any] = {
    RequestRefused: _refused,
    QueueFull: _queue_full,
    ImageError: _bad_request,
    GalleryError: _gallery_fault,
    EngineError: _own_fault,
    DpmError: _own_fault,
    RequestValidationError: _bad_field,
    HTTPException: _http_error,
    Exception: _broken,
}
"""Error → its answer; the nearest class in an error's ancestry counts."""
