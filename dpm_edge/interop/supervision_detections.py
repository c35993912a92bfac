"""`supervision.Detections` in and out: which people stand where, their embeddings, and who they are.

supervision is imported by the functions that make a Detections, and is no dependency. n detections · D dimensions
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.boxes import FrameBoxes
from dpm_edge.errors import MissingLibrary
from dpm_edge.gallery.matches import Matches
from dpm_edge.interop.frame_embeddings import embed_boxes
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.engine import Engine

FEATURE, EMBEDDED, PERSON, SIMILARITY = "reid_feature", "reid_embedded", "person", "similarity"
"""Keys that are added to `Detections.data`."""


def wanted(
    detections: Any, *, classes: Collection[int] | None = None, least_confidence: float = 0.0
) -> NDArray[np.bool_]:
    """Which detections are of these classes and at least this sure, (n,) bool; use it as an index of `detections`.

    classes: class ids; None: all. A detection without a class or a confidence passes.
    """
    keep = np.ones(len(detections), bool)
    if classes is not None and detections.class_id is not None:
        keep &= np.isin(detections.class_id, list(classes))
    if detections.confidence is not None:
        keep &= np.asarray(detections.confidence) >= least_confidence
    return keep


def embed_detections(engine: Engine, frame: Any, detections: Any, *, color: str = "bgr") -> tuple[Any, Embeddings]:
    """Embed the detections of a frame.

    Returns:
        A copy of the detections whose `data` holds FEATURE (n, D) float32, zeros where a box lies outside the frame,
        and EMBEDDED (n,) bool, which says so; and the embeddings, for a gallery.

    Raises:
        ImageError: the frame is no picture.
        EngineError: the engine is closed.
    """
    features, found = embed_boxes(engine, frame, detections.xyxy, color=color)
    embedded = np.zeros(len(detections), bool)
    embedded[found.rows] = True
    return _with_data(detections, {FEATURE: features, EMBEDDED: embedded}), found


def name_detections(detections: Any, embeddings: Embeddings, matches: Matches) -> Any:
    """A copy of the detections whose `data` says who each one is: PERSON and SIMILARITY of its first match.

    Args:
        detections: those that were embedded, in the same order.
        embeddings: of `embed_detections`.
        matches: what a gallery answered to these embeddings; with a calibration only "same" counts.
    """
    names = np.full(len(detections), "", dtype=object)
    similarity = np.full(len(detections), np.nan, np.float32)
    for i, row in enumerate(embeddings.rows):
        first = matches.of_query(i)[:1]
        if first and first[0].decision in ("", "same"):
            names[row], similarity[row] = first[0].person, first[0].similarity
    return _with_data(detections, {PERSON: names.astype(str), SIMILARITY: similarity})


def to_detections(boxes: FrameBoxes, *, class_id: int = 0) -> Any:
    """A frame of a boxes file as Detections: ids become tracker ids where all of them are whole numbers.

    Raises:
        MissingLibrary: supervision is not installed.
    """
    library = _supervision()
    numbered = all(text.lstrip("-").isdecimal() for text in boxes.ids)
    return library.Detections(
        xyxy=boxes.boxes.astype(np.float32),
        class_id=np.full(len(boxes.ids), class_id),
        tracker_id=np.array([int(text) for text in boxes.ids], int) if numbered else None,
    )


def from_detections(detections: Any) -> FrameBoxes:
    """A frame's Detections as boxes with ids; a detection without a tracker id is called by its place."""
    ids = range(len(detections)) if detections.tracker_id is None else detections.tracker_id
    return FrameBoxes([str(one) for one in ids], np.asarray(detections.xyxy, np.float64))


def _with_data(detections: Any, data: dict[str, NDArray]) -> Any:
    made = detections[np.arange(len(detections))]
    made.data = {**detections.data, **data}
    return made


def _supervision() -> Any:
    try:
        import supervision
    except ImportError as error:
        raise MissingLibrary("supervision", "Detections", "pip install supervision") from error
    return supervision
