"""Files and folders that are whole or not there: written beside, synced to the disk, then renamed.

A new file or folder gets the rights that the umask leaves; one that replaces another keeps the rights of that one.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from dpm_edge.errors import DataError, DpmError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers that mean: no room, on the disk, in the quota or in one file."""


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def decode_text(path: Path, data: bytes) -> str:
    """Decode the bytes of a text file in UTF-8 or UTF-16, which may begin with a byte order mark.

    Raises:
        DataError: it is neither.
    """
    utf16 = data.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        text = data.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"expected text in UTF-8, got {path} ({error}). Save it again in UTF-8") from error
    if "\0" in text:
        raise DataError(f"expected text in UTF-8, got {path}, which holds zero bytes. Save it again in UTF-8")
    return text


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Give an open file that replaces `path` when the block ends well; else the old file stays as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left beside the old file.
    """
    rights = _rights(path)
    beside = _beside(path, "part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    descriptor = os.open(beside, flags, 0o666 if rights is None else rights)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _give_rights(beside, rights)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Replace `path` by `data`: a full disk or a killed process leaves the old file as it was.

    Raises:
        OSError: the disk is full or the folder cannot be written; nothing is left beside the old file.
    """
    with whole_file(path) as file:
        file.write(data)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a fresh folder to fill that becomes `path` when the block ends well, and vanishes when it does not.

    All files are on the disk before the old folder makes way. The old folder is deleted last: whatever fails before,
    it is at `path` again, or, if even that fails, the error names where it lies.

    Raises:
        DpmError: `path` is a file, or the old folder could not be put back; the message says where it is.
        OSError: the disk is full or the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _put_back_after_a_kill(path)
    if path.exists() and not path.is_dir():
        raise DpmError(f"expected a folder or nothing at {path}, got a file. Choose another name, or remove the file")
    rights = _rights(path)
    beside = _beside(path, "part")
    os.mkdir(beside, 0o777 if rights is None else rights | 0o700)
    try:
        yield beside
        _sync_tree(beside)
        _give_rights(beside, rights)
        _exchange(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _exchange(new: Path, path: Path) -> None:
    """Rename `new` to `path`; what was there is kept until that is done, and put back where it fails."""
    old = _beside(path, "old") if path.exists() else None
    if old is not None:
        os.replace(path, old)
    try:
        os.replace(new, path)
    except BaseException as error:
        if old is not None:
            try:
                os.rename(old, path)
            except OSError as again:
                raise DpmError(
                    f"expected to rename {new} to {path}, got {error}; the old folder is kept as {old}, because "
                    f"renaming it back failed too ({again.strerror}). Rename it to {path.name} by hand"
                ) from error
        raise
    sync_folder(path.parent)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _put_back_after_a_kill(path: Path) -> None:
    """Rename an old folder back that a process left when it was killed between its two renames."""
    if not path.exists():
        pattern = f".{glob.escape(_short(path.name))}.{'[0-9a-f]' * 8}.old"
        left = sorted(path.parent.glob(pattern), key=lambda one: one.stat().st_mtime)
        if left:
            os.rename(left[-1], path)


def _short(name: str) -> str:
    """The name, or one that stands for it where it is so long that it has no room for an ending."""
    data = os.fsencode(name)
    return name if len(data) <= 200 else f"{name[:40]}-{hashlib.sha256(data).hexdigest()[:16]}"


def _beside(path: Path, ending: str) -> Path:
    """A free name next to `path`."""
    return path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.{ending}")


def _rights(path: Path) -> int | None:
    """The permission bits of what is at `path`; None where nothing is."""
    try:
        return path.stat().st_mode & 0o777
    except FileNotFoundError:
        return None


def _give_rights(path: Path, rights: int | None) -> None:
    """Widen the rights to those of the replaced one; a file system without rights (FAT) is left as it is."""
    if rights is not None:
        with contextlib.suppress(PermissionError, NotImplementedError):
            os.chmod(path, rights)


def _sync_tree(folder: Path) -> None:
    """Put every file and folder below `folder`, and itself, on the disk."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(here, name)
            if file.is_symlink() or not file.is_file():
                continue
            descriptor = os.open(file, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(here))


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, where the system can (Windows and some network file systems cannot)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)
