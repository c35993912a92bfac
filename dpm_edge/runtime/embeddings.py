"""What an engine makes of crops: embeddings, and of a closed set also how much each resembles each person.

N rows that could be embedded · D feature dimensions · C people of a closed set
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge import tensorfile
from dpm_edge.errors import EmbeddingsError, MissingLibrary


@dataclass(frozen=True, kw_only=True, eq=False)
class Embeddings:
    """Features and masks of N crops of one model.

    Raises:
        EmbeddingsError: on construction, when the arrays differ in length, or hold NaN or infinity.
    """

    features: NDArray[np.float32]
    """(N, D) float32, L2-normalised."""
    masks: NDArray[np.float32]
    """(N, D) float32 in 0..1: one gate per feature dimension."""
    visibility: NDArray[np.float32] | None
    """(N,) float32: the share of the person inside the crop that is in sight, 0..1, of a model that has a map of what
    is seen; of another, the mean of a crop's mask over the model's mean mask: 1 is an average crop. None of a model
    without masks (another project's network), which says nothing about it; its masks are all ones."""
    rows: NDArray[np.int64]
    """(N,) int64: which input each row came from."""
    fingerprint: str
    """The model that made them; embeddings of two models cannot be compared."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """(input row, reason) of each input that could not be embedded."""
    sources: list[str] = field(default_factory=list)
    """Where each row came from, such as a file name; empty where nobody said."""
    visibility_map: NDArray[np.float32] | None = None
    """(N, h, w) float32 in 0..1: how much of each patch of a crop shows the person; None without a map. Not kept in
    files."""

    def __post_init__(self) -> None:
        features = np.asarray(self.features, np.float32)
        object.__setattr__(self, "features", features)
        object.__setattr__(self, "masks", np.asarray(self.masks, np.float32))
        if self.visibility is not None:
            object.__setattr__(self, "visibility", np.asarray(self.visibility, np.float32))
        object.__setattr__(self, "rows", np.asarray(self.rows, np.int64))
        if features.ndim != 2:
            raise EmbeddingsError(f"expected features (N, D), got {features.shape}")
        shapes = {"masks": features.shape, "visibility": features.shape[:1], "rows": features.shape[:1]}
        for name, shape in shapes.items():
            value = getattr(self, name)
            if value is not None and value.shape != shape:
                raise EmbeddingsError(f"expected {name} {shape}, as the features are, got {value.shape}")
        if self.sources and len(self.sources) != len(features):
            raise EmbeddingsError(f"expected a source for each of {len(features)} rows, got {len(self.sources)}")
        bad = ~(np.isfinite(features).all(1) & np.isfinite(self.masks).all(1) & np.isfinite(self.weight))
        if bad.any():
            raise EmbeddingsError(
                f"expected finite numbers, got NaN or infinity in rows {np.flatnonzero(bad)[:8].tolist()}"
            )

    def __len__(self) -> int:
        return len(self.features)

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"Embeddings({len(self)} × {self.dimension}, model {self.fingerprint[:8]}…{skipped})"

    @property
    def dimension(self) -> int:
        """D, the length of a feature and of a mask."""
        return self.features.shape[1]

    @property
    def has_masks(self) -> bool:
        """Whether the model has masks and a visibility; another project's network has neither."""
        return self.visibility is not None

    @property
    def weight(self) -> NDArray[np.float32]:
        """(N,) float32: how much each row counts in a mean: its visibility, or 1 where the model has none."""
        return np.ones(len(self.features), np.float32) if self.visibility is None else self.visibility

    def take(self, which: NDArray | Sequence[int] | slice) -> Embeddings:
        """Some of the rows, by index, slice or boolean mask; `rows` still point at the inputs."""
        chosen = np.arange(len(self))[which]
        return Embeddings(
            features=self.features[chosen],
            masks=self.masks[chosen],
            visibility=None if self.visibility is None else self.visibility[chosen],
            rows=self.rows[chosen],
            fingerprint=self.fingerprint,
            sources=[self.sources[i] for i in chosen] if self.sources else [],
            visibility_map=None if self.visibility_map is None else self.visibility_map[chosen],
        )

    def each(self) -> list[Embeddings]:
        """Every row as a set of its own, in order: views of these arrays, which are not checked again."""
        parts = []
        for i in range(len(self)):
            one, row = object.__new__(Embeddings), slice(i, i + 1)
            one.__dict__.update(
                features=self.features[row],
                masks=self.masks[row],
                visibility=None if self.visibility is None else self.visibility[row],
                rows=self.rows[row],
                fingerprint=self.fingerprint,
                skipped=[],
                sources=self.sources[row],
                visibility_map=None if self.visibility_map is None else self.visibility_map[row],
            )
            parts.append(one)
        return parts

    @classmethod
    def join(cls, parts: Sequence[Embeddings]) -> Embeddings:
        """One set out of several, in order; `rows` and skipped rows are kept as each part numbered them.

        Raises:
            EmbeddingsError: there is no part, or they are of different models.
        """
        if not parts:
            raise EmbeddingsError("expected one set of embeddings or more to join, got none")
        if len({p.fingerprint for p in parts}) > 1:
            raise EmbeddingsError(
                "expected embeddings of one model, got those of several. Embed all of it with one engine"
            )
        return cls(
            features=np.concatenate([p.features for p in parts]),
            masks=np.concatenate([p.masks for p in parts]),
            visibility=_joined([p.visibility for p in parts]),
            rows=np.concatenate([p.rows for p in parts]),
            fingerprint=parts[0].fingerprint,
            skipped=[s for p in parts for s in p.skipped],
            sources=[s for p in parts for s in p.sources],
            visibility_map=_joined([p.visibility_map for p in parts]),
        )

    def save(self, path: str | Path) -> None:
        """One file, whole or not at all: .safetensors, or .parquet (needs pyarrow, the extra `parquet`).

        Raises:
            DpmError: the disk is full or the folder cannot be written; an old file is left as it was.
            MissingLibrary: .parquet without pyarrow.
        """
        path = Path(path)
        if path.suffix == ".parquet":
            return self._save_parquet(path)
        visibility = {} if self.visibility is None else {"visibility": self.visibility}
        tensorfile.save(
            path,
            "embeddings",
            {"features": self.features, "masks": self.masks, **visibility, "rows": self.rows},
            {"sources": self.sources, "skipped": self.skipped},
            {"fingerprint": self.fingerprint},
        )
        return None

    @classmethod
    def load(cls, path: str | Path) -> Embeddings:
        """What `save` wrote as .safetensors.

        Raises:
            EmbeddingsError: the file is missing, damaged, or holds something else.
        """
        if Path(path).suffix == ".parquet":
            raise EmbeddingsError(
                f"expected a .safetensors file, got {path}: parquet is for other programs. Embed to .safetensors"
            )
        arrays, labels, facts = tensorfile.load(Path(path), "embeddings", EmbeddingsError)
        columns: dict[str, Any] = {"visibility": None, **arrays}  # a model without masks has none
        try:
            return cls(
                **columns,
                fingerprint=facts["fingerprint"],
                skipped=[(int(row), str(reason)) for row, reason in labels["skipped"]],
                sources=labels["sources"],
            )
        except (TypeError, KeyError, ValueError) as error:
            raise EmbeddingsError(f"{path} lacks something that embeddings have ({error}). Embed again") from error

    def _save_parquet(self, path: Path) -> None:
        """Columns source, row, visibility, feature and mask (lists of float32); the fingerprint as metadata."""
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise MissingLibrary("pyarrow", "writing .parquet", "pip install 'dpm-edge[parquet]'") from error
        from dpm_edge.files import write_whole

        def lists(array: NDArray) -> pyarrow.Array:
            return pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(array.ravel()), self.dimension)

        table = pyarrow.table(
            {
                "source": pyarrow.array(self.sources or [""] * len(self), pyarrow.string()),
                "row": self.rows,
                "visibility": pyarrow.nulls(len(self), pyarrow.float32())
                if self.visibility is None
                else self.visibility,
                "feature": lists(self.features),
                "mask": lists(self.masks),
            }
        ).replace_schema_metadata({"fingerprint": self.fingerprint})
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(table, sink)
        write_whole(path, sink.getvalue().to_pybytes())


@dataclass(frozen=True, kw_only=True, eq=False)
class Identified:
    """What an engine of a closed set says of N crops: their logits over C people."""

    people: tuple[str, ...]
    """C names."""
    logits: NDArray[np.float32]
    """(N, C) float32: masked similarity with each person's prototype."""
    rows: NDArray[np.int64]
    """(N,) int64: which input each row came from."""
    skipped: list[tuple[int, str]] = field(default_factory=list)
    """(input row, reason) of each input that could not be used."""

    def __repr__(self) -> str:
        skipped = f", {len(self.skipped)} skipped" if self.skipped else ""
        return f"Identified({len(self.rows)} crops of {len(self.people)} people{skipped})"

    @property
    def best(self) -> list[str]:
        """The likeliest person of each crop."""
        return [self.people[i] for i in self.logits.argmax(axis=1)]


def _joined(arrays: Sequence[NDArray[np.float32] | None]) -> NDArray[np.float32] | None:
    """All arrays, one after the other; None where a part has none."""
    known = [one for one in arrays if one is not None]
    return np.concatenate(known) if len(known) == len(arrays) else None
