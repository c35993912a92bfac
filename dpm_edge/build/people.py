"""Whom an engine with closed-set logits tells apart: one prototype a person, from a gallery.

C people · D feature dimensions
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import SpecError
from dpm_edge.files import write_whole
from dpm_edge.gallery import Gallery
from dpm_edge.gallery.search.prototypes import prototypes
from dpm_edge.manifest import PEOPLE
from dpm_edge.runtime.embeddings import Embeddings


@dataclass(frozen=True)
class ClosedSet:
    """Names and prototypes, one row a person."""

    source: Path
    """The gallery that they come from."""
    names: list[str]
    prototypes: NDArray[np.float32]
    """(C, D), each of norm 1."""

    def write_names(self, folder: Path) -> None:
        """Write people.json: the names in the order of the logits."""
        write_whole(folder / PEOPLE, (json.dumps(self.names, ensure_ascii=False, indent=1) + "\n").encode())


def read_closed_set(path: Path, fingerprint: str) -> ClosedSet:
    """Read the people of a gallery, each dimension averaged over those pictures that show it.

    Args:
        path: a gallery that `dpm-edge gallery` wrote: a saved file, or a folder.
        fingerprint: of the model that the engine is built from.

    Raises:
        GalleryError: there is no gallery, or it is damaged.
        SpecError: the gallery is of another model, or holds nobody with a name.
    """
    with Gallery.open(path) as gallery:
        if gallery.fingerprint != fingerprint:
            raise SpecError(
                f"expected a gallery of model {fingerprint[:16]}, which the engine is built from, got {path} of model "
                f"{gallery.fingerprint[:16]}. Embed its pictures with this model"
            )
        rows = gallery.rows()
    named = np.array([i for i, name in enumerate(rows.people) if name], np.int64)
    if not len(named) or rows.features is None:
        raise SpecError(
            f"expected a gallery of people with names, got {path}, where nobody has one. Add rows with people"
        )
    embeddings = Embeddings(
        features=rows.features[named],
        masks=np.ones_like(rows.features[named]) if rows.masks is None else rows.masks[named],
        visibility=rows.visibility[named],
        rows=named,
        fingerprint=fingerprint,
    )
    made, names = prototypes(embeddings, [rows.people[i] for i in named], [rows.cameras[i] for i in named])
    return ClosedSet(path, names, made.features)
