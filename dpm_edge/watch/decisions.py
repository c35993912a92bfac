"""What is said about a track: the decision, the changes of it, and rows that follow them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dpm_edge.gallery import Gallery
from dpm_edge.runtime.embeddings import Embeddings

TOO_FEW, TOO_HIDDEN, NOBODY, CLOSE = "too few views", "low visibility", "nobody alike", "small margin"
"""Why a track is unknown or pending."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Who a track is, as far as is known."""

    camera: str
    track: str
    seconds: float
    state: str
    """"pending", "unknown" (a new identity) or "known" (somebody seen before)."""
    identity: str | None = None
    """None while pending."""
    probability: float | None = None
    """That it is this identity; of an unknown track, that it is none of the candidates. None while pending, and of
    what somebody corrected by hand."""
    previous_ids: tuple[str, ...] = ()
    """Identities that this track had before, oldest first."""
    reason: str = ""
    """Why it is unknown or pending: "too few views", "low visibility", "nobody alike" or "small margin"."""
    candidates: tuple[tuple[str, float], ...] = ()
    """Identities and their probabilities, best first."""
    name: str = ""
    """What somebody called the identity."""


@dataclass(frozen=True, kw_only=True)
class IdentityChange:
    """A track or identity became another one."""

    kind: str
    """"merged": `identity` is now `into`. "split": a track of `identity` is now `into`."""
    identity: str
    into: str
    seconds: float
    camera: str = ""
    track: str = ""
    by_hand: bool = False


def move_rows(gallery: Gallery, ids: NDArray[np.int64], into: str) -> None:
    """Give rows to another identity. They are added before they are removed: a stop between loses none."""
    if not len(ids):
        return
    rows = gallery.rows(ids)
    assert rows.features is not None
    masks = np.ones_like(rows.features) if rows.masks is None else rows.masks
    moved = Embeddings(
        features=np.asarray(rows.features, np.float32),
        masks=np.asarray(masks, np.float32),
        visibility=rows.visibility,
        rows=np.arange(len(rows)),
        fingerprint=gallery.fingerprint,
        sources=list(rows.sources),
    )
    gallery.add(
        moved, people=[into] * len(rows), cameras=rows.cameras, timestamps=rows.timestamps, tracks=rows.tracks,
        boxes=rows.boxes, payloads=rows.payloads,
    )  # fmt: skip
    gallery.delete(rows.ids)


def move_track(gallery: Gallery, camera: str, track: str, into: str) -> str | None:
    """Give a track's rows to another identity; whose they were, None where there are none."""
    ids = gallery.ids(camera=camera)
    if not len(ids):
        return None
    rows = gallery.rows(ids, vectors=False)
    mine = np.array([one == track for one in rows.tracks], bool)
    if not mine.any():
        return None
    move_rows(gallery, rows.ids[mine], into)
    return rows.people[int(np.argmax(mine))]
