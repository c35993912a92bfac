"""An archive of pictures, embedded by many processes on one machine or many, and added to a gallery.

    ARCHIVE/
        pictures-0001.txt          the pictures of the first run: a line of JSON about them, then a path a line
        pictures-0002.txt          those that were new in a later run
        shard-000000.safetensors   embeddings of the first pictures of the lists; whole or not there

A list never changes; pictures that come later go into a list of their own. Workers share nothing but this folder: part
i of n embeds the shards i, i + n, … that are not there yet. A killed worker loses the shard that it was at; whoever
starts next does that one. A row's id follows from its picture's absolute path, so that no picture is added twice,
whichever archive folder its embedding lies in.

N pictures
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpm_edge.errors import GalleryError
from dpm_edge.files import write_whole
from dpm_edge.gallery.gallery import Gallery
from dpm_edge.gallery.stores.store import BATCH
from dpm_edge.images import chunks, path_text
from dpm_edge.progress import track
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.runtime.engine import Engine
from dpm_edge.runtime.folder import embed_files

FORMAT = 2
FIRST_ID, ID_BITS = 1 << 62, 61
"""Ids from here on are of archives: 61 bits of the hash of a path. The clock's ids lie below."""


@dataclass
class Archive:
    """The pictures and where their shards are."""

    folder: Path
    fingerprint: str
    pictures: list[str] = field(default_factory=list)
    """(N,) absolute paths, in the order of the lists; as the operating system names them."""
    spans: list[slice] = field(default_factory=list)
    """Which pictures are in each shard; a shard holds pictures of one list."""
    lists: int = 0
    unusable: list[tuple[str, str]] = field(default_factory=list)
    """(picture, reason) of those that no list can hold."""

    def shards(self, part: tuple[int, int] = (0, 1)) -> list[int]:
        """Numbers of the shards of part i of n, i from 0."""
        return list(range(len(self.spans)))[part[0] :: part[1]]

    def missing(self, part: tuple[int, int] = (0, 1)) -> list[int]:
        """Those that nobody has finished."""
        return [number for number in self.shards(part) if not self.file(number).is_file()]

    def file(self, number: int) -> Path:
        """Where a shard is, or will be."""
        return self.folder / f"shard-{number:06d}.safetensors"

    def list_file(self, number: int) -> Path:
        """Where a list is, or will be; the first is 1."""
        return self.folder / f"pictures-{number:04d}.txt"

    def append(self, pictures: Sequence[str], shard_size: int) -> None:
        """Take in one more list."""
        start = len(self.pictures)
        self.pictures += pictures
        self.spans += [slice(start + part.start, start + part.stop) for part in chunks(len(pictures), shard_size)]
        self.lists += 1


def picture_id(path: str) -> int:
    """The id of the row of a picture, by its absolute path."""
    digest = hashlib.blake2b(os.fsencode(path), digest_size=8).digest()
    return FIRST_ID + (int.from_bytes(digest, "big") >> (64 - ID_BITS))


def open_archive(folder: Path, pictures: Sequence[Path], fingerprint: str, shard_size: int = 1000) -> Archive:
    """The archive in `folder`, with a list for those of the pictures that are in none yet.

    Raises:
        GalleryError: it is another model's, or a list is damaged.
    """
    found = [os.path.abspath(path) for path in pictures]
    good = [path for path in found if "\n" not in path]
    archive = read_archive(folder, fingerprint)
    while new := _new(good, archive):
        if _write_list(archive, new, shard_size):
            archive.append(new, shard_size)
        else:  # another machine was faster: its list comes first
            archive = read_archive(folder, fingerprint)
    reason = "expected a file name of one line. Rename the file"
    archive.unusable = [(path_text(Path(path)), reason) for path in found if "\n" in path]
    return archive


