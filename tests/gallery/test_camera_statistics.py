"""Statistics of a gallery's cameras follow its rows through every change, restart and other writer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracle import biased, rows
from qdrant_client import QdrantClient

from dpm_edge import Gallery
from dpm_edge.centring import CameraStatistics
from dpm_edge.errors import GalleryError
from dpm_edge.gallery.stores import qdrant, qdrant_edge
from dpm_edge.gallery.stores.store import new_meta


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_statistics_in_memory_are_those_of_the_rows_as_they_are_kept(dtype: str) -> None:
    gallery = Gallery("f", 12, dtype)
    known = gallery.camera_statistics()
    assert known.counts == {}
    some, cameras = biased(300, 10)
    for part in (slice(0, 1), slice(1, 290), slice(290, 300)):
        gallery.add(some.take(np.arange(300)[part]), people=[""] * len(cameras[part]), cameras=cameras[part])
    same_as_rows(gallery)


def same_as_rows(gallery: Gallery) -> None:
    """The kept statistics are those of the rows, counted by loops."""
    kept, there = gallery.camera_statistics(), gallery.rows()
    counts: dict[str, int] = {}
    sums: dict[str, np.ndarray] = {}
    for f, camera in zip(there.features.astype(np.float64), there.cameras):
        counts[camera] = counts.get(camera, 0) + 1
        sums[camera] = sums.get(camera, 0) + f / np.linalg.norm(f)
    assert kept.counts == counts
    for camera, total in sums.items():
        np.testing.assert_allclose(kept.sums[camera], total, atol=1e-9)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(1, 20)),
        st.tuples(st.just("delete"), st.integers(0, 30)),
        st.tuples(st.just("forget"), st.integers(0, 2)),
        st.tuples(st.just("look"), st.just(0)),
        st.tuples(st.just("reopen"), st.just(0)),
        st.tuples(st.just("merge"), st.integers(1, 5)),
    ),
    max_size=12,
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_statistics_follow_any_sequence_of_changes(steps: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    place = tmp_path_factory.mktemp("any") / "g"
    folder, memory = Gallery.create(place, "f", 12), Gallery("f", 12, "float16")
    try:
        for seed, (what, count) in enumerate(steps):
            some, cameras = biased(count if what in ("add", "merge") else 0, seed)
            people = [f"p{i % 3}" for i in range(len(some))]
            if what == "reopen":
                folder.close()
                folder = Gallery.open(place)
            for gallery in (folder, memory):
                if what == "add":
                    gallery.add(some, people=people, cameras=cameras)
                elif what == "merge":
                    other = Gallery("f", 12)
                    other.add(some, people=people, cameras=cameras)
                    gallery.merge(other)
                elif what == "delete":
                    gallery.delete(gallery.ids()[:count])
                elif what == "forget":
                    gallery.forget(f"p{count}")
                elif what == "look":
                    same_as_rows(gallery)
        same_as_rows(folder)
        same_as_rows(memory)
    finally:
        folder.close()


@pytest.fixture
def no_reading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """After it is called, no folder reads all of its rows' vectors."""

    def refuse(self: object, where: object, *, vectors: bool) -> object:
        raise AssertionError("every row is read")

    return lambda: monkeypatch.setattr(qdrant_edge.EdgeStore, "scan", refuse)


def closed_folder(place: Path) -> Path:
    with Gallery.create(place, "f", 12) as gallery:
        some, cameras = biased(30, 11)
        gallery.add(some, people=[f"p{i % 3}" for i in range(30)], cameras=cameras)
        gallery.camera_statistics()
    assert (place / "cameras.json").exists()
    return place


def test_a_closed_folder_opens_with_its_statistics(tmp_path: Path, no_reading: Callable) -> None:
    place = closed_folder(tmp_path / "g")
    with Gallery.open(place) as gallery:
        want = gallery.camera_statistics()
        gallery.snapshot(tmp_path / "copy")
    no_reading()
    for other in (place, tmp_path / "copy"):
        with Gallery.open(other, read_only=True) as gallery:
            assert gallery.camera_statistics().counts == want.counts
    more, cameras = biased(2, 12)
    with Gallery.open(place) as gallery:
        gallery.add(more, people=["", ""], cameras=cameras)
        assert not (place / "cameras.json").exists()
    with Gallery.open(place) as gallery:
        assert sum(gallery.camera_statistics().counts.values()) == 32


