"""Embed picture files: a file that cannot be read is reported by row, the rest is done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import ImageError
from dpm_edge.images import chunks, path_text, read_image
from dpm_edge.manifest import BatchRange
from dpm_edge.progress import track
from dpm_edge.runtime.embeddings import Embeddings


class Embedder(Protocol):
    """Anything that embeds pictures: an open `Engine`, or a network in torch."""

    @property
    def batch(self) -> BatchRange:
        """Crops in one call."""

    def embed(self, images: Sequence[NDArray[np.uint8]]) -> Embeddings:
        """Pictures (H, W, 3) uint8 BGR in, one row each out."""


def embed_files(engine: Embedder, paths: Sequence[Path], *, quiet: bool = False) -> Embeddings:
    """One row for each file that can be read, in order; `rows` count through `paths`, `sources` are the paths as text.

    Files are decoded one batch ahead, on another thread than the engine's.
    """
    parts = []
    batches = list(chunks(len(paths), max(engine.batch.best, 8)))
    with ThreadPoolExecutor(1) as reader:
        for part, read in track(_ahead(reader, batches, paths), what="embedding", total=len(batches), quiet=quiet):
            good = [row for row, image in enumerate(read) if not isinstance(image, str)]
            found = engine.embed([image for image in read if not isinstance(image, str)])
            rows = np.array(good, np.int64) + part.start
            parts.append(
                Embeddings(
                    features=found.features,
                    masks=found.masks,
                    visibility=found.visibility,
                    rows=rows,
                    fingerprint=found.fingerprint,
                    skipped=[(part.start + row, image) for row, image in enumerate(read) if isinstance(image, str)],
                    sources=[path_text(paths[row]) for row in rows],
                )
            )
    return Embeddings.join(parts) if parts else engine.embed([])


def _ahead(
    reader: ThreadPoolExecutor, batches: list[slice], paths: Sequence[Path]
) -> Iterator[tuple[slice, list[NDArray[np.uint8] | str]]]:
    """Each batch with its pictures (or why there is none), while the reader already works on the next."""
    waiting = None
    for batch in [*batches, None]:
        following = (batch, reader.submit(_read, paths[batch])) if batch is not None else None
        if waiting is not None:
            yield waiting[0], waiting[1].result()
        waiting = following


def _read(paths: Sequence[Path]) -> list[NDArray[np.uint8] | str]:
    """Each picture, or the reason why it cannot be read."""
    read: list[NDArray[np.uint8] | str] = []
    for path in paths:
        try:
            read.append(read_image(path))
        except ImageError as error:
            read.append(str(error))
    return read
