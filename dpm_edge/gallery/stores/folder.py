"""The folder of a gallery: its description, its lock, the room on its disk, and copies of it.

FOLDER/
    gallery.json    what the gallery is, and the name of its shard
    shard-1/        Qdrant Edge's own files
    migrating/      rows of the next model, while a migration is under way
    writer          the process that holds the folder
    lock            held for each change, and by readers while they copy the folder
    sizes.json      how long the shard's files were at the last flush
    audit.jsonl     a line for each deletion
    cameras.json    camera statistics of the rows, while nobody changes them
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import DpmError, EmbeddingsError, GalleryError
from dpm_edge.files import sha256, sync_folder, write_whole
from dpm_edge.gallery.stores.store import check_meta

DESCRIPTION, WRITER, LOCK, SIZES, PENDING = "gallery.json", "writer", "lock", "sizes.json", "migrating"
CAMERAS = "cameras.json"
MEGABYTE = 1 << 20
MARGIN = 32 * MEGABYTE
"""Room that stays free when rows are added. The engine writes through memory maps of files with holes: where the disk
has no page left, the system kills the process. Other programs fill the disk meanwhile."""
SMALL_MARGIN = 8 * MEGABYTE
"""Room for what frees space later: deleting, and flushing what was added."""
LASTING = ("mutable_id_tracker.*", "chunk_*", "page_*", "tracker.dat", "status.dat")
"""Files of ids, vectors and payloads: they grow as long as their shard lives. Others come and go, or are JSON, whose
damage the engine sees."""


class FolderLock:
    """The writer's side of FOLDER/lock: held for each change, so that a copy never sees half of one."""

    def __init__(self, folder: Path) -> None:
        """Open the lock's file, and make it where it is missing."""
        self._file = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        self._depth = 0

    def __enter__(self) -> None:
        if self._depth == 0:
            _flock(self._file, shared=False)
        self._depth += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        if self._depth == 0:
            _unlock(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


@contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Keep the folder's writer waiting while the block copies files."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:  # no writer of this version has been here
        yield
        return
    try:
        _flock(file, shared=True)
        yield
    finally:
        os.close(file)


def _flock(file: int, *, shared: bool) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: copies are only safe while nobody writes
        return
    fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)


def _unlock(file: int) -> None:
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_UN)


def read_description(folder: Path) -> dict[str, Any]:
    """Read gallery.json and check that its shard is there.

    Raises:
        GalleryError: it is no gallery, of a newer version, may not be read, or its shard is gone.
    """
    try:
        meta = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except PermissionError as error:
        raise GalleryError(
            f"expected a gallery that this user may read, got {folder}: {error.strerror}. Ask its owner for the right"
        ) from error
    except (OSError, ValueError) as error:
        raise GalleryError(
            f"expected a gallery in {folder}, got no {DESCRIPTION} that can be read ({error}). Create one: dpm-edge "
            f"gallery create"
        ) from error
    meta = check_meta(meta if isinstance(meta, dict) else {}, str(folder))
    shard = folder / str(meta.setdefault("shard", "shard-1"))
    try:
        there = shard.is_dir() and any(True for _ in os.scandir(shard))
    except PermissionError as error:
        raise GalleryError(
            f"expected a gallery that this user may read, got {shard}: {error.strerror}. Ask its owner for the right"
        ) from error
    if not there:
        raise GalleryError(
            f"expected the rows of a gallery in {shard}, got none. Restore a snapshot: copy its folder here"
        )
    return meta


def write_description(folder: Path, meta: dict[str, Any]) -> None:
    """Replace gallery.json, whole.

    Raises:
        DpmError: the disk is full or the folder may not be written; the old one is as it was.
    """
    try:
        write_whole(folder / DESCRIPTION, (json.dumps(meta, indent=2) + "\n").encode())
    except OSError as error:
        raise DpmError(
            f"expected to write {folder / DESCRIPTION}, got {error.strerror}; it is as it was. Free some space, or "
            f"check the rights"
        ) from error


def may_write(folder: Path, shard: str) -> bool:
    """Whether this user may change every file of a gallery."""
    files = [folder, folder / DESCRIPTION, *(folder / shard).rglob("*")]
    return all(os.access(path, os.W_OK) for path in files)


