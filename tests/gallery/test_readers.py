"""Galleries that are read and not written: beside a writer in another process, without rights, on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from oracle import rows
from test_folder import run

from dpm_edge import Gallery
from dpm_edge.errors import GalleryError, GalleryInUse
from dpm_edge.gallery.stores import folder as files

NOBODY = 12345
"""A user id that owns nothing."""


def filled(place: Path, n: int = 50) -> Gallery:
    gallery = Gallery.create(place, "f", 12)
    gallery.add(rows(n, seed=1), people=[f"p{i}" for i in range(n)], cameras=["gate"] * n, ids=range(n))
    return gallery


def assert_refuses_changes(gallery: Gallery, why: str) -> None:
    changes = [
        lambda: gallery.add(rows(1), people=["a"]),
        lambda: gallery.delete([1]),
        lambda: gallery.forget("p1"),
        lambda: gallery.expire(1),
        lambda: gallery.retain("gate", "1d"),
        lambda: gallery.describe(note="x"),
        lambda: gallery.merge(Gallery("f", 12)) or gallery.add(rows(1), people=["a"]),
        lambda: gallery.use_calibration(None),
    ]
    for change in changes:
        with pytest.raises(GalleryError, match=f"read-only one: .*{why}"):
            change()


def test_a_second_process_reads_what_a_writer_has_just_added(tmp_path: Path) -> None:
    with filled(tmp_path / "g") as gallery:
        gallery.add(rows(7, seed=2), people=["new"] * 7)  # not flushed
        gallery.delete([0, 1])
        script = """
            import json
            from dpm_edge import Gallery
            with Gallery.open(sys.argv[1], read_only=True) as reader:
                found = reader.search(rows(1, seed=2), 3)
                print(json.dumps([len(reader), reader.count(person="new"), found.people[0].tolist()]))
        """
        reader = run(script, tmp_path / "g")
        said, wrong = reader.communicate(timeout=120)
        count, new, people = json.loads(said) if said else pytest.fail(wrong)
        assert (count, new) == (55, 7) and people[0] == "new"
        gallery.add(rows(1, seed=3), people=["later"])  # the writer goes on
    with Gallery.open(tmp_path / "g") as again:
        assert len(again) == 56


def test_a_reader_sees_all_of_an_addition_or_none(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 0) as gallery:
        stop = threading.Event()

        def write() -> None:
            while not stop.is_set():
                gallery.add(rows(11), people=["a"] * 11)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            counts = []
            for _ in range(3):
                with Gallery.open(tmp_path / "g", read_only=True) as reader:
                    counts.append(len(reader))
        finally:
            stop.set()
            thread.join()
    assert all(count % 11 == 0 for count in counts) and counts == sorted(counts)


def test_a_reader_keeps_its_moment_and_hinders_no_writer(tmp_path: Path) -> None:
    filled(tmp_path / "g").close()
    with Gallery.open(tmp_path / "g", read_only=True) as reader, Gallery.open(tmp_path / "g") as writer:
        writer.forget("p1")
        assert len(reader) == 50 and len(writer) == 49
        assert_refuses_changes(reader, "read_only=True")
        reader.flush()
        reader.snapshot(tmp_path / "copy")  # of now
    with Gallery.open(tmp_path / "copy") as copy:
        assert len(copy) == 49


def test_a_reader_leaves_no_copy_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files are removed as soon as they are loaded, so that not even a killed reader leaves biometric data."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    filled(tmp_path / "g").close()
    with Gallery.open(tmp_path / "g", read_only=True) as reader:
        assert list((tmp_path / "temporary").iterdir()) == []
        assert reader.search(rows(1), 60).found.sum() == 50


def test_no_room_for_a_readers_copy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "g").close()
    monkeypatch.setattr(files, "free_bytes", lambda place: 1 << 20)
    with pytest.raises(GalleryError, match=r"MB free in .* set TMPDIR"):
        Gallery.open(tmp_path / "g", read_only=True)


def test_a_writer_that_finds_the_folder_held_is_told_how_to_read(tmp_path: Path) -> None:
    with filled(tmp_path / "g"):
        process = run("from dpm_edge import Gallery\nGallery.open(sys.argv[1])", tmp_path / "g")
        _, said = process.communicate(timeout=60)
    assert issubclass(GalleryInUse, GalleryError)
    assert "GalleryInUse" in said and f"process {os.getpid()}" in said and "read_only=True" in said


def test_a_saved_file_opened_read_only_refuses_changes(tmp_path: Path) -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(3), people=["a", "b", "c"])
    gallery.save(tmp_path / "g.safetensors")
    reader = Gallery.open(tmp_path / "g.safetensors", read_only=True)
    assert_refuses_changes(reader, "read_only=True")
    assert len(reader) == 3


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.parametrize(("mode", "says"), [("a+rX", "may only read"), ("o-rwx", "may read")])
def test_a_user_who_may_only_read_searches_and_one_who_may_not_is_told(mode: str, says: str) -> None:
    """In a folder of its own: pytest's are closed to other users."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        place = Path(top) / "g"
        filled(place).close()
        subprocess.run(["chmod", "-R", mode, str(place)], check=True)
        script = f"""
            import os
            from dpm_edge import Gallery
            from dpm_edge.errors import DpmError
            with Gallery.create(sys.argv[1] + "/../first", "f", 12) as first:  # all is imported: nobody may read there
                first.add(rows(1), people=["x"])
                first.search(rows(1), 1)
            os.setgid({NOBODY}); os.setuid({NOBODY})
            try:
                gallery = Gallery.open(sys.argv[1])
                print(len(gallery), gallery.search(rows(1, seed=1), 1).found.all())
                gallery.add(rows(1), people=["x"])
            except DpmError as error:
                print(error)
            try:
                Gallery.create(sys.argv[1] + "/../new", "f", 12)
            except DpmError as error:
                print("create:", error)
        """
        said, wrong = run(script, place).communicate(timeout=120)
    assert says in said and "create: expected a folder that this user may write" in said, said + wrong
    assert ("50 True" in said) == (mode == "a+rX")