def read_archive(folder: Path, fingerprint: str) -> Archive:
    """What is in the folder: nothing at all in one that is not there.

    Raises:
        GalleryError: it is another model's, or a list is damaged.
    """
    archive = Archive(folder, fingerprint)
    if (folder / "archive.json").is_file():
        raise GalleryError(
            f"expected an archive of format {FORMAT}, got {folder}, which an earlier version wrote. Take another "
            f"archive folder, and a new gallery: rows have other ids now"
        )
    while (path := archive.list_file(archive.lists + 1)).is_file():
        try:
            first, text = path.read_bytes().split(b"\n", 1)
            about = json.loads(first)
            version, wanted, size = int(about["format"]), about["sha256"], int(about["shard_size"])
            made_for = str(about["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise GalleryError(f"expected a list of pictures, got {path} ({error}). {_AGAIN.format(folder)}") from error
        if version > FORMAT:
            raise GalleryError(f"expected an archive of format {FORMAT}, got {version} in {path}. Upgrade dpm-edge")
        if hashlib.sha256(text).hexdigest() != wanted:
            raise GalleryError(f"expected {path} as it was written, got one that was changed. {_AGAIN.format(folder)}")
        if made_for != fingerprint:
            raise GalleryError(
                f"expected an archive of model {fingerprint[:12]}, got {folder} of model {made_for[:12]}. "
                f"Take another archive folder for this engine"
            )
        archive.append([os.fsdecode(line) for line in text.split(b"\n")], size)
    return archive


_AGAIN = "Remove {} and run the command again: no picture is added twice"


def _new(found: Sequence[str], archive: Archive) -> list[str]:
    """Pictures that are in no list, each once."""
    known = set(archive.pictures)
    return [one for one in dict.fromkeys(found) if one not in known]


def _write_list(archive: Archive, pictures: Sequence[str], shard_size: int) -> bool:
    """Write the next list, unless another process did it first: whether it is ours."""
    archive.folder.mkdir(parents=True, exist_ok=True)
    text = b"\n".join(os.fsencode(one) for one in pictures)
    about = {"format": FORMAT, "fingerprint": archive.fingerprint, "shard_size": shard_size}
    about["sha256"] = hashlib.sha256(text).hexdigest()
    path = archive.list_file(archive.lists + 1)
    ours = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}.part")
    write_whole(ours, json.dumps(about).encode() + b"\n" + text)
    try:
        os.link(ours, path)  # fails where the name is taken, on a shared folder too
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if path.exists():
            return False
        os.rename(ours, path)
    finally:
        ours.unlink(missing_ok=True)
    return True


def embed_part(archive: Archive, engine: Engine, part: tuple[int, int] = (0, 1), *, quiet: bool = False) -> int:
    """Embed the missing shards of part i of n; how many were embedded here.

    Raises:
        DpmError: the disk is full; the shards before are kept.
    """
    done = 0
    for number in track(archive.missing(part), what="shards", quiet=quiet):
        if archive.file(number).is_file():
            continue
        span = archive.spans[number]
        found = embed_files(engine, [Path(one) for one in archive.pictures[span]], quiet=True)
        found.save(archive.file(number))
        done += 1
    return done


def add_archive(
    archive: Archive,
    gallery: Gallery,
    labels: Callable[[Embeddings], tuple[list[str], list[str]]],
    *,
    below: Sequence[Path] | None = None,
    camera: str | None = None,
    quiet: bool = False,
) -> tuple[int, list[tuple[str, str]]]:
    """Add every row of the shards that the gallery lacks: how many, and (picture, reason) of those without a row.

    Args:
        archive: with every shard there.
        gallery: of the same model.
        labels: people and cameras of some rows.
        below: only pictures below these folders; every one without.
        camera: of all rows, instead of what `labels` says.
        quiet: no progress.

    Raises:
        GalleryError: a shard is missing or holds other pictures, or the gallery is another model's.
        EmbeddingsError: a shard's file is damaged.
    """
    missing = archive.missing()
    if missing:
        raise GalleryError(
            f"expected every shard in {archive.folder}, got {len(missing)} missing ones. Run the command again"
        )
    folders = ("",) if below is None else tuple(os.path.join(os.path.abspath(one), "") for one in below)
    added, skipped = 0, list(archive.unusable)
    for number in track(archive.shards(), what="adding", quiet=quiet):
        pictures = [one for one in archive.pictures[archive.spans[number]] if one.startswith(folders)]
        ids: dict[str, int] = {}
        for part in chunks(len(pictures), BATCH):
            ids |= _lacking(gallery, pictures[part])
        if not ids:
            continue  # the usual case of a nightly run: the shard is not even read
        rows, listed = _read_shard(archive, number)
        skipped += [(listed[at], reason) for at, reason in rows.skipped if listed[at] in ids]
        new = rows.take([i for i, source in enumerate(rows.sources) if source in ids])
        for part in chunks(len(new), BATCH):
            some = new.take(part)
            people, cameras = labels(some)
            cameras = cameras if camera is None else [camera] * len(some)
            gallery.add(some, people=people, cameras=cameras, ids=[ids[source] for source in some.sources])
            added += len(some)
    gallery.flush()
    for unfinished in archive.folder.glob(".*.part"):  # of killed workers
        unfinished.unlink(missing_ok=True)
    return added, skipped


def _read_shard(archive: Archive, number: int) -> tuple[Embeddings, list[str]]:
    """A shard, when it holds the pictures that the lists say, and their paths as text."""
    rows = Embeddings.load(archive.file(number))
    pictures = [path_text(Path(one)) for one in archive.pictures[archive.spans[number]]]
    if len(rows) and (rows.rows.max() >= len(pictures) or rows.sources != [pictures[at] for at in rows.rows]):
        raise GalleryError(
            f"expected the pictures of the lists in {archive.file(number)}, got others. Remove that file and run the "
            f"command again"
        )
    return rows, pictures


def _lacking(gallery: Gallery, pictures: Sequence[str]) -> dict[str, int]:
    """Those pictures that have no row, as text, with the ids to give them: free ones, should two have one hash."""
    lacking: dict[str, int] = {}
    looked_up = {path_text(Path(picture)): picture_id(picture) for picture in pictures}
    while looked_up:
        there = gallery.rows(np.unique(np.array(list(looked_up.values()), np.int64)), vectors=False)
        source = dict(zip(there.ids.tolist(), there.sources))
        taken = set(lacking.values())
        again = {}
        for picture, number in looked_up.items():
            if number in taken or source.get(number, picture) != picture:
                again[picture] = number + 1
            elif number not in source:
                lacking[picture] = number
                taken.add(number)
        looked_up = again
    return lacking
