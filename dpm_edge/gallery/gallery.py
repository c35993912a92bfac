"""Whom one has seen: features, masks and labels in memory, saved as one file.

N rows · D feature dimensions · Q queries · k places
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge import tensorfile
from dpm_edge.errors import GalleryError, nearest
from dpm_edge.gallery.matches import Matches
from dpm_edge.gallery.topk import Excluded, top_k
from dpm_edge.metrics import METRICS
from dpm_edge.runtime.embeddings import Embeddings

if TYPE_CHECKING:
    from dpm_edge.runtime.engine import Engine

DTYPES = ("float32", "float16")


class Gallery:
    """Rows of one model's embeddings, each with a person, a camera, a time and a source.

    One thread may add while none searches; any number may search at once.
    """

    def __init__(self, fingerprint: str, dimension: int, dtype: str = "float32") -> None:
        """An empty gallery for embeddings of model `fingerprint`, kept as float32 or (half the memory) float16.

        Raises:
            GalleryError: the dtype is another.
        """
        if dtype not in DTYPES:
            raise GalleryError(f"dtype {dtype!r} is unknown; 'float32' or 'float16' is wanted")
        self.fingerprint = fingerprint
        self.features: NDArray = np.zeros((0, dimension), dtype)
        self.masks: NDArray = np.zeros((0, dimension), dtype)
        self.people: NDArray[np.str_] = np.zeros(0, "<U1")
        self.cameras: NDArray[np.str_] = np.zeros(0, "<U1")
        self.timestamps: NDArray[np.float64] = np.zeros(0, np.float64)
        self.sources: list[str] = []

    @classmethod
    def for_engine(cls, engine: Engine, dtype: str = "float32") -> Gallery:
        """An empty gallery for what this engine embeds."""
        return cls(engine.fingerprint, engine.dimension, dtype)

    def __len__(self) -> int:
        return len(self.features)

    @property
    def dimension(self) -> int:
        """D, the length of a feature and of a mask."""
        return self.features.shape[1]

    def add(
        self,
        embeddings: Embeddings,
        *,
        people: Sequence[Any] | NDArray,
        cameras: Sequence[Any] | NDArray | None = None,
        timestamps: Sequence[float] | NDArray | None = None,
    ) -> None:
        """Append rows; all of them or, when something is wrong, none.

        Args:
            embeddings: n rows of this gallery's model.
            people: n names or ids, kept as text.
            cameras: n names or ids, kept as text; empty without.
            timestamps: n seconds; NaN without.

        Raises:
            GalleryError: the embeddings are another model's, or a label is missing.
        """
        self._check_model(embeddings)
        n = len(embeddings)
        cameras = [""] * n if cameras is None else cameras
        timestamps = [float("nan")] * n if timestamps is None else timestamps
        for name, labels in (("people", people), ("cameras", cameras), ("timestamps", timestamps)):
            if len(labels) != n:
                raise GalleryError(
                    f"{len(labels)} {name} for {n} rows; one each is wanted. Boxes that were skipped have no row: "
                    f"pick labels with embeddings.rows"
                )
        dtype = self.features.dtype
        self.features = np.concatenate([self.features, embeddings.features.astype(dtype)])
        self.masks = np.concatenate([self.masks, embeddings.masks.astype(dtype)])
        self.people = np.concatenate([self.people, _text(people)])
        self.cameras = np.concatenate([self.cameras, _text(cameras)])
        self.timestamps = np.concatenate([self.timestamps, np.asarray(timestamps, np.float64)])
        self.sources += embeddings.sources or [""] * n

    def search(
        self,
        queries: Embeddings,
        k: int = 10,
        *,
        metric: str = "masked",
        camera: Any = None,
        exclude_same_camera: bool = False,
        query_cameras: Sequence[Any] | NDArray | None = None,
    ) -> Matches:
        """The k nearest rows of each query, exactly.

        Args:
            queries: Q rows of this gallery's model.
            k: places; more than there are rows leaves places empty.
            metric: "plain", "masked" (the query's mask acts) or "mutual" (both masks act).
            camera: find only rows of this camera.
            exclude_same_camera: never find a row of the query's own camera; wants `query_cameras`.
            query_cameras: Q names or ids.

        Raises:
            GalleryError: the queries are another model's, k is below 1, the metric is unknown, or cameras are missing.
        """
        self._check_model(queries)
        if metric not in METRICS:
            raise GalleryError(f"metric {metric!r} is unknown.{nearest(metric, METRICS)}")
        if k < 1:
            raise GalleryError(f"k is {k}; 1 or more is wanted")
        own: NDArray[np.str_] | None = None
        if exclude_same_camera:
            if query_cameras is None or len(query_cameras) != len(queries):
                came = "none" if query_cameras is None else len(query_cameras)
                raise GalleryError(f"exclude_same_camera wants query_cameras, {len(queries)} of them; {came} came")
            own = _text(query_cameras)
        rows, similarity = top_k(
            queries.features,
            self.features,
            k,
            metric=metric,
            query_masks=queries.masks,
            target_masks=self.masks,
            excluded=self._excluded(None if camera is None else str(camera), own),
        )
        return Matches(
            rows=rows, similarity=similarity, people=_pick(self.people, rows), cameras=_pick(self.cameras, rows)
        )

    def save(self, path: str | Path) -> None:
        """One file, whole or not at all.

        Raises:
            DpmError: the disk is full or the folder cannot be written; an old file is left as it was.
        """
        tensorfile.save(
            Path(path),
            "gallery",
            {"features": self.features, "masks": self.masks, "timestamps": self.timestamps},
            {"people": self.people.tolist(), "cameras": self.cameras.tolist(), "sources": self.sources},
            {"fingerprint": self.fingerprint},
        )

    @classmethod
    def load(cls, path: str | Path) -> Gallery:
        """What `save` wrote.

        Raises:
            GalleryError: the file is missing, damaged or cut short, or holds something else.
        """
        arrays, labels, facts = tensorfile.load(Path(path), "gallery", GalleryError)
        try:
            features = arrays["features"]
            gallery = cls(facts["fingerprint"], features.shape[1], str(features.dtype))
            gallery.features, gallery.masks, gallery.timestamps = features, arrays["masks"], arrays["timestamps"]
            gallery.people, gallery.cameras = _text(labels["people"]), _text(labels["cameras"])
            gallery.sources = [str(s) for s in labels["sources"]]
        except (KeyError, IndexError) as error:
            raise GalleryError(
                f"{path} lacks something that a gallery has ({error}). Build the gallery again"
            ) from error
        columns = (gallery.masks, gallery.people, gallery.cameras, gallery.timestamps, gallery.sources)
        if any(len(column) != len(features) for column in columns) or gallery.masks.shape != features.shape:
            raise GalleryError(f"{path}: its arrays differ in length. Build the gallery again")
        if not (np.isfinite(features).all() and np.isfinite(gallery.masks).all()):
            raise GalleryError(f"{path} holds NaN or infinity. Build the gallery again")
        return gallery

    def _check_model(self, embeddings: Embeddings) -> None:
        """Refuse embeddings of another model, whose features mean something else."""
        if embeddings.fingerprint != self.fingerprint:
            raise GalleryError(
                f"these embeddings are of model {embeddings.fingerprint[:12]}; this gallery holds model "
                f"{self.fingerprint[:12]}. Embed both with one engine"
            )
        if embeddings.dimension != self.dimension:
            raise GalleryError(f"embeddings have {embeddings.dimension} dimensions; {self.dimension} is wanted")

    def _excluded(self, camera: str | None, own: NDArray[np.str_] | None) -> Excluded:
        """Which (query, row) pairs must not be found."""

        def hide(queries: slice, rows: slice) -> NDArray[np.bool_] | None:
            if camera is None and own is None:
                return None
            here = self.cameras[rows]
            hidden = np.zeros((queries.stop - queries.start, len(here)), bool)
            if camera is not None:
                hidden |= here != camera
            if own is not None:
                hidden |= own[queries][:, None] == here
            return hidden

        return hide


def _text(labels: Sequence[Any] | NDArray) -> NDArray[np.str_]:
    """Names or ids as an array of text."""
    return np.array([str(label) for label in labels], dtype=np.str_) if len(labels) else np.zeros(0, "<U1")


def _pick(labels: NDArray[np.str_], rows: NDArray[np.int64]) -> NDArray[np.str_]:
    """The labels of rows (Q, k); empty text where the row is −1."""
    if not len(labels):
        return np.full(rows.shape, "", "<U1")
    return np.where(rows >= 0, labels[rows], "")
