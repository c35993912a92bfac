"""The API of the page as an OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from dpm_edge import __version__
from dpm_edge.watch.events import KINDS

TEXT, NUMBER, WHOLE, FLAG = {"type": "string"}, {"type": "number"}, {"type": "integer"}, {"type": "boolean"}

NAME = {"type": "string", "minLength": 1, "maxLength": 100, "pattern": r"\S"}


def _or_null(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


def _object(optional: tuple[str, ...] = (), **properties: Any) -> dict[str, Any]:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


def _named(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


SCHEMAS: dict[str, Any] = {
    "Error": _object(error=TEXT),
    "Ok": _object(ok=FLAG),
    "Site": _object(
        name=TEXT, version=TEXT, cameras=_list(TEXT), zones=_list({"type": "object"}), lines=_list({"type": "object"}),
        kinds={"type": "object"}, thumbnails=FLAG, ready=FLAG,
    ),
    "Camera": _object(
        camera=TEXT, address=TEXT, state=TEXT, message=TEXT, live=FLAG, frames=WHOLE, total=WHOLE, dropped=WHOLE,
        processed=WHOLE, reconnects=WHOLE, rate=NUMBER, width=WHOLE, height=WHOLE, silent_s=NUMBER,
        clock_offset_s=_or_null(NUMBER), latency_s=NUMBER,
        people=WHOLE, detect_every=WHOLE, drift=_or_null(NUMBER),
    ),
    "Person": _object(
        identity=TEXT, name=_or_null(TEXT), first=NUMBER, last=NUMBER, tracks=WHOLE, cameras=_list(TEXT), thumbnail=FLAG
    ),
    "Track": _object(
        camera=TEXT, track=TEXT, first=NUMBER, last=NUMBER, uncertainty_s=NUMBER, state=TEXT,
        probability=_or_null(NUMBER), visibility=_or_null(NUMBER),
    ),
    "PersonInFull": _object(
        identity=TEXT, name=_or_null(TEXT), tracks=_list(_named("Track")), events=_list(_named("Event"))
    ),
    "Event": _object(
        seq=WHOLE, id=TEXT, kind={"type": "string", "enum": list(KINDS)}, rule=TEXT, camera=TEXT,
        time={"type": "string", "format": "date-time"}, unix=NUMBER, seconds=NUMBER, uncertainty_s=NUMBER, track=TEXT,
        identity=_or_null(TEXT), reid_state=TEXT, probability=_or_null(NUMBER), previous_ids_chain=_list(TEXT),
        details={"type": "object"}, sentence=TEXT,
    ),
    "Match": _object(
        identity=TEXT, name=_or_null(TEXT), similarity=NUMBER, probability=_or_null(NUMBER), camera=TEXT,
        unix=_or_null(NUMBER),
    ),
    "Found": _object(
        box=_or_null(_list(NUMBER)), visibility=_or_null(NUMBER), visibility_map=_or_null(_list(_list(NUMBER))),
        masked=_list(_named("Match")), plain=_list(_named("Match")),
    ),
    "Output": _object(
        name=TEXT, state=TEXT, message=TEXT, delivered=WHOLE, refused=WHOLE, failures=WHOLE, backlog=WHOLE
    ),
    "Split": _object(identity=TEXT),
    "Forgotten": _object(deleted=WHOLE),
}  # fmt: skip

IDENTITY = {"name": "identity", "in": "path", "required": True, "schema": TEXT}
CAMERA = {"name": "camera", "in": "path", "required": True, "schema": TEXT}
MARK = {"name": "X-Dpm-Edge", "in": "header", "required": True, "schema": {"type": "string", "const": "1"}}


def _query(name: str, schema: dict[str, Any], description: str) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


WIDTH = _query("width", {"type": "integer", "minimum": 1, "maximum": 1920}, "Pixels at most, rounded up to a step.")


def _limit(most: int) -> dict[str, Any]:
    return _query("limit", {"type": "integer", "minimum": 1, "maximum": most}, "How many at most.")


def _answers(schema: dict[str, Any], kind: str = "application/json") -> dict[str, Any]:
    error = {"description": "What was wrong", "content": {"application/json": {"schema": _named("Error")}}}
    good = {"description": "The answer", "content": {kind: {"schema": schema}}}
    return {"200": good, **{str(code): error for code in (400, 401, 403, 404, 405, 409, 413, 421)}}


def _operation(
    summary: str, schema: dict[str, Any], *parameters: Any, body: Any = None, kind: str = "application/json"
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary, "parameters": list(parameters), "responses": _answers(schema, kind),
    }  # fmt: skip
    if body is not None:
        operation["requestBody"] = {"required": True, "content": body}
    return operation


def _json(**properties: Any) -> dict[str, Any]:
    return {"application/json": {"schema": _object(**properties)}}


PICTURE = {"type": "string", "format": "binary"}
PATHS: dict[str, Any] = {
    "/site": {"get": _operation("What is watched", _named("Site"))},
    "/cameras": {"get": _operation("How each camera is", _list(_named("Camera")))},
    "/cameras/{camera}/snapshot.jpg": {
        "get": _operation("The last picture", PICTURE, CAMERA, WIDTH, kind="image/jpeg")
    },
    "/cameras/{camera}/stream.mjpg": {
        "get": _operation("Motion JPEG", PICTURE, CAMERA, WIDTH, kind="multipart/x-mixed-replace")
    },
    "/people": {"get": _operation("Everybody who was seen, latest first", _list(_named("Person")), _limit(1000))},
    "/people/{identity}": {
        "get": _operation("One person with tracks and events", _named("PersonInFull"), IDENTITY),
        "patch": _operation("Give a name", _named("Ok"), IDENTITY, MARK, body=_json(name=NAME)),
        "delete": _operation("Delete everything about a person", _named("Forgotten"), IDENTITY, MARK),
    },
    "/people/{identity}/merge": {
        "post": _operation("Two identities are one person", _named("Ok"), IDENTITY, MARK, body=_json(into=TEXT))
    },
    "/people/{identity}/split": {
        "post": _operation(
            "A track is somebody else", _named("Split"), IDENTITY, MARK, body=_json(camera=TEXT, track=TEXT)
        )
    },
    "/people/{identity}/thumbnail.jpg": {
        "get": _operation("A small picture, where they are kept", PICTURE, IDENTITY, kind="image/jpeg")
    },
    "/events": {
        "get": _operation(
            "What happened",
            _list(_named("Event")),
            _query("kind", _list({"type": "string", "enum": list(KINDS)}), "Only these kinds."),
            _query("camera", TEXT, "Only at this camera."),
            _query("identity", TEXT, "Only of this person."),
            _query("since", {"type": "number", "minimum": 0, "maximum": 1e10}, "Unix seconds, from then on."),
            _query("until", {"type": "number", "minimum": 0, "maximum": 1e10}, "Unix seconds, before then."),
            _query("after", {"type": "integer", "minimum": 0, "maximum": 2**53}, "Only with a greater seq."),
            _query("order", {"type": "string", "enum": ["newest", "oldest"]}, "Which come first."),
            _limit(1000),
        )
    },
    "/search": {
        "post": _operation(
            "Who is on a picture", _named("Found"), MARK, _limit(100),
            body={"application/octet-stream": {"schema": PICTURE}, "image/jpeg": {"schema": PICTURE}},
        )
    },
    "/outputs": {"get": _operation("How each output is", _list(_named("Output")))},
    "/openapi.json": {"get": _operation("This document", {"type": "object"})},
}  # fmt: skip


def document() -> dict[str, Any]:
    """The whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dpm-edge watch",
            "version": __version__,
            "description": "WebSockets beside these: /api/v1/cameras/{camera}/live sends a JSON text and a JPEG for a "
            "frame, and waits for any text before the next; /api/v1/events/live?after=SEQ sends each event.",
        },
        "servers": [{"url": "/api/v1"}],
        "security": [{"token": []}, {}],
        "paths": PATHS,
        "components": {
            "schemas": SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
