"""What FastAPI does not find out by itself for the OpenAPI document: bodies, errors, the token."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from dpm_edge.serve.options import PICTURES, PictureOptions
from dpm_edge.serve.schemas import ErrorAnswer

REASONS = {
    400: "A picture cannot be used, or the gallery or the model cannot do what an option wants",
    401: "No token, or a wrong one",
    403: "A request of another site's page",
    408: "The body did not arrive in time",
    409: "The server has no gallery, or one that takes no rows",
    413: "The body is too long, or has too many pictures or boxes",
    415: "The body is neither a picture nor a form",
    421: "A foreign name for this machine",
    422: "An option is not what it should be",
    429: "Too many requests of this client; Retry-After says when to send it again",
    500: "A fault of the server or its engine",
    503: "Too much is under way, or the gallery does not answer",
    507: "The gallery could not keep the rows",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    code: {"description": reason, "model": ErrorAnswer} for code, reason in REASONS.items()
}
"""Status → what a route may answer with it."""
GET_ERRORS = (401, 403, 409, 421, 422, 429, 500, 503)
"""Of routes without a body."""
METRICS_ANSWERS: dict[int | str, dict[str, Any]] = {
    code: {
        "description": REASONS[code],
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorAnswer"}}},
    }
    for code in GET_ERRORS
}
"""The errors of a route that otherwise answers with text: FastAPI would give a model the route's own content type."""
PICTURE_TYPES = ("image/jpeg", "image/png", "image/bmp", "image/webp", "application/octet-stream")


def described_body(options: type[PictureOptions]) -> dict[str, Any]:
    """The body of a request: one picture, or a form of pictures and the options of the request."""
    form = options.model_json_schema(mode="validation")
    properties = {
        PICTURES: {
            "type": "array",
            "items": {"type": "string", "format": "binary"},
            "minItems": 1,
            "title": "Pictures",
            "description": "Picture files: JPEG, PNG, BMP or WebP.",
        },
        **form["properties"],
    }
    schema = {"type": "object", "properties": properties, "required": [PICTURES], "additionalProperties": False}
    picture = {"schema": {"type": "string", "format": "binary", "minLength": 1}}
    content = {**dict.fromkeys(PICTURE_TYPES, picture), "multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def describe(api: FastAPI) -> None:
    """Add to the application's document that a token may be needed, beyond this machine."""
    made = api.openapi

    def document() -> dict[str, Any]:
        if api.openapi_schema is None:
            whole = made()
            whole["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
            whole["security"] = [{"token": []}, {}]
        return made()

    api.openapi = document  # type: ignore[method-assign]
