"""An engine in the place of other trackers' own appearance models: DeepSORT, BoxMOT, ultralytics, norfair.

Each takes the shape that its tracker calls (by duck typing): nothing of these libraries is imported here, and BoxMOT's
and ultralytics' AGPL code is a user's own choice. n boxes · D feature dimensions
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import SpecError
from dpm_edge.interop.frame_embeddings import as_numpy, embed_boxes
from dpm_edge.metrics import chosen_metric, similarity
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.engine import Engine


class DeepSortEmbedder:
    """The embedder of deep-sort-realtime: `tracker = DeepSort(embedder=None)`, then `tracker.embedder = …` this."""

    def __init__(self, engine: Engine) -> None:
        """The engine stays yours to close."""
        self._engine = engine

    def predict(self, np_images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Features (D,) of norm 1 of crops (H, W, 3) uint8 BGR; zeros for a crop without a pixel."""
        features = np.zeros((len(np_images), self._engine.dimension), np.float32)
        whole = [i for i, image in enumerate(np_images) if getattr(image, "size", 0)]
        if whole:
            found = self._engine.embed([np.ascontiguousarray(np_images[i]) for i in whole])
            features[np.array(whole)[found.rows]] = found.features
        return list(features)


class BoxmotReid:
    """BoxMOT's appearance model: `BotSort(reid_model=BoxmotReid(engine))`; in older versions `tracker.model = …`."""

    def __init__(self, engine: Engine) -> None:
        """The engine stays yours to close."""
        self._engine = engine

    def get_features(self, xyxys: Any, img: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Features (n, D) float32 of norm 1 of the boxes (n, 4) in a BGR frame; zeros for a box outside it."""
        return embed_boxes(self._engine, img, xyxys)[0]

    def warmup(self, imgsz: Any = None) -> None:
        """Nothing: an engine ran its golden crop when it was opened."""


class UltralyticsEncoder:
    """The encoder of ultralytics' BoT-SORT: `use_in_ultralytics(tracker, engine)` puts it there."""

    def __init__(self, engine: Engine) -> None:
        """The engine stays yours to close."""
        self._engine = engine

    def __call__(self, img: NDArray[np.uint8], dets: Any) -> list[NDArray[np.float32]]:
        """Features (D,) of boxes (n, 4 or more), centre x, centre y, width, height in a BGR frame.

        A box outside the frame gets a constant of norm 1: the tracker divides by norms.
        """
        x, y, w, h = as_numpy(dets).reshape(len(dets), -1)[:, :4].T
        features, found = embed_boxes(self._engine, img, np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], axis=1))
        missing = np.ones(len(features), bool)
        missing[found.rows] = False
        features[missing] = 1 / np.sqrt(self._engine.dimension)
        return list(features)

    inference = __call__
    """The name of the call in ultralytics before 8.3.114."""


def use_in_ultralytics(tracker: Any, engine: Engine) -> None:
    """Let a BoT-SORT of ultralytics compare people by this engine.

    Args:
        tracker: a `BOTSORT`, or a predictor with `trackers`, such as a callback `on_predict_batch_start` gets: at
            `on_predict_start` there are none yet. A second call changes nothing.
        engine: stays yours to close.

    Raises:
        SpecError: the tracker has no encoder, as ByteTrack has none.
    """
    for one in getattr(tracker, "trackers", [tracker]):
        if not hasattr(one, "args") or not (hasattr(one, "encoder") or hasattr(one, "appearance_thresh")):
            raise SpecError(
                f"expected a tracker of ultralytics with an encoder, such as BOTSORT, got {type(one).__name__}. Use "
                "tracker='botsort.yaml'"
            )
        if isinstance(getattr(one, "encoder", None), UltralyticsEncoder):
            continue
        one.encoder, one.args.with_reid, one.args.model = UltralyticsEncoder(engine), True, "dpm-edge"


def embed_results(
    engine: Engine, results: Any, *, classes: Sequence[int] = (0,), least_confidence: float = 0.0
) -> tuple[Embeddings, NDArray[np.int64]]:
    """Embed the people of one ultralytics `Results`.

    Args:
        engine: any engine.
        results: of one frame: `orig_img` and `boxes` with xyxy, conf, cls and, after `track`, id.
        classes: class ids; 0 is COCO's person.
        least_confidence: of a detection.

    Returns:
        The embeddings, `rows` counting through `results.boxes`; and the track id of each embedded row, −1 without.
    """
    boxes = results.boxes
    keep = np.isin(as_numpy(boxes.cls), list(classes)) & (as_numpy(boxes.conf) >= least_confidence)
    which = np.flatnonzero(keep)
    found = embed_boxes(engine, results.orig_img, as_numpy(boxes.xyxy).reshape(-1, 4)[which])[1]
    rows = which[found.rows]
    ids = np.full(len(keep), -1) if boxes.id is None else as_numpy(boxes.id).astype(np.int64)
    object.__setattr__(found, "rows", rows)
    return found, ids[rows].astype(np.int64)


class NorfairDistance:
    """norfair's `reid_distance_function`: 1 − the similarity of two tracked objects, under masks where there are some.

    Detections carry an `Embeddings` of one row as their `embedding` (`norfair_embeddings`).
    """

    def __init__(self, metric: str | None = None) -> None:
        """metric: as `Gallery.search` takes it."""
        self._metric = metric

    def __call__(self, matched_not_init_trackers: Any, unmatched_trackers: Any) -> float:
        """The distance of a new tracked object and a lost one; 2, farther than any, where one has no embedding."""
        new = _known([matched_not_init_trackers.last_detection])
        lost = _known([unmatched_trackers.last_detection, *unmatched_trackers.past_detections])
        if not new or not lost:
            return 2.0
        query, target = new[0], Embeddings.join(lost)
        s = similarity(
            query.features, target.features, metric=chosen_metric(self._metric, query.has_masks),
            query_masks=query.masks, target_masks=target.masks,
        )  # fmt: skip
        return float(1 - s.max())


def norfair_embeddings(engine: Engine, frame: Any, boxes: Any) -> list[Embeddings | None]:
    """One row of embeddings for each box (n, 4) of a BGR frame, None for one outside it: `Detection(embedding=…)`."""
    found = embed_boxes(engine, frame, boxes)[1]
    made: list[Embeddings | None] = [None] * len(boxes)
    for row, one in zip(found.rows, found.each()):
        made[row] = one
    return made


def _known(detections: Sequence[Any]) -> list[Embeddings]:
    return [one.embedding for one in detections if isinstance(getattr(one, "embedding", None), Embeddings)]