def test_a_folder_without_statistics_reads_them_from_its_rows(tmp_path: Path) -> None:
    place = closed_folder(tmp_path / "g")
    for damage in (lambda file: file.unlink(), lambda file: file.write_text("{"), lambda file: file.write_text("[]")):
        damage(place / "cameras.json")
        with Gallery.open(place) as gallery:
            same_as_rows(gallery)
        assert (place / "cameras.json").exists()


def test_statistics_from_before_a_change_by_an_older_version_are_not_taken(tmp_path: Path) -> None:
    place = closed_folder(tmp_path / "g")
    kept = (place / "cameras.json").read_bytes()
    with Gallery.open(place) as gallery:
        some, cameras = biased(5, 13)
        gallery.delete(gallery.ids()[:5])
        gallery.add(some, people=[""] * 5, cameras=cameras)
    (place / "cameras.json").write_bytes(kept)  # as many rows, but others
    with Gallery.open(place) as gallery:
        same_as_rows(gallery)


KILLED = """
import sys
sys.path.insert(0, {tests!r})
from oracle import rows
from dpm_edge import Gallery
gallery = Gallery.open({place!r})
gallery.camera_statistics()
gallery.delete(gallery.ids()[:7])
gallery.add(rows(7, seed=14), people=[""] * 7, cameras=["a"] * 7)
print("changed", flush=True)
sys.stdin.read()
"""


def test_statistics_are_right_after_a_writer_was_killed(tmp_path: Path) -> None:
    place = closed_folder(tmp_path / "g")
    code = KILLED.format(tests=str(Path(__file__).parent), place=str(place))
    writer = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None and writer.stdout.readline() == b"changed\n"
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
    with Gallery.open(place) as gallery:
        assert len(gallery) == 30
        same_as_rows(gallery)


def test_nothing_of_a_forgotten_person_is_in_the_folders_statistics(tmp_path: Path) -> None:
    place = tmp_path / "g"
    some, _ = biased(4, 15)
    with Gallery.create(place, "f", 12) as gallery:
        gallery.add(some, people=["anna", "b", "c", "d"], cameras=["hall", "x", "x", "x"])
        gallery.camera_statistics()
    assert "hall" in (place / "cameras.json").read_text()
    with Gallery.open(place) as gallery:
        gallery.forget("anna")
        assert not (place / "cameras.json").exists()
        same_as_rows(gallery)
    assert "hall" not in (place / "cameras.json").read_text()


def test_a_failed_add_leaves_the_statistics_of_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Gallery.create(tmp_path / "g", "f", 12) as gallery:
        some, cameras = biased(10, 16)
        gallery.add(some, people=[""] * 10, cameras=cameras)
        gallery.camera_statistics()
        with monkeypatch.context() as broken:

            def refuse(*_: object) -> None:
                raise GalleryError("expected room, got none")

            broken.setattr(qdrant_edge.EdgeStore, "_update", refuse)
            with pytest.raises(GalleryError):
                gallery.add(some, people=[""] * 10, cameras=cameras)
        same_as_rows(gallery)


def test_a_copy_of_the_statistics_is_saved_and_read(tmp_path: Path) -> None:
    gallery = Gallery("f", 12)
    some, cameras = biased(10, 17)
    gallery.add(some, people=[""] * 10, cameras=cameras)
    known = gallery.camera_statistics()
    known.save(tmp_path / "site.json")
    assert CameraStatistics.load(tmp_path / "site.json").counts == known.counts
    known.counts.clear()
    assert gallery.camera_statistics().counts


def test_rows_of_another_writer_are_found_and_counted_once_they_are_more_than_a_tenth() -> None:
    client, meta = QdrantClient(":memory:"), new_meta("f", 12, True)
    ours = Gallery("f", 12, store=qdrant.QdrantStore.create(client, "g", meta))
    theirs = Gallery("f", 12, store=qdrant.QdrantStore(client, "g", meta))
    some, cameras = biased(40, 19)
    ours.add(some, people=[""] * 40, cameras=cameras, ids=range(40))
    ask = {"centre": True, "query_cameras": ["a"]}
    assert ours.search(rows(1), 60, **ask).found.sum() == 40
    theirs.add(rows(2, seed=20), people=["", ""], cameras=["new", "new"], ids=[40, 41])
    assert set(ours.search(rows(1), 60, **ask).rows[0, :42].tolist()) == set(range(42))
    assert "new" not in ours.camera_statistics().counts
    theirs.add(rows(3, seed=21), people=[""] * 3, cameras=["new"] * 3, ids=[42, 43, 44])
    assert ours.camera_statistics().counts["new"] == 5
    assert ours.search(rows(1), 60, **ask).found.sum() == 45
    same_as_rows(ours)
