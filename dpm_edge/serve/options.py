"""What a request may ask for. Each option goes into the query, or into a form beside the pictures; not into both."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, Json
from pydantic import ValidationError as FieldErrors

from dpm_edge.errors import nearest
from dpm_edge.serve.limits import RequestRefused

PICTURES = "pictures"
"""The field of a form that holds picture files."""

Box = Annotated[list[float], Field(min_length=4, max_length=4)]
Boxes = Json[list[Box]]
Names = list[Annotated[str, Field(max_length=200)]]


class PictureOptions(BaseModel):
    """What every request with pictures may ask for."""

    model_config = ConfigDict(extra="forbid")

    boxes: list[Boxes] = Field(
        default=[],
        title="Boxes",
        description="People to cut out of a picture: JSON [[x0, y0, x1, y1], …] in its pixels. Given once for each "
        "picture, in their order; without, each picture is a crop of one person.",
        examples=[["[[0, 0, 64, 128], [70, 10, 130, 140]]"]],
    )


class EmbedOptions(PictureOptions):
    """What `embed` may be asked for."""

    masks: bool = Field(default=False, title="Masks", description="Answer each crop's mask, too.")
    encoding: Literal["list", "base64"] = Field(
        default="list",
        title="Encoding",
        description="Features and masks as a list of numbers, or as base64 of float32, little-endian: a quarter of "
        "the bytes.",
    )


class WhoOptions(PictureOptions):
    """What `who` may be asked for."""

    top: int = Field(default=3, ge=1, le=1000, title="Top", description="People for each crop.")
    seen_by: Names = Field(
        default=[],
        title="Seen by",
        description="The camera of all crops, or of each in order. Searches that name it are centred per camera where "
        "the gallery's rows suffice.",
        examples=[["gate-3"]],
    )
    centre: bool | None = Field(
        default=None,
        title="Centre",
        description="Take off what each camera's rows have in common, or do not; without, where rows suffice.",
    )
    prior: float = Field(
        default=0.5, gt=0, lt=1, title="Prior", description="Share of such pairs that is one person beforehand."
    )


class SearchOptions(WhoOptions):
    """What `search` may be asked for."""

    top: int = Field(default=5, ge=1, le=1000, title="Top", description="Places for each crop.")
    metric: Literal["plain", "masked", "mutual"] | None = Field(
        default=None, title="Metric", description="masked if not given, or plain of a model without masks."
    )
    camera: Names = Field(default=[], title="Camera", description="Find only rows of this camera, or of these.")
    exclude_same_camera: bool = Field(
        default=False, title="Exclude same camera", description="Never find a row of the crop's own camera (`seen_by`)."
    )
    since: str | None = Field(
        default=None,
        max_length=64,
        title="Since",
        description="Find only rows from then on: Unix seconds, or ISO 8601 with a zone.",
        examples=["2026-11-26T08:00:00Z"],
    )
    until: str | None = Field(default=None, max_length=64, title="Until", description="Find only rows before.")
    min_visibility: float | None = Field(
        default=None, ge=0, le=10, title="Least visibility", description="Find only rows at least this visible."
    )
    by: Literal["row", "person"] = Field(default="row", title="By", description="Places for rows, or for people.")
    expand: int = Field(
        default=0, ge=0, le=100, title="Expand", description="Move crops toward their first N, and search again."
    )
    neighbours: int = Field(
        default=0, ge=0, le=100, title="Neighbours", description="Re-rank by neighbourhoods of N rows."
    )


class AddOptions(PictureOptions):
    """What `add` may be told. Each is given once for all crops, or once for each in order."""

    person: Names = Field(
        default=[],
        title="Person",
        description="Who it is; unknown if not given. In a form, so that no log of addresses holds a name.",
        examples=[["anna"]],
    )
    camera: Names = Field(default=[], title="Camera", description="Who saw it.", examples=[["gate-3"]])
    timestamp: list[Annotated[str, Field(max_length=64)]] = Field(
        default=[],
        title="Timestamp",
        description="When: Unix seconds, or ISO 8601 with a zone.",
        examples=[["2026-11-26T08:00:00Z"]],
    )
    payload: list[Json[dict[str, Any]]] = Field(
        default=[],
        title="Payload",
        description="What to keep beside the row: a JSON object.",
        examples=[['{"badge": 7}']],
    )


Options = TypeVar("Options", bound=PictureOptions)


def merged(query: Options, form: dict[str, list[str]], in_query: Collection[str]) -> Options:
    """The options of a query with those of a form.

    Args:
        query: what FastAPI made of the query.
        form: the form's fields, each with its values.
        in_query: names that the query gave.

    Raises:
        RequestRefused: 422, a field is unknown, given twice, or is not what it should be.
    """
    kind = type(query)
    given: dict[str, Any] = {}
    for name, values in form.items():
        if name not in kind.model_fields:
            raise RequestRefused(
                422, f"expected a field of this form, got {name!r:.80}.{nearest(name, [*kind.model_fields, PICTURES])}"
            )
        if name in in_query:
            raise RequestRefused(422, f"expected {name} in the query or in the form, got it in both. Leave one out")
        if takes_several(kind, name):
            given[name] = values
        elif len(values) > 1:
            raise RequestRefused(422, f"expected {name} once, got it {len(values)} times. Send it once")
        else:
            given[name] = values[0]
    try:
        checked = kind.model_validate(given)
    except FieldErrors as error:
        raise RequestRefused(422, sentence_of(error.errors())) from error
    return query.model_copy(update={name: getattr(checked, name) for name in given})


def takes_several(kind: type[PictureOptions], name: str) -> bool:
    """Whether a field may be given again and again."""
    return isinstance(kind.model_fields[name].default, list)


def sentence_of(errors: Any) -> str:
    """Say in one sentence what pydantic found wrong, of the first field."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("query", "body", "path", "header"))
    if first["type"] == "extra_forbidden":
        return f"expected an option of this request, got {where!r:.80}. GET /api/v1/openapi.json lists them"
    wanted = first["msg"].removeprefix("Input should be ")
    wanted = wanted if wanted != first["msg"] else f"another value ({wanted})"
    more = f" ({len(errors) - 1} more fields are wrong)" if len(errors) > 1 else ""
    return f"expected {where} to be {wanted}, got {first.get('input')!r:.80}{more}. Mend it and send it again"
