"""Camera centring: what all features of one camera have in common is taken off them before they are compared.

A camera's light, angle and lens move all of its features one way. With μ_c the mean feature of camera c,

    f̃ = (f − μ_c) / ‖f − μ_c‖

for rows and queries of c; every metric then acts on f̃. While a camera has few features its mean is shrunk toward the
mean of the whole site: μ_c = (Σ f + κ·μ_site) / (n + κ). Source of the idea: camera bias of re-identification
features and its removal (ICLR 2025); the shrinking is ours.

N features · D dimensions
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import EmbeddingsError
from dpm_edge.files import write_whole
from dpm_edge.metrics import EPSILON, normalise

SHRINK = 20.0
"""κ: a camera's mean counts as much as the site's once it has so many features."""
PIECE = 256
"""Features that are centred at a time, so that what that needs beside them stays in the processor's cache."""
FORMAT = 1


@dataclass(kw_only=True)
class CameraStatistics:
    """How many features each camera has shown, and their sum. Adding and removing is exact.

    Raises:
        EmbeddingsError: on construction, when the sums have another dimension.
    """

    fingerprint: str
    """The model whose features these are."""
    dimension: int
    """D."""
    shrink: float = SHRINK
    """κ, a number of features."""
    counts: dict[str, int] = field(default_factory=dict)
    """Features by camera. The camera "" is that of features whose camera is unknown."""
    sums: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """(D,) float64 by camera: the sum of its L2-normalised features."""
    _means: dict[str, NDArray[np.float64]] = field(default_factory=dict, init=False, repr=False, compare=False)
    """What `mean` has given since the last change: a search asks for the same few again and again."""

    def __post_init__(self) -> None:
        for camera, total in self.sums.items():
            if np.shape(total) != (self.dimension,):
                raise EmbeddingsError(
                    f"expected a sum of {self.dimension} dimensions for camera {camera!r}, got {np.shape(total)}"
                )

    def add(self, features: NDArray, cameras: Sequence[str], *, sign: int = 1) -> None:
        """Count features (N, D) of N cameras; `sign` −1 takes them off again."""
        self._means.clear()
        exact = np.asarray(features, np.float64)
        places = {camera: at for at, camera in enumerate(sorted({str(camera) for camera in cameras}))}
        where = np.array([places[str(camera)] for camera in cameras], np.int64)
        weight = np.zeros((len(places), len(exact)))  # one product sums and normalises without a copy of the features
        weight[where, np.arange(len(exact))] = 1 / np.sqrt(np.einsum("nd,nd->n", exact, exact).clip(min=EPSILON))
        totals, counts = weight @ exact, np.bincount(where, minlength=len(places))
        for camera, at in places.items():
            left = self.counts.get(camera, 0) + sign * int(counts[at])
            if left > 0:
                self.counts[camera] = left
                self.sums[camera] = self.sums.get(camera, np.zeros(self.dimension)) + sign * totals[at]
            else:
                self.counts.pop(camera, None)
                self.sums.pop(camera, None)

    def mean(self, camera: str) -> NDArray[np.float64]:
        """μ_c (D,) of one camera, shrunk toward the site's mean; the site's mean for a camera never seen."""
        if camera not in self._means:
            self._means[camera] = self._mean(camera)
        return self._means[camera]

    def _mean(self, camera: str) -> NDArray[np.float64]:
        total = sum(self.counts.values())
        if not total:
            return np.zeros(self.dimension)
        count = self.counts.get(camera, 0)
        if not count or not camera:
            return np.sum(list(self.sums.values()), axis=0) / total
        return (self.sums[camera] + self.shrink * self.mean("")) / (count + self.shrink)

    def means(self, cameras: Sequence[str]) -> NDArray[np.float64]:
        """μ_c (C, D) of C cameras, each as `mean` gives it."""
        return np.stack([self.mean(camera) for camera in cameras]) if cameras else np.zeros((0, self.dimension))

    def centre(self, features: NDArray, cameras: Sequence[str]) -> NDArray[np.float32]:
        """f̃ (N, D) float32, L2-normalised, of features (N, D) of N cameras."""
        out = np.empty(np.shape(features), np.float32)
        for part, moved in self._moved(features, cameras):
            out[part] = normalise(moved)
        return out

    def directions(self, features: NDArray, cameras: Sequence[str]) -> NDArray[np.float32]:
        """As `centre`, of any length: enough for metrics, which do not see a row's length, at a fifth of the work."""
        out = np.empty(np.shape(features), np.float32)
        for part, moved in self._moved(features, cameras):
            out[part] = moved
        return out

    def _moved(self, features: NDArray, cameras: Sequence[str]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """f − ‖f‖·μ_c of each feature, which is f̃ times a number, in pieces."""
        names = sorted({str(camera) for camera in cameras})
        places, means = {camera: at for at, camera in enumerate(names)}, self.means(names)
        where = np.array([places[str(camera)] for camera in cameras], np.int64)
        for start in range(0, len(where), PIECE):
            part = slice(start, start + PIECE)
            moved = np.array(features[part], np.float64)
            off = means[where[part]]
            off *= np.sqrt(np.einsum("nd,nd->n", moved, moved))[:, None]
            moved -= off
            yield part, moved

    def joined(self, other: CameraStatistics | None) -> CameraStatistics:
        """Return new statistics of the features of both; of these alone without another. κ is this one's."""
        both = CameraStatistics(
            fingerprint=self.fingerprint, dimension=self.dimension, shrink=self.shrink,
            counts=dict(self.counts), sums={camera: total.copy() for camera, total in self.sums.items()},
        )  # fmt: skip
        for camera, count in ({} if other is None else other.counts).items():
            assert other is not None, "it has counts"
            both.counts[camera] = both.counts.get(camera, 0) + count
            both.sums[camera] = both.sums.get(camera, 0) + other.sums[camera]
        return both

    def require_model(self, fingerprint: str, dimension: int) -> None:
        """Refuse another model's features.

        Raises:
            EmbeddingsError: these statistics are of another model or dimension.
        """
        if (self.fingerprint, self.dimension) != (fingerprint, dimension):
            raise EmbeddingsError(
                f"expected camera statistics of model {fingerprint[:12]} with {dimension} dimensions, got those of "
                f"model {self.fingerprint[:12]} with {self.dimension}. Make them with this model: `dpm-edge adapt` "
                "writes cameras.json beside its checkpoint, `Gallery.camera_statistics().save` those of a gallery"
            )

    def save(self, path: str | Path) -> None:
        """Write one JSON file, whole or not at all.

        Raises:
            DpmError: the disk is full or the folder cannot be written.
        """
        write_whole(Path(path), (json.dumps(self.to_json()) + "\n").encode())

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON types; `of_json` takes it."""
        return {
            "format": FORMAT,
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "shrink": self.shrink,
            "cameras": {c: {"count": n, "sum": self.sums[c].tolist()} for c, n in sorted(self.counts.items())},
        }

    @classmethod
    def load(cls, path: str | Path) -> CameraStatistics:
        """What `save` wrote.

        Raises:
            EmbeddingsError: the file is missing, damaged, of a newer version, or something else.
        """
        try:
            return cls.of_json(json.loads(Path(path).read_text(encoding="utf-8")), str(path))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise EmbeddingsError(f"expected camera statistics in {path}, got something else ({error})") from error

    @classmethod
    def of_json(cls, kept: dict[str, Any], place: str) -> CameraStatistics:
        """What `to_json` gave, and which `place` holds.

        Raises:
            EmbeddingsError: it is of a newer version.
            ValueError, KeyError, TypeError, AttributeError: it is something else.
        """
        if kept["format"] > FORMAT:
            raise EmbeddingsError(
                f"expected format {FORMAT} or older in {place}, got {kept['format']}: upgrade dpm-edge"
            )
        cameras: Mapping[str, dict] = kept["cameras"]
        return cls(
            fingerprint=kept["fingerprint"],
            dimension=int(kept["dimension"]),
            shrink=float(kept["shrink"]),
            counts={camera: int(one["count"]) for camera, one in cameras.items()},
            sums={camera: np.array(one["sum"], np.float64) for camera, one in cameras.items()},
        )
