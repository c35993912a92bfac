"""Files are whole or not there: with the disk full, with the writer killed, with an error in the middle."""

from __future__ import annotations

import hashlib
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpm_edge.files import sha256, whole_folder, write_whole


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow past `size` bytes: the kernel then refuses the write, as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_file_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two" and [p.name for p in tmp_path.iterdir()] == ["a"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old")
    with disk_of(1000), pytest.raises(OSError):
        write_whole(path, b"x" * 100_000)
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_killed_writer_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"old")
    script = f"""
        import os, signal
        from pathlib import Path
        from dpm_edge.files import write_whole
        os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
        write_whole(Path({str(path)!r}), b"x" * 100_000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)])
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"


def test_folder_appears_whole_and_replaces_the_old_one(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with whole_folder(tmp_path / "deep" / "engine") as folder:
            (folder / content).write_text(content)
            assert not (tmp_path / "deep" / "engine" / content).exists()
    assert [p.name for p in (tmp_path / "deep" / "engine").iterdir()] == ["two"]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["engine"]


def test_error_in_the_middle_leaves_the_old_folder(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "engine") as folder:
        (folder / "old").write_text("")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "engine") as folder:
        (folder / "new").write_text("")
        raise RuntimeError
    assert [p.name for p in tmp_path.rglob("*")] == ["engine", "old"]


def test_sha256_of_a_file_larger_than_a_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
