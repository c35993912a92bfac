"""What a search returns: one validated set of arrays of equal length.

Q queries · k places
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.gallery.rows import Rows


@dataclass(frozen=True, kw_only=True)
class Match:
    """One gallery row that a query found; `Matches` says what each number is."""

    row: int
    person: str
    camera: str
    similarity: float
    score: float
    probability: float
    decision: str
    source: str
    timestamp: float
    visibility: float | None
    payload: dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Matches:
    """The k nearest gallery rows of each query, best first.

    A place that no row fills has row −1, similarity −inf, and empty names: `found` tells, `of_query` leaves them out.

    Raises:
        GalleryError: on construction, when the arrays differ in shape.
    """

    rows: NDArray[np.int64]
    """(Q, k) int64: ids of gallery rows; −1 where there were fewer than k candidates."""
    similarity: NDArray[np.float32]
    """(Q, k) float32, of the query with that row. Falling, equal ones by rising id, where nothing else orders."""
    score: NDArray[np.float32]
    """(Q, k) float32, falling: what orders the places. The similarity itself, unless the search had more steps."""
    people: NDArray[np.str_]
    """(Q, k) str: the person of each row."""
    cameras: NDArray[np.str_]
    """(Q, k) str: the camera of each row."""
    sources: NDArray[np.object_]
    """(Q, k) of str: where each row's picture is."""
    timestamps: NDArray[np.float64]
    """(Q, k) Unix seconds; NaN where unknown."""
    visibility: NDArray[np.float32] | None
    """(Q, k) of the rows; NaN where there is no row. None of a model without a visibility."""
    payloads: NDArray[np.object_]
    """(Q, k) of dict: what was stored beside each row."""
    probability: NDArray[np.float64]
    """(Q, k): that query and row are one person, at the odds of `prior`; NaN without a calibration."""
    decision: NDArray[np.str_]
    """(Q, k): "same" where only the calibration's false-match rate of strangers is as similar, else "different",
    however probable; "too occluded to decide" where that would find almost nobody; "" without a calibration."""

    centred: bool = False
    """Whether features centred per camera were compared."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if field.name == "centred":
                continue
            value = getattr(self, field.name)
            if value is None and field.name == "visibility":
                continue
            shape = value.shape
            if len(shape) != 2 or shape != self.rows.shape:
                raise GalleryError(f"expected {field.name} of shape {self.rows.shape}, (Q, k), got {shape}")

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def found(self) -> NDArray[np.bool_]:
        """(Q, k) bool: places that a gallery row fills."""
        return self.rows >= 0

    def __repr__(self) -> str:
        nearest = [
            f"{one.person or 'unknown'} {one.similarity:.3f}"
            for i in range(min(len(self), 3))
            for one in self.of_query(i)[:1]
        ]
        first = f", nearest: {', '.join(nearest)}{', …' if len(self) > 3 else ''}" if nearest else ""
        return f"Matches({len(self)} queries × {self.rows.shape[1]} places, {int(self.found.sum())} filled{first})"

    def of_query(self, query: int) -> list[Match]:
        """List what one query found, best first, without the places that no row fills.

        Raises:
            IndexError: there is no such query.
        """
        return [
            Match(
                row=int(self.rows[query, place]),
                person=str(self.people[query, place]),
                camera=str(self.cameras[query, place]),
                similarity=float(self.similarity[query, place]),
                score=float(self.score[query, place]),
                probability=float(self.probability[query, place]),
                decision=str(self.decision[query, place]),
                source=str(self.sources[query, place]),
                timestamp=float(self.timestamps[query, place]),
                visibility=None if self.visibility is None else float(self.visibility[query, place]),
                payload=self.payloads[query, place],
            )
            for place in np.flatnonzero(self.found[query])
        ]

    @classmethod
    def of(
        cls,
        ids: NDArray[np.int64],
        similarity: NDArray[np.float32],
        labels: Rows,
        score: NDArray[np.float32] | None = None,
        *,
        centred: bool = False,
    ) -> Matches:
        """Ids (Q, k) with the labels of those rows, which come in any order and once each."""
        order = np.argsort(labels.ids)
        at = np.where(ids >= 0, np.searchsorted(labels.ids[order], ids), len(labels))
        at = np.append(order, len(labels))[at]

        def pick(column: Any, empty: Any, dtype: Any) -> NDArray:
            values = np.empty(len(labels) + 1, object)
            values[:-1], values[-1] = list(column), empty
            picked = values[at]
            return picked if dtype is object else picked.astype(dtype).reshape(ids.shape)

        return cls(
            rows=ids,
            similarity=similarity,
            score=similarity if score is None else score,
            people=pick(labels.people, "", np.str_),
            cameras=pick(labels.cameras, "", np.str_),
            sources=pick(labels.sources, "", object),
            timestamps=pick(labels.timestamps, np.nan, np.float64),
            visibility=pick(labels.visibility, np.nan, np.float32),
            payloads=pick(labels.payloads, {}, object),
            probability=np.full(ids.shape, np.nan),
            decision=np.full(ids.shape, "", np.str_),
            centred=centred,
        )