def test_copies_keep_holes(tmp_path: Path) -> None:
    sparse, copy = tmp_path / "sparse", tmp_path / "copy"
    with sparse.open("wb") as file:
        file.seek(3 << 20)
        file.write(b"middle")
        file.truncate(64 << 20)
    files._copy_with_holes(str(sparse), str(copy))
    assert copy.stat().st_size == 64 << 20
    with copy.open("rb") as file:
        assert file.read(3 << 20) == bytes(3 << 20) and file.read(6) == b"middle" and not any(file.read(1 << 20))
    if sys.platform == "linux":
        assert copy.stat().st_blocks * 512 < 1 << 20


def test_a_snapshot_has_the_rows_and_no_more_bytes_than_the_gallery(tmp_path: Path) -> None:
    with filled(tmp_path / "g") as gallery:
        gallery.snapshot(tmp_path / "copy")
        kept = gallery.rows()
    with Gallery.open(tmp_path / "copy") as copy:
        np.testing.assert_array_equal(copy.rows().features, kept.features)
    sizes = [sum(p.stat().st_blocks for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("g", "copy")]
    assert sizes[1] < 2 * sizes[0] + 2048


def test_the_command_line_reads_a_folder_that_another_process_holds(tmp_path: Path) -> None:
    with filled(tmp_path / "g"):
        rows(1, seed=1).save(tmp_path / "q.safetensors")
        for arguments in (
            ["stats", str(tmp_path / "g"), "--json"],
            ["search", str(tmp_path / "g"), str(tmp_path / "q.safetensors"), "--json"],
            ["snapshot", str(tmp_path / "g"), str(tmp_path / "copy")],
            ["snapshot", str(tmp_path / "g"), str(tmp_path / "rows.parquet")],
        ):
            command = [sys.executable, "-m", "dpm_edge.cli", "gallery", *arguments]
            ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
            assert ended.returncode == 0, textwrap.dedent(ended.stderr)
    with Gallery.open(tmp_path / "copy") as copy:
        assert len(copy) == 50
    other = Gallery("f", 12)
    assert other.import_(tmp_path / "rows.parquet") == 50
