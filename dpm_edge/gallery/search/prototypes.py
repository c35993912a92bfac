"""From pictures to people: one prototype a person.

N rows · D feature dimensions · C people
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dpm_edge.centring import CameraStatistics
from dpm_edge.gallery.labels import column, label_column
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.stores.store import Store
from dpm_edge.metrics import normalise
from dpm_edge.runtime.embeddings import Embeddings


def prototypes(
    embeddings: Embeddings, people: Sequence[str], cameras: Sequence[str] | None = None, *, cap: int = 8
) -> tuple[Embeddings, list[str]]:
    """One row a person: every feature dimension averaged over those pictures that show it.

    Each picture weighs by its visibility (times a quality, if the caller has one) and, dimension by dimension, by its
    mask; the prototype's mask is the mean mask. Of each person and camera the `cap` of the highest weight count, so
    that a camera where somebody stood for an hour does not drown the others. Pictures of nobody known ("", None, NaN)
    are left out.

    Returns:
        C rows, whose `rows` count the pictures that each one holds, and their names, sorted.

    Raises:
        GalleryError: people or cameras are not one for each row.
    """
    n = len(embeddings)
    names = label_column(column(people, n, "people"), n, "people")
    places = label_column(cameras, n, "cameras")
    chosen = np.array([i for i in clearest(names, places, embeddings.weight, cap) if names[i]], np.int64)
    owner = np.array([names[i] for i in chosen], object)
    features, masks, visibility, counts = [], [], [], []
    persons = sorted(set(names) - {""})
    for person in persons:
        here = chosen[owner == person]
        weight = np.maximum(embeddings.weight[here], 1e-3)[:, None]
        gate = weight * np.maximum(embeddings.masks[here], 1e-6)
        features.append((gate * embeddings.features[here]).sum(0) / gate.sum(0))
        masks.append((weight * embeddings.masks[here]).sum(0) / weight.sum())
        visibility.append(float(embeddings.weight[here].max()))
        counts.append(len(here))
    shape = (len(persons), embeddings.dimension)
    made = Embeddings(
        features=normalise(np.array(features, np.float32).reshape(shape)),
        masks=np.array(masks, np.float32).reshape(shape),
        visibility=np.array(visibility) if embeddings.has_masks else None,
        rows=np.array(counts, np.int64),
        fingerprint=embeddings.fingerprint,
    )
    return made, persons


def clearest(
    people: Sequence[str], cameras: Sequence[str], weights: NDArray[np.float32], cap: int
) -> NDArray[np.int64]:
    """Which of N pictures are among the `cap` of the highest weight of their person and camera: rising indices."""
    taken: dict[tuple[str, str], int] = {}
    chosen = []
    for i in np.argsort(-np.asarray(weights), kind="stable"):
        key = people[i], cameras[i]
        taken[key] = taken.get(key, 0) + 1
        if taken[key] <= cap:
            chosen.append(int(i))
    return np.array(sorted(chosen), np.int64)


def centred_rows(rows: Rows, statistics: CameraStatistics | None) -> Rows:
    """Whole rows with their features centred per camera; as they are without statistics."""
    if statistics is None:
        return rows
    assert rows.features is not None, "whole rows were read"
    return replace(rows, features=statistics.centre(rows.features, rows.cameras))


def prototypes_of(
    store: Store, where: Where, cap: int, centring: CameraStatistics | None = None
) -> tuple[Embeddings, list[str]]:
    """One row a person out of every row that fits; `cap` of a person and camera at most are in memory.

    centring: the features are centred per camera before they are averaged.
    """
    chosen: Rows | None = None
    for part in store.scan(where, vectors=True):
        chosen = part if chosen is None else Rows.join([chosen, part])
        chosen = chosen.take(clearest(chosen.people, chosen.cameras, _weights(chosen), cap))
    assert chosen is not None, "people of rows that were just found"
    chosen = centred_rows(chosen, centring)
    assert chosen.features is not None, "whole rows were read"
    whole = Embeddings(
        features=chosen.features,
        masks=np.ones_like(chosen.features) if chosen.masks is None else chosen.masks,
        visibility=_weights(chosen),
        rows=np.arange(len(chosen)),
        fingerprint=store.meta["fingerprint"],
    )
    return prototypes(whole, chosen.people, chosen.cameras, cap=cap)


def _weights(rows: Rows) -> NDArray[np.float32]:
    """Visibility times what the owner's payload says as "quality", a number above 0; 1 where it says nothing."""
    said = [one.get("quality", 1.0) for one in rows.payloads]
    assert rows.visibility is not None, "a store keeps a number for each row"
    return rows.visibility * np.array([q if isinstance(q, int | float) and q > 0 else 1.0 for q in said], np.float32)
