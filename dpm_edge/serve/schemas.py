"""What the server answers, for its OpenAPI document. Answers are written as JSON directly: tests compare the two."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

VISIBILITY = "Share of the person in sight (docs/runtime.md); null of a model without masks."


class ErrorAnswer(BaseModel):
    """What went wrong, in one form: what was expected, what came, what to do."""

    error: str = Field(
        title="Error",
        examples=["expected a picture that OpenCV can read, got a.jpg of 12 bytes, which is not a picture. Convert it"],
    )


class ReadyAnswer(BaseModel):
    """The server is up."""

    ready: bool = Field(title="Ready")


class SkippedCrop(BaseModel):
    """A picture or box that could not be used; the others were."""

    picture: int = Field(title="Picture", description="Its number in the request, from 0.")
    box: int | None = Field(title="Box", description="The number of the box in the picture; null without boxes.")
    reason: str = Field(title="Reason")


class EmbeddedCrop(BaseModel):
    """One crop of one person."""

    picture: int = Field(title="Picture", description="Its number in the request, from 0.")
    box: int | None = Field(title="Box", description="The number of the box in the picture; null without boxes.")
    name: str = Field(title="Name", description="The file's name, or picture-0.", examples=["door.jpg"])
    feature: list[float] | str = Field(title="Feature", description="D numbers of length 1, or base64 of float32.")
    visibility: float | None = Field(title="Visibility", description=VISIBILITY)
    mask: list[float] | str | None = Field(
        title="Mask", description="D numbers in 0..1; null where not asked for, and of a model without masks."
    )


class EmbedAnswer(BaseModel):
    """Features of every crop that could be used."""

    fingerprint: str = Field(title="Fingerprint", description="The model: features of two models cannot be compared.")
    dimension: int = Field(title="Dimension", description="D, the length of a feature.")
    rows: list[EmbeddedCrop] = Field(title="Rows")
    skipped: list[SkippedCrop] = Field(title="Skipped")


class FoundRow(BaseModel):
    """One row of the gallery."""

    row: int = Field(title="Row", description="Its id, of 64 bits: numbers of JavaScript hold 53.")
    similarity: float = Field(title="Similarity")
    score: float = Field(title="Score", description="What orders the places.")
    person: str = Field(title="Person", description="Empty where unknown.")
    camera: str = Field(title="Camera", description="Empty where unknown.")
    timestamp: float | None = Field(title="Timestamp", description="Unix seconds.")
    source: str = Field(title="Source")
    payload: dict[str, Any] = Field(title="Payload")
    probability: float | None = Field(
        default=None, title="Probability", description="That both are one person; only with a calibration."
    )
    decision: Literal["same", "different", "too occluded to decide"] | None = Field(
        default=None, title="Decision", description="Only with a calibration."
    )


class CropMatches(BaseModel):
    """What one crop found, best first."""

    query: str = Field(title="Query", description="The crop's name.", examples=["door.jpg"])
    visibility: float | None = Field(default=None, title="Visibility", description=VISIBILITY)
    matches: list[FoundRow] = Field(title="Matches")


class SearchAnswer(BaseModel):
    """As `dpm-edge match --json` and `dpm-edge who --json` print it, in `results`."""

    results: list[CropMatches] = Field(title="Results")
    skipped: list[SkippedCrop] = Field(title="Skipped")


class AddAnswer(BaseModel):
    """Rows that are in the gallery, and on its disk."""

    rows: list[int] = Field(title="Rows", description="The id of each crop's row, in order, of 64 bits.")
    total: int = Field(title="Total", description="Rows in the gallery now.")


class BatchSizes(BaseModel):
    """Crops in one call of the engine."""

    low: int = Field(title="Low")
    best: int = Field(title="Best")
    high: int = Field(title="High")


class ModelAnswer(BaseModel):
    """The engine that is served."""

    version: str = Field(title="Version", description="Of dpm-edge.")
    name: str = Field(title="Name", examples=["dpm-n"])
    fingerprint: str = Field(title="Fingerprint")
    dimension: int = Field(title="Dimension")
    masks: bool = Field(title="Masks", description="Whether the model has masks and a visibility.")
    backend: str = Field(title="Backend", examples=["openvino"])
    precision: str = Field(title="Precision", examples=["fp32"])
    device: str = Field(title="Device", examples=["CPU"])
    batch: BatchSizes = Field(title="Batch")
    spec: dict[str, Any] = Field(title="Spec", description="The network and its preprocessing.")


class GalleryAnswer(BaseModel):
    """As `dpm-edge gallery stats --json` prints it."""

    model_config = ConfigDict(extra="allow")

    rows: int = Field(title="Rows")
    people: int = Field(title="People")
    cameras: dict[str, int] = Field(title="Cameras", description="Rows of each camera.")
    first: float | None = Field(title="First", description="The earliest row, Unix seconds.")
    last: float | None = Field(title="Last", description="The latest row, Unix seconds.")
    fingerprint: str = Field(title="Fingerprint")
    dimension: int = Field(title="Dimension")
    adds: bool = Field(title="Adds", description="Whether this server adds rows.")