def free_bytes(folder: Path | str) -> int:
    """Bytes that an ordinary user may still write on the disk of a folder."""
    return shutil.disk_usage(folder).free


def require_room(folder: Path, needed: int, doing: str) -> None:
    """Refuse a change that the disk has no room for.

    Raises:
        GalleryError: fewer than `needed` bytes are free; nothing was changed.
    """
    free = free_bytes(folder)
    if free < needed:
        raise GalleryError(
            f"expected {needed / MEGABYTE:.0f} MB free on the disk of {folder} for {doing}, got "
            f"{free / MEGABYTE:.1f} MB; nothing was changed. Free some space and try again"
        )


def erase(path: Path) -> None:
    """Remove a folder and everything in it.

    Raises:
        GalleryError: something of it is still there.
    """
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise GalleryError(
            f"expected to erase {path}, got {error}; it may hold bytes of removed rows, which no answer shows any "
            f"more. Mend that, and forget or compact again"
        ) from error


def copy_folder(folder: Path, target: Path) -> dict[str, Any]:
    """Copy the description, the sizes and the shard of now into an existing folder, holes as holes; the description.

    Raises:
        GalleryError: the folder is no gallery, or is damaged.
        OSError: the target's disk is full, or a file may not be read.
    """
    with reading(folder):
        meta = read_description(folder)
        check_sizes(folder, meta["shard"])
        try:
            shutil.copytree(folder / meta["shard"], target / meta["shard"], copy_function=_copy_with_holes)
        except shutil.Error as error:  # a list of (source, target, reason), one for each file: the first says enough
            source, _, reason = error.args[0][0]
            raise OSError(f"{reason} at {source}") from error
        for name in (DESCRIPTION, SIZES, CAMERAS):
            if (folder / name).is_file():
                shutil.copyfile(folder / name, target / name)
    return meta


@contextmanager
def temporary_copy(folder: Path) -> Iterator[Path]:
    """Give a copy of now in a place with room for it, readable by this user alone; it is erased after the block.

    Raises:
        GalleryError: no place has room, a file may not be read, or the folder is no gallery.
    """
    shard = folder / read_description(folder)["shard"]
    allocated, holes = _sizes(shard)
    places = [place for place in (tempfile.gettempdir(), "/dev/shm") if os.path.isdir(place)]
    roomy = [
        place
        for place in places
        if os.access(place, os.W_OK)
        and free_bytes(place) >= allocated + MARGIN + (holes if _in_memory(Path(place)) else 0)
    ]
    if not roomy:
        raise GalleryError(
            f"expected {(allocated + MARGIN) / MEGABYTE:.0f} MB free in {' or '.join(places)} for a copy of {folder} "
            f"to read from, got less. Free some space, or set TMPDIR to a folder with room"
        )
    copy = Path(tempfile.mkdtemp(prefix="dpm-edge-gallery-", dir=roomy[0]))
    try:
        try:
            copy_folder(folder, copy)
        except OSError as error:
            raise GalleryError(
                f"expected to copy {folder} to {copy} to read from it, got {error}. Check its rights"
            ) from error
        yield copy
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def has_room_to_open(folder: Path, shard: str) -> bool:
    """Whether a shard can be opened where it is, and grow a little."""
    holes = _sizes(folder / shard)[1] if _in_memory(folder) else 0
    return free_bytes(folder) >= MARGIN + holes


