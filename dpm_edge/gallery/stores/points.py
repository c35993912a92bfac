"""A gallery row as a point: id, payload, named vectors. What Qdrant Edge, Qdrant and Milvus share.

N rows · D feature dimensions
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery.rows import Rows, Where

KEYWORDS = ("person", "camera")
FLOATS = ("time", "visibility")
"""Payload fields that filters use, and which are indexed."""


def payloads(rows: Rows) -> list[dict[str, Any]]:
    """Labels as JSON. What is unknown is left out; the owner's payload is one text, so that it is never parsed."""
    made: list[dict[str, Any]] = [
        {"person": person, "camera": camera, "visibility": visibility}
        for person, camera, visibility in zip(rows.people, rows.cameras, rows.visibility.tolist())
    ]
    for name, texts in (("track", rows.tracks), ("source", rows.sources)):
        for i, text in enumerate(texts):
            if text:
                made[i][name] = text
    for i in np.flatnonzero(~np.isnan(rows.timestamps)).tolist():
        made[i]["time"] = float(rows.timestamps[i])
    for i in np.flatnonzero(~np.isnan(rows.boxes).any(axis=1)).tolist():
        made[i]["box"] = rows.boxes[i].tolist()
    for i, payload in enumerate(rows.payloads):
        if payload:
            made[i]["payload"] = json.dumps(payload, ensure_ascii=False)
    return made


def rows_of(points: list[Any], dimension: int, *, vectors: bool, masks: bool) -> Rows:
    """Points (id, payload, vector) as rows."""
    held = [point.payload or {} for point in points]
    return Rows(
        ids=np.array([point.id for point in points], np.int64),
        features=vectors_of(points, "feature", dimension) if vectors else None,
        masks=vectors_of(points, "mask", dimension) if vectors and masks else None,
        people=[one.get("person", "") for one in held],
        tracks=[one.get("track", "") for one in held],
        cameras=[one.get("camera", "") for one in held],
        timestamps=np.array([one.get("time", np.nan) for one in held], np.float64),
        visibility=np.array([one.get("visibility", np.nan) for one in held], np.float32),
        boxes=np.array([one.get("box", [np.nan] * 4) for one in held], np.float32).reshape(-1, 4),
        sources=[one.get("source", "") for one in held],
        payloads=[json.loads(one["payload"]) if "payload" in one else {} for one in held],
    )


def vectors_of(points: list[Any], name: str, dimension: int) -> NDArray[np.float32]:
    """(N, D) float32 out of points' named vectors."""
    return np.array([point.vector[name] for point in points], np.float32).reshape(-1, dimension)


def filter_of(where: Where, models: Any) -> Any:
    """A filter in the classes of `models` (qdrant_edge or qdrant_client.models); None where everything fits."""
    if where.everything:
        return None
    ranged = getattr(models, "RangeFloat", None) or models.Range
    must = []
    if where.cameras is not None:
        must.append(models.FieldCondition(key="camera", match=models.MatchAny(any=list(where.cameras))))
    if where.people is not None:
        must.append(models.FieldCondition(key="person", match=models.MatchAny(any=list(where.people))))
    if where.since is not None or where.until is not None:
        must.append(models.FieldCondition(key="time", range=ranged(gte=where.since, lt=where.until)))
    if where.min_visibility is not None:
        least = float(np.float32(where.min_visibility))
        must.append(models.FieldCondition(key="visibility", range=ranged(gte=least)))
    hidden = []
    if where.not_camera is not None:
        hidden.append(models.FieldCondition(key="camera", match=models.MatchValue(value=where.not_camera)))
    return models.Filter(must=must or None, must_not=hidden or None)
