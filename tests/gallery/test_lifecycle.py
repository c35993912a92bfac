"""What ends, fails or is done twice: erasing, closing, flushing, merging, importing, bad addresses."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from oracle import rows

from dpm_edge import Gallery
from dpm_edge.errors import DpmError, GalleryError
from dpm_edge.gallery import audit as audit_file
from dpm_edge.gallery import flusher as flusher_file
from dpm_edge.gallery.flusher import Flusher
from dpm_edge.gallery.stores import folder as files
from dpm_edge.gallery.stores.store import ServerClient


def filled(place: Path, n: int = 60) -> Gallery:
    gallery = Gallery.create(place, "f", 12)
    gallery.add(rows(n, seed=1), people=["Ms Findable" if i % 10 == 5 else f"p{i}" for i in range(n)], ids=range(n))
    return gallery


def holds(folder: Path, needle: bytes) -> list[str]:
    return [str(p) for p in folder.rglob("*") if p.is_file() and needle in p.read_bytes()]


def refusing(*names: str) -> Any:
    """An rmtree that may not remove folders of these names."""

    def rmtree(path: Any, *arguments: Any, **named: Any) -> None:
        if Path(path).name in names:
            raise PermissionError(13, "Permission denied", str(path))
        real(path, *arguments, **named)

    real = shutil.rmtree
    return rmtree


@pytest.mark.parametrize("left", ["shard-1", "migrating"])
def test_a_forget_that_leaves_bytes_fails_and_succeeds_when_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str
) -> None:
    with filled(tmp_path / "g") as gallery:
        (tmp_path / "g" / "migrating").mkdir()
        (tmp_path / "g" / "migrating" / "copy").write_bytes(b"Ms Findable")
        with monkeypatch.context() as patched:
            patched.setattr(files.shutil, "rmtree", refusing(left))
            for _ in range(2):
                with pytest.raises(GalleryError, match=f"expected to erase .*{left}.*forget or compact again"):
                    gallery.forget("Ms Findable")
        assert holds(tmp_path / "g", b"Ms Findable") and len(gallery) == 54
        assert gallery.forget("Ms Findable") == 0
        assert holds(tmp_path / "g", b"Ms Findable") == []
        assert gallery.search(rows(1), 60).found.sum() == 54


def test_old_shards_that_cannot_be_erased_warn_on_opening(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path / "g").close()
    (tmp_path / "g" / "shard-7").mkdir()
    monkeypatch.setattr(files.shutil, "rmtree", refusing("shard-7"))
    with pytest.warns(UserWarning, match=r"expected to erase .*shard-7"):
        gallery = Gallery.open(tmp_path / "g")
    with gallery, pytest.raises(GalleryError, match="expected to erase"):
        gallery.store.compact()
    assert gallery.store.meta["shard"] == "shard-8"


def test_a_compaction_that_fails_leaves_the_old_rows_and_no_new_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path / "g") as gallery:

        def no_room(folder: Path, needed: int, doing: str) -> None:
            if doing == "compacting":
                raise GalleryError("expected 1 MB free, got 0 MB")

        with monkeypatch.context() as patched:
            patched.setattr(files, "require_room", no_room)
            with pytest.raises(GalleryError, match=r"could not be compacted: expected 1 MB free.*forget again"):
                gallery.forget("Ms Findable")
        assert [p.name for p in (tmp_path / "g").glob("shard-*")] == ["shard-1"] and len(gallery) == 54
        assert gallery.forget("Ms Findable") == 0 and holds(tmp_path / "g", b"Ms Findable") == []


def test_a_forget_whose_audit_line_cannot_be_written_erases_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with filled(tmp_path / "g") as gallery:

        def full(file: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(audit_file.os, "fsync", full)
        monkeypatch.setattr(files, "write_whole", lambda path, data: path.write_bytes(data))
        with pytest.raises(GalleryError, match=r"6 rows were removed \(forget\).*No space left"):
            gallery.forget("Ms Findable")
        assert holds(tmp_path / "g", b"Ms Findable") == [] and len(gallery) == 54


def test_closing_twice_is_fine_and_everything_else_after_it_says_closed(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    gallery.close()
    gallery.close()
    calls = {
        "add": lambda: gallery.add(rows(1), people=["a"]),
        "search": lambda: gallery.search(rows(1)),
        "rows": gallery.rows,
        "ids": gallery.ids,
        "len": lambda: len(gallery),
        "forget": lambda: gallery.forget("a"),
        "expire": lambda: gallery.expire(1),
        "retain": lambda: gallery.retain("gate", 1),
        "flush": gallery.flush,
        "export": lambda: gallery.export(tmp_path / "x.parquet"),
        "snapshot": lambda: gallery.snapshot(tmp_path / "copy"),
        "merge": lambda: Gallery("f", 12).merge(gallery),
        "describe": gallery.describe,
    }
    for call in calls.values():
        with pytest.raises(GalleryError, match=r"got one that is closed\. Open it again"):
            call()
    assert gallery.fingerprint == "f" and gallery.dimension == 12


def test_a_flush_that_fails_is_tried_again_until_it_succeeds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flusher_file, "LONGEST_WAIT", 0.02)
    calls, done = [], threading.Event()

    def flush() -> None:
        calls.append(time.monotonic())
        if len(calls) < 4:
            raise OSError("disk full")
        done.set()

    flusher = Flusher(flush, 0.01)
    flusher.wanted()
    assert done.wait(20)
    time.sleep(0.1)
    flusher.stop()
    said = capsys.readouterr().err
    assert len(calls) == 4, "and not after it has succeeded"
    assert said.count("disk full") == 1 and "flushed again" in said


def test_a_flusher_of_a_process_without_stderr_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flusher_file.sys, "stderr", None)
    monkeypatch.setattr(flusher_file, "LONGEST_WAIT", 0.02)
    calls = threading.Semaphore(0)

    def flush() -> None:
        calls.release()
        raise OSError("disk full")

    flusher = Flusher(flush, 0.01)
    flusher.wanted()
    assert calls.acquire(timeout=20) and calls.acquire(timeout=20)
    flusher.stop()


def test_a_gallery_merged_with_itself_is_refused_and_with_a_twin_ends() -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(1500, seed=1), people=["a"] * 1500)
    with pytest.raises(GalleryError, match="expected another gallery to merge, got this one"):
        gallery.merge(gallery)
    with pytest.raises(GalleryError, match="expected another gallery to merge, got this one"):
        gallery.merge(Gallery("f", 12, store=gallery.store))
    assert len(gallery) == 1500
    other = Gallery("f", 12)
    assert other.merge(gallery) == 1500
    assert sorted(other.rows().sources) == sorted(gallery.rows().sources)


def test_two_galleries_merged_into_each_other_at_once_end() -> None:
    some = [Gallery("f", 12), Gallery("f", 12)]
    for gallery in some:
        gallery.add(rows(1200), people=["a"] * 1200)
    threads = [threading.Thread(target=a.merge, args=[b], daemon=True) for a, b in (some, some[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert min(len(gallery) for gallery in some) == 2400


@pytest.mark.parametrize("kind", ["memory", "folder"])
def test_a_damaged_page_imports_nothing(tmp_path: Path, kind: str) -> None:
    import pyarrow.parquet as pq

    source = Gallery("f", 12)
    source.add(rows(3000), people=[f"p{i}" for i in range(3000)])
    source.export(tmp_path / "x.parquet")
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    about = pq.ParquetFile(tmp_path / "x.parquet").metadata
    at = about.row_group(about.num_row_groups - 1).column(1).data_page_offset
    data[at + 40 : at + 44] = bytes(255 - b for b in data[at + 40 : at + 44])
    (tmp_path / "bad.parquet").write_bytes(data)
    gallery = Gallery("f", 12) if kind == "memory" else Gallery.create(tmp_path / "g", "f", 12)
    with gallery:
        gallery.add(rows(2, seed=3), people=["x", "y"])
        with pytest.raises(GalleryError, match=r"bad\.parquet, which is damaged"):
            gallery.import_(tmp_path / "bad.parquet")
        assert sorted(gallery.rows().people) == ["x", "y"]
        assert gallery.import_(tmp_path / "x.parquet") == 3000


def test_a_merge_that_fails_half_way_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    gallery, other = Gallery("f", 12), Gallery("f", 12)
    gallery.add(rows(2), people=["x", "y"])
    other.add(rows(2500), people=["a"] * 2500)
    real, calls = type(gallery.store).add, []

    def add(self: Any, some: Any) -> None:
        calls.append(len(some))
        if len(calls) == 3:
            raise GalleryError("no")
        real(self, some)

    monkeypatch.setattr(type(gallery.store), "add", add)
    with pytest.raises(GalleryError, match="no"):
        gallery.merge(other)
    assert calls == [1000, 1000, 500] and sorted(gallery.rows().people) == ["x", "y"]


def test_an_exported_file_has_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    gallery = Gallery("f", 12)
    gallery.add(rows(1), people=["a"])
    before = os.umask(0o077)
    try:
        gallery.export(tmp_path / "x.parquet")
    finally:
        os.umask(before)
    assert (tmp_path / "x.parquet").stat().st_mode & 0o777 == 0o600
    with pytest.raises(DpmError, match="expected to write"):
        gallery.export(tmp_path / "nowhere" / "x.parquet")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("milvus://h:abc/c", "h:abc"),
        ("milvus://h:99999/c", "range"),
        ("qdrant://h:1/c?shards=x", "shards is 'x'"),
        ("qdrant://h:1/c?shards=", "shards is ''"),
        ("milvus://h:1/c?replicas=0", "replicas is '0'"),
        ("milvus://h:1/c?shard=2", "shard is unknown"),
        ("redis://h:1/c", "redis://h:1/c"),
        ("qdrant://h:1", "qdrant://h:1"),
        ("qdrant:///c", "qdrant:///c"),
        ("qdrant://[::1/c", "Invalid IPv6"),
    ],
)
def test_an_address_that_is_not_understood_is_refused_in_one_line(place: str, says: str) -> None:
    with pytest.raises(GalleryError, match="expected a folder, milvus://") as error:
        Gallery.create(place, "f", 12)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_a_token_is_not_repeated_in_an_error() -> None:
    with pytest.raises(GalleryError) as error:
        Gallery.open("qdrant://h:1/c?token=secret&shards=x&y=1")
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("kind", ["qdrant", "milvus"])
def test_a_server_that_does_not_answer_is_named(kind: str) -> None:
    with pytest.raises(GalleryError, match=f"expected a {kind.title()} server at http://127.0.0.1:9"):
        Gallery.open(f"{kind}://127.0.0.1:9/c")


def test_an_error_of_a_servers_library_names_the_server_and_the_call() -> None:
    class Client:
        answer = 42

        def search_all(self) -> None:
            raise ConnectionResetError("reset by peer\nand more")

    client = ServerClient(Client(), "the Qdrant server at http://h:1")
    assert client.answer == 42
    with pytest.raises(
        GalleryError, match=r"expected the Qdrant server at http://h:1 to search all, got reset by peer\."
    ):
        client.search_all()


def test_create_at_a_file_and_below_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place in (tmp_path / "file", tmp_path / "file" / "g"):
        with pytest.raises(GalleryError, match=r"expected a (new )?folder"):
            Gallery.create(place, "f", 12)
    assert (tmp_path / "file").read_text() == "x"


def test_saved_rows_come_back_and_a_foreign_store_is_not_saved(tmp_path: Path) -> None:
    with filled(tmp_path / "g", 3) as gallery, pytest.raises(GalleryError, match="expected a gallery in memory"):
        gallery.save(tmp_path / "x.safetensors")
    memory = Gallery("f", 12)
    memory.add(rows(5), people=list("abcde"))
    memory.save(tmp_path / "x.safetensors")
    np.testing.assert_array_equal(Gallery.load(tmp_path / "x.safetensors").rows().features, memory.rows().features)
