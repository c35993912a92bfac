"""An archive of pictures, embedded by many processes on one machine or many, and poured into a gallery.

    ARCHIVE/
        pictures.txt               the list, fixed at the first start
        archive.json               model, size of a shard, hash of the list
        shard-000000.safetensors   embeddings of the first pictures of the list; whole or not there

Workers share nothing but this folder: part i of n embeds the shards i, i + n, … that are not there yet. A killed worker
loses the shard that it was at; whoever starts next does that one. A row's id follows from the list and its place in it,
so that pouring the same shard twice adds nothing.

N pictures
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import GalleryError
from dpm_edge.files import write_whole
from dpm_edge.gallery.gallery import Gallery
from dpm_edge.images import chunks, find_images
from dpm_edge.progress import track
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.engine import Engine
from dpm_edge.runtime.folder import embed_files

ABOUT, LIST, FORMAT = "archive.json", "pictures.txt", 1
FIRST_ID = 1 << 62
"""Ids from here on are of archives: 29 bits of the list's hash, 32 of the place. The clock's ids lie below."""


@dataclass(frozen=True)
class Archive:
    """The list and where its shards are."""

    folder: Path
    pictures: list[str]
    shard_size: int
    fingerprint: str

    def shards(self, part: tuple[int, int] = (0, 1)) -> list[int]:
        """Numbers of the shards of part i of n, i from 0."""
        return list(range(-(-len(self.pictures) // self.shard_size)))[part[0] :: part[1]]

    def missing(self, part: tuple[int, int] = (0, 1)) -> list[int]:
        """Those that nobody has finished."""
        return [number for number in self.shards(part) if not self.file(number).is_file()]

    def file(self, number: int) -> Path:
        """Where a shard is, or will be."""
        return self.folder / f"shard-{number:06d}.safetensors"

    def span(self, number: int) -> slice:
        """Which pictures of the list are in a shard."""
        return slice(number * self.shard_size, min((number + 1) * self.shard_size, len(self.pictures)))

    def ids(self, at: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows' ids, by places in the list."""
        digest = int.from_bytes(hashlib.sha256("\n".join(self.pictures).encode()).digest()[:4], "big") >> 3
        return FIRST_ID + (digest << 32) + at


def open_archive(folder: Path, sources: Sequence[Path], fingerprint: str, shard_size: int = 1000) -> Archive:
    """The archive in `folder`, begun with every picture below `sources` where there is none yet.

    Pictures that come later are not in the list: they are another archive.

    Raises:
        GalleryError: it is another model's, its list was changed, or it was begun with other folders.
        ImageError: a source is no folder or holds no picture.
    """
    about = folder / ABOUT
    names = [str(source) for source in sources]
    if not about.is_file():
        pictures = [str(path) for source in sources for path in find_images(source)]
        strange = [one for one in pictures if "\n" in one]
        if strange:
            raise GalleryError(f"the name {strange[0]!r} holds a line break; rename that file")
        text = "\n".join(pictures).encode()
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / LIST, text)
        meta = {"format": FORMAT, "fingerprint": fingerprint, "shard_size": shard_size, "sources": names}
        meta["sha256"] = hashlib.sha256(text).hexdigest()
        write_whole(about, (json.dumps(meta, indent=2) + "\n").encode())
    try:
        meta = json.loads(about.read_text(encoding="utf-8"))
        text = (folder / LIST).read_bytes()
        if meta["format"] > FORMAT:
            raise GalleryError(f"{folder} is of format {meta['format']}; {FORMAT} is read here. Upgrade dpm-edge")
        same = hashlib.sha256(text).hexdigest() == meta["sha256"]
        found = Archive(folder, text.decode().split("\n"), int(meta["shard_size"]), str(meta["fingerprint"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GalleryError(f"{folder} is no archive ({error}). Remove it and begin again") from error
    if not same:
        raise GalleryError(
            f"{folder / LIST} is not the list that {ABOUT} speaks of: two machines began at once, or it was edited. "
            f"Remove {folder} and begin again on one machine"
        )
    if found.fingerprint != fingerprint or meta["sources"] != names:
        raise GalleryError(
            f"{folder} was begun with model {found.fingerprint[:12]} and {meta['sources']}; {fingerprint[:12]} and "
            f"{names} came. Take another archive folder for them"
        )
    return found


def embed_part(archive: Archive, engine: Engine, part: tuple[int, int] = (0, 1), *, quiet: bool = False) -> int:
    """Embed the missing shards of part i of n; how many were embedded here.

    Raises:
        DpmError: the disk is full; the shards before are kept.
    """
    done = 0
    for number in track(archive.missing(part), what="shards", quiet=quiet):
        if archive.file(number).is_file():
            continue
        span = archive.span(number)
        found = embed_files(engine, [Path(one) for one in archive.pictures[span]], quiet=True)
        found.save(archive.file(number))
        done += 1
    return done


def pour(
    archive: Archive,
    gallery: Gallery,
    labels: Callable[[Embeddings], tuple[list[str], list[str]]],
    *,
    camera: str | None = None,
    quiet: bool = False,
) -> tuple[int, list[tuple[str, str]]]:
    """Add every row of the shards that the gallery lacks: how many, and (picture, reason) of those without a row.

    Args:
        archive: with every shard there.
        gallery: of the same model.
        labels: people and cameras of some rows.
        camera: of all rows, instead of what `labels` says.
        quiet: no progress.

    Raises:
        GalleryError: a shard is missing, or the gallery is another model's.
        EmbeddingsError: a shard's file is damaged.
    """
    missing = archive.missing()
    if missing:
        raise GalleryError(f"{len(missing)} shards of {archive.folder} are missing. Embed them: run the command again")
    added, skipped = 0, []
    for number in track(archive.shards(), what="adding", quiet=quiet):
        rows, start = Embeddings.load(archive.file(number)), archive.span(number).start
        skipped += [(archive.pictures[start + at], reason) for at, reason in rows.skipped]
        for part in chunks(len(rows), 1000):
            some = rows.take(part)
            ids = archive.ids(start + some.rows)
            new = ~np.isin(ids, gallery.rows(ids, vectors=False).ids)
            some = some.take(new)
            if not len(some):
                continue
            people, cameras = labels(some)
            cameras = cameras if camera is None else [camera] * len(some)
            gallery.add(some, people=people, cameras=cameras, ids=ids[new].tolist())
            added += len(some)
    gallery.flush()
    for left in archive.folder.glob(".*.part"):  # of killed workers
        left.unlink(missing_ok=True)
    return added, skipped
