"""Files are whole or not there: with the disk full, the writer killed, a rename refused, an error in the middle."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dpm_edge.errors import DpmError
from dpm_edge.files import sha256, whole_folder, write_whole


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def rights(path: Path) -> int:
    return path.stat().st_mode & 0o777


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


@pytest.mark.parametrize(("mask", "of_file", "of_folder"), [(0o022, 0o644, 0o755), (0o077, 0o600, 0o700)])
def test_new_files_and_folders_get_the_rights_that_the_umask_leaves(
    tmp_path: Path, mask: int, of_file: int, of_folder: int
) -> None:
    with umask(mask):
        write_whole(tmp_path / "file", b"one")
        with whole_folder(tmp_path / "engine") as folder:
            write_whole(folder / "plan", b"one")
    assert rights(tmp_path / "file") == of_file
    assert rights(tmp_path / "engine") == of_folder and rights(tmp_path / "engine" / "plan") == of_file


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_replaced_file_keeps_its_rights(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(mode)
    with umask(0o022):
        write_whole(path, b"new")
    assert path.read_bytes() == b"new" and rights(path) == mode


def test_replaced_folder_keeps_its_rights(tmp_path: Path) -> None:
    for mode in (0o700, 0o750):
        (tmp_path / "engine").mkdir(exist_ok=True)
        (tmp_path / "engine").chmod(mode)
        with umask(0o022), whole_folder(tmp_path / "engine"):
            pass
        assert rights(tmp_path / "engine") == mode


def test_private_file_is_private_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o600)
    seen: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: seen.append(os.fstat(fd).st_mode & 0o777))
    with umask(0):
        write_whole(path, b"new")
    assert seen[0] == 0o600


def test_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_whole(path, b"one")
    assert path.read_bytes() == b"one"


def test_file_and_its_folder_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_ino))
    write_whole(tmp_path / "a", b"one")
    assert synced == [(tmp_path / "a").stat().st_ino, tmp_path.stat().st_ino]


def test_every_file_and_folder_of_a_whole_folder_is_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[int | str] = []
    real = os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(os.fstat(fd).st_ino))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append("rename"), real(a, b)))
    with whole_folder(tmp_path / "engine") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text("w")
        (folder / "plan").write_text("p")
    below = {path.stat().st_ino for path in [tmp_path / "engine", *(tmp_path / "engine").rglob("*")]}
    at = events.index("rename")
    assert set(events[:at]) == below and len(below) == 4
    assert events[at + 1 :] == [tmp_path.stat().st_ino]


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


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """An engine that a failure must not lose."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "plan").write_text("precious")
    return tmp_path / "engine"


def replace_it(engine: Path) -> None:
    with whole_folder(engine) as folder:
        (folder / "plan").write_text("new")


def fail_at(monkeypatch: pytest.MonkeyPatch, name: str, calls: set[int]) -> None:
    """Let os.NAME fail at these calls, counted from 1."""
    real, count = getattr(os, name), iter(range(1, 100))

    def rename(source: Path, target: Path) -> None:
        if next(count) in calls:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, name, rename)


@pytest.mark.parametrize("call", [1, 2])
def test_failed_rename_leaves_the_old_folder_and_nothing_beside_it(
    engine: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    fail_at(monkeypatch, "replace", {call})
    with pytest.raises(OSError, match="Input/output"):
        replace_it(engine)
    assert (engine / "plan").read_text() == "precious"
    assert os.listdir(engine.parent) == ["engine"]


def test_old_folder_that_cannot_be_renamed_back_is_kept_and_named(
    engine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_at(monkeypatch, "replace", {2})
    fail_at(monkeypatch, "rename", {1})
    with pytest.raises(DpmError, match="by hand") as caught:
        replace_it(engine)
    (kept,) = engine.parent.glob(".engine.*.old")
    assert (kept / "plan").read_text() == "precious" and str(kept) in str(caught.value)


def test_old_folder_of_a_writer_killed_between_the_renames_is_put_back(engine: Path) -> None:
    script = f"""
        import os, signal
        from pathlib import Path
        from dpm_edge.files import whole_folder
        real, calls = os.replace, []
        def replace(a, b):
            calls.append(a)
            os.kill(os.getpid(), signal.SIGKILL) if len(calls) == 2 else real(a, b)
        os.replace = replace
        with whole_folder(Path({str(engine)!r})):
            pass
    """
    assert subprocess.run([sys.executable, "-c", textwrap.dedent(script)]).returncode == -signal.SIGKILL
    assert not engine.exists()
    with pytest.raises(RuntimeError), whole_folder(engine):
        raise RuntimeError
    assert (engine / "plan").read_text() == "precious"


@pytest.mark.parametrize("where", ["file", "folder"])
def test_failed_sync_leaves_what_was_there(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space"):
        write_whole(engine / "plan", b"new") if where == "file" else replace_it(engine)
    assert (engine / "plan").read_text() == "precious" and len(os.listdir(tmp_path)) == 1
    assert os.listdir(engine) == ["plan"]


def test_file_where_a_folder_is_to_be_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "engine").write_text("somebody's file")
    with pytest.raises(DpmError, match="got a file"):
        replace_it(tmp_path / "engine")
    assert (tmp_path / "engine").read_text() == "somebody's file"


def test_old_folder_is_gone_only_after_the_new_one_is_in_place(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, contents = shutil.rmtree, []
    monkeypatch.setattr(
        shutil, "rmtree", lambda path, **more: (contents.append((engine / "plan").read_text()), real(path, **more))
    )
    replace_it(engine)
    assert contents and set(contents) == {"new"}


def test_sha256_of_a_file_larger_than_a_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(data)
    assert sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()
