"""The pictures and fields of a request: one picture as the whole body, or several in a multipart form."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from dpm_edge.serve.limits import BodyBytes, RequestRefused, ServeLimits
from dpm_edge.serve.options import PICTURES

FIELD_BYTES = 1 << 17
"""Of one field of a form that is no picture."""
RAW = ("image/", "application/octet-stream")
"""Beginnings of the content types of a body that is one picture."""
FORM_TYPE = "multipart/form-data"
NAME_LETTERS = 200


@dataclass(frozen=True)
class SentPicture:
    """A picture file as it came."""

    name: str
    data: bytes


@dataclass
class RequestBody:
    """What a request brought."""

    pictures: list[SentPicture] = field(default_factory=list)
    fields: dict[str, list[str]] = field(default_factory=dict)
    """Of a form, each with its values in order."""


@asynccontextmanager
async def request_body(request: Request, limits: ServeLimits, memory: BodyBytes) -> AsyncIterator[RequestBody]:
    """Read a body; its bytes count as memory of the server until the block ends.

    Raises:
        RequestRefused: it is too long (413), of another type (415), no form (400), too slow (408), holds no picture
            (400) or too many (413), or the server's memory for bodies is full (503).
    """
    taken = 0

    async def chunks() -> AsyncGenerator[bytes, None]:
        nonlocal taken
        async for chunk in request.stream():
            if taken + len(chunk) > limits.body_bytes:
                raise _too_long(limits)
            memory.take(len(chunk))
            taken += len(chunk)
            yield chunk

    try:
        try:
            found = await asyncio.wait_for(_read(request, chunks(), limits), limits.body_seconds)
        except asyncio.TimeoutError as error:
            raise RequestRefused(
                408, f"expected a whole body within {limits.body_seconds:g} s, got part of it. Send it again"
            ) from error
        yield found
    finally:
        memory.give_back(taken)


async def _read(request: Request, chunks: AsyncGenerator[bytes, None], limits: ServeLimits) -> RequestBody:
    kind = request.headers.get("content-type", RAW[1]).split(";")[0].strip().lower()
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limits.body_bytes:
        raise _too_long(limits)
    try:
        if kind == FORM_TYPE:
            found = await _form(request.headers, chunks, limits)
        elif kind.startswith(RAW):
            found = RequestBody([SentPicture("picture-0", b"".join([chunk async for chunk in chunks]))])
        else:
            raise RequestRefused(
                415,
                f"expected a picture (image/jpeg, image/png, …) or {FORM_TYPE}, got {kind!r:.80}. "
                "Send the header Content-Type: image/jpeg",
            )
    except ClientDisconnect as error:
        raise RequestRefused(400, "expected a whole body, got part of it: the client has gone") from error
    if not found.pictures:
        raise RequestRefused(400, "expected a file in the field pictures, got none. Send -F pictures=@crop.jpg")
    return found


class _PartsInMemory(MultiPartParser):
    """Never writes pictures of people to a temporary file: the body was limited before."""

    spool_max_size = max_file_size = 1 << 40


async def _form(headers: Headers, chunks: AsyncGenerator[bytes, None], limits: ServeLimits) -> RequestBody:
    parser = _PartsInMemory(
        headers, chunks, max_files=limits.crops, max_fields=4 * limits.crops + 20, max_part_size=FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError) as error:
        why = str(getattr(error, "message", error))
        many = why.startswith("Too many files")
        raise RequestRefused(
            413 if many else 400,
            f"expected at most {limits.crops} pictures in a request, got more. Send several requests"
            if many
            else f"expected a form of {FORM_TYPE}, got none that can be read ({why}). Send it again",
        ) from error
    found = RequestBody()
    for name, value in form.multi_items():
        if isinstance(value, UploadFile) != (name == PICTURES):
            what, other = ("a file", "text") if name == PICTURES else ("text", "a file")
            raise RequestRefused(422, f"expected {what} in the field {name!r:.80}, got {other}. Files go to pictures")
        if isinstance(value, UploadFile):
            data = await value.read()
            await value.close()
            found.pictures.append(SentPicture(_name(value.filename, len(found.pictures)), data))
        else:
            found.fields.setdefault(name, []).append(value)
    return found


def _name(given: Any, number: int) -> str:
    """The name of a file, without folders and letters that no text should have."""
    name = re.sub(r"[\x00-\x1f\x7f]", "", str(given or "").replace("\\", "/").rsplit("/", 1)[-1]).strip()
    return name.encode("utf-8", "replace").decode()[:NAME_LETTERS] or f"picture-{number}"


def _too_long(limits: ServeLimits) -> RequestRefused:
    return RequestRefused(
        413, f"expected at most {limits.body_bytes} bytes in a request, got more. Send fewer or smaller pictures"
    )
