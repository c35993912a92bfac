"""The schema of a gallery row, the same in every store, and the filter over it.

N rows · D feature dimensions
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.search.exact import unit
from dpm_edge.runtime.embeddings import Embeddings

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
    """(N,) int64, 0 or more: the row's name for ever."""
    features: NDArray | None
    """(N, D) float, L2-normalised; None where only labels were asked for."""
    masks: NDArray | None
    """(N, D) float in 0..1; None where the gallery keeps none."""
    people: list[str]
    """(N,) who it is; "" for nobody known."""
    tracks: list[str]
    """(N,) the tracker's name of the appearance; "" without."""
    cameras: list[str]
    """(N,) "" without."""
    timestamps: NDArray[np.float64]
    """(N,) Unix seconds; NaN where unknown."""
    visibility: NDArray[np.float32]
    """(N,) as in Embeddings."""
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
                    f"{len(value)} {column.name} for {n} rows; one each is wanted. Boxes that were skipped have no "
                    f"row: pick labels with embeddings.rows"
                )
        if self.boxes.shape != (n, 4):
            raise GalleryError(f"boxes have shape {self.boxes.shape}; ({n}, 4), x0 y0 x1 y1, is wanted")
        for name, limit in {
            "people": NAME_BYTES, "tracks": NAME_BYTES, "cameras": NAME_BYTES, "sources": SOURCE_BYTES
        }.items():  # fmt: skip
            longest = max((len(text.encode()) for text in getattr(self, name)), default=0)
            if longest > limit:
                raise GalleryError(f"{name} hold a text of {longest} bytes; {limit} at most is wanted")

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


def new_rows(
    embeddings: Embeddings,
    ids: NDArray[np.int64],
    *,
    masks: bool,
    people: Sequence[Any],
    cameras: Sequence[Any] | None,
    timestamps: Sequence[float] | None,
    tracks: Sequence[Any] | None,
    boxes: ArrayLike | None,
    payloads: Sequence[dict[str, Any]] | None,
) -> Rows:
    """Embeddings with their labels, as `Gallery.add` takes them; masks: whether the gallery keeps them.

    Raises:
        GalleryError: a label is missing, too long or not finite, or a mask leaves 0..1.
    """
    n = len(embeddings)
    for payload in payloads or []:
        payload_json(payload)
    if n and (embeddings.masks.min() < 0 or embeddings.masks.max() > 1):
        raise GalleryError(f"expected masks in 0..1, got {embeddings.masks.min()}..{embeddings.masks.max()}")
    times = np.full(n, np.nan) if timestamps is None else np.asarray(timestamps, np.float64)
    if np.isinf(times).any():
        raise GalleryError("expected timestamps in seconds, or NaN for unknown, got infinity")
    return Rows(
        ids=ids,
        features=unit(embeddings.features),
        masks=embeddings.masks if masks else None,
        people=_text(people),
        tracks=[""] * n if tracks is None else _text(tracks),
        cameras=[""] * n if cameras is None else _text(cameras),
        timestamps=times,
        visibility=embeddings.visibility,
        boxes=np.full((n, 4), np.nan, np.float32) if boxes is None else np.asarray(boxes, np.float32),
        sources=list(embeddings.sources) or [""] * n,
        payloads=[{} for _ in range(n)] if payloads is None else list(payloads),
    )


def _text(labels: Sequence[Any]) -> list[str]:
    return [str(label) for label in labels]


def payload_json(payload: Any) -> str:
    """A payload as JSON.

    Raises:
        GalleryError: it is no object, holds something JSON has not, or is too long.
    """
    if not isinstance(payload, dict):
        raise GalleryError(f"a payload is a {type(payload).__name__}; a dict of JSON values is wanted")
    try:
        text = json.dumps(payload, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise GalleryError(f"a payload cannot be kept as JSON ({error}); text, numbers, lists and dicts can") from error
    if len(text.encode()) > PAYLOAD_BYTES:
        raise GalleryError(f"a payload has {len(text.encode())} bytes as JSON; {PAYLOAD_BYTES} at most is wanted")
    return text


def named_cameras(camera: Any) -> tuple[str, ...] | None:
    """One camera or several as a filter takes them; None: any."""
    if camera is None:
        return None
    return tuple(str(c) for c in camera) if isinstance(camera, list | tuple) else (str(camera),)


@dataclass(frozen=True, kw_only=True)
class Where:
    """Which rows: every condition that is set must hold. A row of unknown time is in no window."""

    cameras: tuple[str, ...] | None = None
    """One of these."""
    not_camera: str | None = None
    since: float | None = None
    """Unix seconds, included."""
    until: float | None = None
    """Unix seconds, excluded."""
    min_visibility: float | None = None
    people: tuple[str, ...] | None = None
    """One of these."""

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
        if self.since is not None:
            keep &= timestamps >= self.since
        if self.until is not None:
            keep &= timestamps < self.until
        if self.min_visibility is not None:
            keep &= visibility >= np.float32(self.min_visibility)
        if self.people is not None:
            keep &= np.isin(people, list(self.people))
        return keep
