"""A gallery moved to a new model: every row's picture is embedded again.

A row keeps its id and labels; feature, mask and visibility are new. A row whose picture is gone cannot be moved: it is
named, and kept back in a gallery of the old model or dropped.

N rows
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError, GalleryInUse, ImageError
from dpm_edge.gallery.gallery import Gallery
from dpm_edge.gallery.rows import Rows
from dpm_edge.gallery.stores.address import is_there
from dpm_edge.gallery.stores.memory import MemoryStore
from dpm_edge.gallery.stores.qdrant_edge import PENDING, EdgeStore
from dpm_edge.gallery.stores.store import new_meta
from dpm_edge.images import chunks, clip_boxes, read_image
from dpm_edge.progress import say, track
from dpm_edge.runtime.engine import Engine


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A row that could not be moved."""

    id: int
    source: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Migrated:
    """What a migration did."""

    rows: int
    """In the gallery now."""
    embedded: int
    """Embedded by this call; the others were there from one that was cut off."""
    lost: list[Lost]
    kept_back: Path | None
    """The gallery of the old model with the lost rows; None where there is none."""


def migrate(
    place: str | Path,
    engine: Engine,
    *,
    to: str | Path | None = None,
    pictures: Path | None = None,
    keep_lost: bool = True,
    quiet: bool = False,
) -> Migrated:
    """Move a gallery to the engine's model: in its place, or into another one.

    In a folder the new rows are written beside the old ones, and one rename switches: until then, whatever happens, the
    folder holds the old gallery, and the same call goes on where it was cut off. A saved file is replaced when all is
    done. With `to` the old gallery is only read; the same call again takes over what has changed there since.

    Args:
        place: a folder, a saved file, or, with `to`, any gallery.
        engine: of the new model.
        to: where the new gallery is or will be.
        pictures: folder that sources which are not absolute paths are below; the working directory without.
        keep_lost: keep rows whose picture is gone, in a gallery of the old model beside this one; else drop them.
        quiet: no progress.

    Raises:
        GalleryError: the gallery is of that model already, or is on a server and `to` is missing.
    """
    with Gallery.open(place) if to is None else _open_to_read(place) as old:
        if old.fingerprint == engine.fingerprint:
            raise GalleryError(
                f"expected a gallery of another model, got {place} of model {old.fingerprint[:12]} already: "
                f"nothing to migrate"
            )
        if to is not None:
            with _opened(to, old, engine) as new:
                embedded, lost = re_embed(old, new, engine, pictures=pictures, quiet=quiet)
                return Migrated(rows=len(new), embedded=embedded, lost=lost, kept_back=None)
        if isinstance(old.store, MemoryStore):
            return _file(Path(place), old, engine, pictures, keep_lost, quiet)
        if not isinstance(old.store, EdgeStore):
            raise GalleryError(
                f"expected `to` (--to), the place of the new gallery, for one on a server, got none for {place}"
            )
        return _folder(Path(place), old, engine, pictures, keep_lost, quiet)


def _open_to_read(place: str | Path) -> Gallery:
    """The gallery; where another process holds the folder, a copy of this moment."""
    try:
        return Gallery.open(place)
    except GalleryInUse:
        return Gallery.open(place, read_only=True)


def re_embed(
    old: Gallery, new: Gallery, engine: Engine, *, pictures: Path | None = None, quiet: bool = False
) -> tuple[int, list[Lost]]:
    """Bring `new` level with `old`: embed the rows that it lacks, remove those that `old` has no more.

    Returns:
        How many were embedded, and the rows without a usable picture, which `new` has not.
    """
    wanted, there = old.ids(), new.ids()
    gone = np.setdiff1d(there, wanted)
    if len(gone):
        new.delete(gone)
        new.store.compact()
    todo, lost, embedded = np.setdiff1d(wanted, there), [], 0
    batches = list(chunks(len(todo), max(engine.batch.best, 32)))
    with ThreadPoolExecutor(4) as readers:
        for part in track(batches, what="embedding", total=len(batches), quiet=quiet):
            rows = old.rows(todo[part], vectors=False)
            read = list(readers.map(_crop, rows.sources, rows.boxes, [pictures] * len(rows)))
            lost += [
                Lost(id=int(rows.ids[i]), source=rows.sources[i], reason=one)
                for i, one in enumerate(read)
                if isinstance(one, str)
            ]
            good = np.array([i for i, one in enumerate(read) if not isinstance(one, str)], np.int64)
            embedded += _add(new, rows.take(good), engine, [one for one in read if not isinstance(one, str)])
    new.flush()
    return embedded, lost


def _add(new: Gallery, rows: Rows, engine: Engine, crops: Sequence[NDArray[np.uint8]]) -> int:
    """Embed crops and add them with the labels of their rows; how many."""
    if not len(rows):
        return 0
    made = engine.embed(crops)
    rows = rows.take(made.rows)
    new.add(
        replace(made, sources=rows.sources),
        people=rows.people,
        cameras=rows.cameras,
        timestamps=rows.timestamps.tolist(),
        tracks=rows.tracks,
        boxes=rows.boxes,
        payloads=rows.payloads,
        ids=rows.ids.tolist(),
    )
    return len(rows)