def _sizes(folder: Path) -> tuple[int, int]:
    """Bytes that the files below a folder take on their disk, and bytes of their holes."""
    allocated = holes = 0
    for path in folder.rglob("*"):
        try:
            one = path.stat()
        except FileNotFoundError:  # a writer has just removed it
            continue
        if path.is_dir():
            continue
        taken = int(getattr(one, "st_blocks", one.st_size // 512 + 1)) * 512
        allocated, holes = allocated + taken, holes + max(one.st_size - taken, 0)
    return allocated, holes


def _in_memory(folder: Path) -> bool:
    """Whether a folder lies on a tmpfs: there, reading a hole through a map takes a page too."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    here = folder.resolve()
    kinds = {place: kind for place, kind in mounts if here.is_relative_to(place)}  # the last mount of a place counts
    return kinds[max(kinds, key=len)] == "tmpfs" if kinds else False


def _copy_with_holes(source: str, target: str) -> str:
    """Copy a file's data; what was never written takes no room in the copy either."""
    with open(source, "rb") as old, open(target, "wb") as new:
        size = os.fstat(old.fileno()).st_size
        for start, end in _spans(old.fileno(), size):
            old.seek(start)
            new.seek(start)
            while start < end and (block := old.read(min(MEGABYTE, end - start))):
                new.write(block)
                start += len(block)
        new.truncate(size)
    return target


def _spans(file: int, size: int) -> Iterator[tuple[int, int]]:
    """(start, end) of each part of a file that holds data; the whole file where the system does not say."""
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
            end = os.lseek(file, start, os.SEEK_HOLE)
        except (OSError, AttributeError) as error:
            if isinstance(error, OSError) and error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            start, end = end, size
        yield start, end


def record_sizes(folder: Path, shard: str) -> None:
    """Write down how long a flushed shard's lasting files are.

    A file that is shorter later, or gone, was damaged since: Qdrant Edge opens a shard whose list of ids was cut short,
    with fewer rows and without a word.

    Raises:
        OSError: the disk is full; the older sizes stay, which are no larger.
    """
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for pattern in LASTING
        for path in sorted((folder / shard / "segments").rglob(pattern))
    }
    text = (json.dumps(sizes, indent=0) + "\n").encode()
    place = folder / SIZES
    if not place.is_file() or place.read_bytes() != text:
        write_whole(place, text)


def check_sizes(folder: Path, shard: str) -> None:
    """Compare with what was recorded for this shard.

    Raises:
        GalleryError: a file is gone or shorter than it was.
    """
    try:
        sizes = json.loads((folder / SIZES).read_text(encoding="utf-8"))
    except OSError:
        return  # nothing was flushed yet
    except ValueError as error:
        raise GalleryError(
            f"{folder / SIZES} holds no JSON ({error}). Restore a snapshot: copy its folder here"
        ) from error
    for name, size in sizes.items():
        path = folder / name
        if not name.startswith(f"{shard}/"):
            continue  # of the shard before a compaction
        now = path.stat().st_size if path.is_file() else None
        if now is None or now < size:
            raise GalleryError(
                f"expected {path} of {size} bytes or more, got {'none' if now is None else now}. It is damaged. "
                f"Restore a snapshot: copy its folder here"
            )


def write_cameras(folder: Path, statistics: CameraStatistics) -> None:
    """Keep camera statistics of the rows that were flushed last.

    Raises:
        OSError: the disk is full; nothing is kept.
    """
    kept = {"sizes": sha256(folder / SIZES), "statistics": statistics.to_json()}
    write_whole(folder / CAMERAS, (json.dumps(kept) + "\n").encode())


def read_cameras(folder: Path, meta: dict[str, Any]) -> CameraStatistics | None:
    """What `write_cameras` kept of this model's rows; None where there is nothing, or other rows were flushed since.

    Every change makes one of the files longer whose sizes are recorded, whichever version of this package made it.
    """
    try:
        kept = json.loads((folder / CAMERAS).read_text(encoding="utf-8"))
        if kept["sizes"] != sha256(folder / SIZES):
            return None
        found = CameraStatistics.of_json(kept["statistics"], str(folder / CAMERAS))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, EmbeddingsError):
        return None
    return found if (found.fingerprint, found.dimension) == (meta["fingerprint"], meta["dimension"]) else None


def remove_cameras(folder: Path) -> None:
    """Remove what `write_cameras` kept, on the disk too: after a power loss it does not come back.

    Raises:
        GalleryError: it is still there.
    """
    place = folder / CAMERAS
    try:
        if place.exists():
            place.unlink()
            sync_folder(folder)
    except OSError as error:
        raise GalleryError(
            f"expected to remove {place} before a change, got {error.strerror}; nothing was changed. Check its rights"
        ) from error
