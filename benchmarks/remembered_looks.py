"""Detections and embeddings of a video, kept in a file: after a change of what follows, a run takes a minute."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.files import write_whole


def _key(*arrays: NDArray) -> str:
    """Of the values and shapes of arrays."""
    digest = hashlib.blake2b(digest_size=16)
    for one in arrays:
        digest.update(f"{one.shape} {one.dtype} ".encode() + np.ascontiguousarray(one).tobytes())
    return digest.hexdigest()


class RememberedLooks:
    """A detector and an engine that are asked once for each picture and box, over all runs that use a file.

    Give the file to nobody and take none: it is a pickle. Another detector needs another file.
    """

    def __init__(self, engine: Any, find: Any, place: Path | None) -> None:
        """Around both; without a place everything is asked."""
        self.fingerprint, self.dimension, self.spec = engine.fingerprint, engine.dimension, engine.spec
        self._engine, self._find, self._place = engine, find, place
        self._kept: dict[str, Any] = {}
        if place is not None and place.exists():
            self._kept = pickle.loads(place.read_bytes())
        self._before = len(self._kept)

    def find(self, image: NDArray[np.uint8]) -> Any:
        """What the detector finds on a picture."""
        return self._of(lambda: "boxes " + _key(image), lambda: self._find(image))

    def embed(self, image: NDArray[np.uint8], boxes: NDArray) -> Any:
        """What the engine makes of boxes of a picture."""
        return self._of(lambda: f"{self.fingerprint} {_key(image, boxes)}", lambda: self._engine.embed(image, boxes))

    def save(self) -> None:
        """Write what is new."""
        if self._place is not None and len(self._kept) > self._before:
            write_whole(self._place, pickle.dumps(self._kept))

    def _of(self, name: Any, make: Any) -> Any:
        if self._place is None:
            return make()
        key = name()
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]