def _crop(source: str, box: NDArray[np.float32], pictures: Path | None) -> NDArray[np.uint8] | str:
    """The crop that a row was embedded from, or why there is none.

    A source is a picture: the crop itself where the row has no box or the picture has the box's size, else the frame.
    """
    if not source:
        return "no source was kept"
    if "#frame=" in source:
        return "it came from a frame of a video; write the crops to files first"
    try:
        image = read_image(Path(source) if pictures is None else pictures / source)
        size = np.array([image.shape[1], image.shape[0]])
        if np.isnan(box).any() or (np.abs(box[2:] - box[:2] - size) < 1.5).all():
            return image
        whole, unusable = clip_boxes(box[None].astype(np.float64), image.shape)
        if unusable or (box < -1).any() or (box[2:] > size + 1).any():
            return f"its box {box.tolist()} is not inside the picture, {size[0]}×{size[1]}"
        x0, y0, x1, y1 = whole[0]
        return image[y0:y1, x0:x1]
    except ImageError as error:
        return str(error)


def _opened(to: str | Path, old: Gallery, engine: Engine) -> Gallery:
    """The new gallery, created like the old one where there is none."""
    about = old.describe()
    if not is_there(to):
        new = Gallery.create(to, engine.fingerprint, engine.dimension, masks=_masks(about, engine))
        if about.get("retention"):
            new.describe(retention=about["retention"])
        if engine.camera_statistics is not None:
            new.use_statistics(engine.camera_statistics)
        return new
    new = Gallery.open(to)
    if new.fingerprint != engine.fingerprint:
        new.close()
        raise GalleryError(
            f"expected a gallery of the engine's model {engine.fingerprint[:12]} at {to}, got one of "
            f"{new.fingerprint[:12]}. Give another place"
        )
    return new


def _masks(about: dict[str, Any], engine: Engine) -> bool:
    """Whether the new gallery keeps masks: as the old one, unless that had none for want of a model with masks."""
    return engine.spec.masks and (about["masks"] or not about.get("visibility", True))


def _folder(place: Path, old: Gallery, engine: Engine, pictures: Path | None, keep_lost: bool, quiet: bool) -> Migrated:
    """In the folder itself."""
    beside, store = place / PENDING, old.store
    assert isinstance(store, EdgeStore), "the caller checks"
    try:
        new = _opened(beside, old, engine)
    except GalleryError as error:
        say(f"what an earlier migration wrote cannot be used ({error}); beginning again")
        shutil.rmtree(beside)
        new = _opened(beside, old, engine)
    with new:
        embedded, lost = re_embed(old, new, engine, pictures=pictures, quiet=quiet)
        rows = len(new)
    kept_back = _keep_back(place.with_name(f"{place.name}-{old.fingerprint[:12]}"), old, lost) if keep_lost else None
    store.adopt(beside)
    if not keep_lost:
        old.note("migrate", np.array([one.id for one in lost], np.int64))
    return Migrated(rows=rows, embedded=embedded, lost=lost, kept_back=kept_back)


def _file(place: Path, old: Gallery, engine: Engine, pictures: Path | None, keep_lost: bool, quiet: bool) -> Migrated:
    """A saved file: all of it in memory, then replaced."""
    assert isinstance(old.store, MemoryStore), "the caller checks"
    meta = new_meta(engine.fingerprint, engine.dimension, _masks(old.describe(), engine))
    new = Gallery("", 0, store=MemoryStore(meta, str(old.store.dtype)))
    if engine.camera_statistics is not None:
        new.use_statistics(engine.camera_statistics)
    embedded, lost = re_embed(old, new, engine, pictures=pictures, quiet=quiet)
    kept_back = None
    if lost and keep_lost:
        kept_back = place.with_name(f"{place.stem}-{old.fingerprint[:12]}{place.suffix}")
        kept = Gallery("", 0, store=MemoryStore(old.describe(), str(old.store.dtype)))
        kept.store.add(old.store.get(np.array([one.id for one in lost], np.int64), vectors=True))
        kept.save(kept_back)
    new.save(place)
    return Migrated(rows=len(new), embedded=embedded, lost=lost, kept_back=kept_back)


def _keep_back(place: Path, old: Gallery, lost: list[Lost]) -> Path | None:
    """A gallery of the old model with the lost rows, beside the migrated one."""
    if not lost:
        return None
    about = old.describe()
    if is_there(place):
        kept = Gallery.open(place)
    else:
        kept = Gallery.create(place, old.fingerprint, old.dimension, masks=about["masks"])
    with kept:
        todo = np.setdiff1d([one.id for one in lost], kept.ids())
        for part in chunks(len(todo), 1000):
            kept.store.add(old.store.get(todo[part], vectors=True))
        if not about.get("visibility", True):
            kept.describe(visibility=False)
    return place
