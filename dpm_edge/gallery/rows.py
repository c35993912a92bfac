"""The schema of a gallery row, the same in every store, and the filter over it.

N rows · D feature dimensions
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError

NAME_BYTES = 512
"""Longest person, track or camera, in UTF-8."""
SOURCE_BYTES = 8192
PAYLOAD_BYTES = 60_000
"""Longest payload as JSON in UTF-8: what every store takes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """N rows of a gallery, column by column.

    Raises:
        GalleryError: on construction, when columns differ in length or a text is too long.
    """

    ids: NDArray[np.int64]
    """(N,) int64, 0 or more: names the row for ever."""
    features: NDArray | None
    """(N, D) float, L2-normalised; None where only the labels were read."""
    masks: NDArray | None
    """(N, D) float in 0..1; None where the gallery keeps none."""
    people: list[str]
    """(N,) who it is; "" for nobody known."""
    tracks: list[str]
    """(N,) the tracker's id of the appearance; "" without."""
    cameras: list[str]
    """(N,) "" without."""
    timestamps: NDArray[np.float64]
    """(N,) Unix seconds; NaN where unknown."""
    visibility: NDArray[np.float32] | None
    """(N,) as in Embeddings; None of a model without it. A store keeps a number all the same: 1 for each row."""
    boxes: NDArray[np.float32]
    """(N, 4) x0, y0, x1, y1 in pixels; NaN where unknown."""
    sources: list[str]
    """(N,) where the picture is; "" without."""
    payloads: list[dict[str, Any]]
    """(N,) whatever the owner wants to find again: JSON."""

    def __post_init__(self) -> None:
        n = len(self.ids)
        for column in fields(self):
            value = getattr(self, column.name)
            if value is not None and len(value) != n:
                raise GalleryError(
                    f"expected {n} {column.name}, one for each row, got {len(value)}. Boxes that were skipped have no "
                    f"row: pick labels with embeddings.rows"
                )
        if self.boxes.shape != (n, 4):
            raise GalleryError(f"expected ({n}, 4) boxes, x0 y0 x1 y1 in pixels, got {self.boxes.shape}")
        for name, limit in {
            "people": NAME_BYTES, "tracks": NAME_BYTES, "cameras": NAME_BYTES, "sources": SOURCE_BYTES
        }.items():  # fmt: skip
            texts = getattr(self, name)
            try:
                "".join(texts).encode()
            except UnicodeEncodeError as error:
                raise GalleryError(
                    f"expected {name} that UTF-8 can hold, got {texts!r:.80} ({error.reason})"
                ) from error
            if 4 * max(map(len, texts), default=0) <= limit:  # no character takes more bytes
                continue
            longest = max(len(text.encode()) for text in texts)
            if longest > limit:
                raise GalleryError(f"expected {name} of {limit} bytes at most, got {longest} bytes. Shorten the text")

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: NDArray) -> Rows:
        """Some of the rows, by index or boolean mask."""
        at = np.arange(len(self))[which]
        picked: dict[str, Any] = {}
        for column in fields(self):
            value = getattr(self, column.name)
            picked[column.name] = (
                [value[i] for i in at] if isinstance(value, list) else None if value is None else value[at]
            )
        return Rows(**picked)

    @classmethod
    def join(cls, parts: Sequence[Rows]) -> Rows:
        """One set out of several, in order; there must be one at least."""
        joined: dict[str, Any] = {}
        for column in fields(cls):
            values = [getattr(part, column.name) for part in parts]
            if isinstance(values[0], list):
                joined[column.name] = [item for value in values for item in value]
            else:
                joined[column.name] = None if values[0] is None else np.concatenate(values)
        return cls(**joined)

    def without_vectors(self) -> Rows:
        """Only the labels."""
        return replace(self, features=None, masks=None)


def payload_json(payload: Any) -> str:
    """A payload as JSON.

    Raises:
        GalleryError: it is no object, holds something JSON has not, or is too long.
    """
    if not isinstance(payload, dict):
        raise GalleryError(f"expected a payload that is a dict of JSON values, got a {type(payload).__name__}")
    try:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError) as error:  # a ValueError also: text that UTF-8 cannot hold
        raise GalleryError(
            f"expected a payload of text, finite numbers, lists and dicts, got {payload!r:.80} ({error})"
        ) from error
    if size > PAYLOAD_BYTES:
        raise GalleryError(f"expected a payload of {PAYLOAD_BYTES} bytes at most as JSON, got {size}")
    return text


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which rows: every condition that is set must hold. A row of unknown time is in no window.

    Raises:
        GalleryError: on construction, when a number is NaN, which nothing compares with.
    """

    cameras: tuple[str, ...] | None = None
    """One of these."""
    not_camera: str | None = None
    """Not this one; "", an unknown camera, is the same as None: it hides nothing."""
    outside: tuple[str, ...] | None = None
    """None of these cameras."""
    since: float | None = None
    """Unix seconds, included."""
    until: float | None = None
    """Unix seconds, excluded."""
    min_visibility: float | None = None
    people: tuple[str, ...] | None = None
    """One of these."""

    def __post_init__(self) -> None:
        if self.not_camera == "":
            object.__setattr__(self, "not_camera", None)
        for name in ("since", "until", "min_visibility"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, int | float | np.number) and value == value):
                raise GalleryError(f"expected a number for {name}, got {value!r:.80}. Leave it out for no limit")

    @property
    def everything(self) -> bool:
        """No condition is set."""
        return self == Where()

    def holds(
        self, *, cameras: NDArray, timestamps: NDArray[np.float64], visibility: NDArray[np.float32], people: NDArray
    ) -> NDArray[np.bool_]:
        """(N,) bool, by columns of length N. `cameras` and `people` may hold anything that == compares with text."""
        keep = np.ones(len(timestamps), bool)
        if self.cameras is not None:
            keep &= np.isin(cameras, list(self.cameras))
        if self.not_camera is not None:
            keep &= cameras != self.not_camera
        if self.outside is not None:
            keep &= ~np.isin(cameras, list(self.outside))
        if self.since is not None:
            keep &= timestamps >= self.since
        if self.until is not None:
            keep &= timestamps < self.until
        if self.min_visibility is not None:
            keep &= visibility >= np.float32(self.min_visibility)
        if self.people is not None:
            keep &= np.isin(people, list(self.people))
        return keep
