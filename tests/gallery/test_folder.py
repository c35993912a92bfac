"""A gallery in a folder: kill −9, a full disk, a second writer, damage, a newer version, snapshots, forgotten bytes."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from oracle import rows

from dpm_edge import Gallery
from dpm_edge.errors import GalleryError

ROUNDS = 20


def run(script: str, *arguments: object) -> subprocess.Popen:
    """A Python process with its stdout on a pipe; `rows` is there."""
    head = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom oracle import rows\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_every_acknowledged_row_survives_kill_9(tmp_path: Path) -> None:
    """One writer a round is killed at a random moment between adds, deletes and flushes."""
    place, dice = tmp_path / "g", random.Random(0)
    Gallery.create(place, "f", 12).close()
    script = """
        from dpm_edge import Gallery
        gallery = Gallery.open(sys.argv[1], flush_every=0.02)
        at = int(sys.argv[2])
        while True:
            n = 1 + at % 40
            ids = range(at, at + n)
            gallery.add(rows(n, seed=at), people=ids, ids=ids)
            print("added", at, n, flush=True)
            if at % 3 == 0:
                gallery.delete([at])
                print("deleted", at, 1, flush=True)
            at += n
    """
    alive: dict[int, int] = {}
    begun = 0
    for _ in range(ROUNDS):
        writer = run(script, place, begun)
        assert writer.stdout is not None
        first = writer.stdout.readline()
        assert first, writer.stderr.read() if writer.stderr else ""
        time.sleep(dice.uniform(0, 0.25))
        writer.kill()
        said = [first, *writer.stdout.read().splitlines(keepends=True)]
        for line in [one for one in said if one.endswith("\n")]:  # a line cut short was not acknowledged
            what, at, n = line.split()
            for name in range(int(at), int(at) + int(n)):
                if what == "added":
                    alive[name] = int(at)
                else:
                    del alive[name]
        writer.wait()
        with Gallery.open(place) as gallery:
            held = gallery.rows()
            there = {int(name): i for i, name in enumerate(held.ids)}
            lost = set(alive) - set(there)
            begun = max([*alive, *there]) + 50
            # what was in flight may be there or not: one batch of 40 at the most, and one deleted row
            assert len(lost) <= 1 and lost <= {at for at in alive.values() if at % 3 == 0}, f"{len(lost)} rows lost"
            assert len(set(there) - set(alive)) <= 40
            for name in random.Random(1).sample(sorted(set(alive) - lost), min(20, len(alive) - len(lost))):
                at = alive[name]
                wanted = rows(1 + at % 40, seed=at).features[name - at]
                np.testing.assert_allclose(held.features[there[name]], wanted, atol=1e-3)
                assert held.people[there[name]] == str(name)
            gallery.delete(sorted(set(there) - set(alive)))
        alive = {name: at for name, at in alive.items() if name in there}
    assert len(alive) > 100


def test_a_second_process_is_refused_by_the_firsts_number(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", "f", 12):
        second = run("from dpm_edge import Gallery\nGallery.open(sys.argv[1])", tmp_path / "g")
        _, said = second.communicate(timeout=60)
        assert second.returncode == 1 and f"open in process {os.getpid()}" in said and "GalleryInUse" in said
    Gallery.open(tmp_path / "g").close()


def test_a_full_disk_refuses_the_rows_and_keeps_the_others(tmp_path: Path) -> None:
    script = """
        import resource, signal
        from dpm_edge import Gallery
        from dpm_edge.errors import GalleryError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        gallery = Gallery.create(sys.argv[1], "f", 12)
        gallery.add(rows(50), people=range(50))
        gallery.flush()
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        kept = 50
        try:
            for i in range(2000):
                gallery.add(rows(50, seed=i), people=range(50), payloads=[{"x": "y" * 50000}] * 50)
                kept += 50
        except GalleryError as error:
            print(error)
        print(kept, flush=True)
        import os
        os._exit(0)
    """
    writer = run(script, tmp_path / "g")
    said, wrong = writer.communicate(timeout=120)
    assert "Free some space" in said, said + wrong
    kept = int(said.split()[-1])
    with Gallery.open(tmp_path / "g") as gallery:
        assert kept <= len(gallery) <= kept + 50


@pytest.mark.parametrize("damage", ["no description", "not JSON", "newer", "no shard", "cut short"])
def test_damage_is_named(tmp_path: Path, damage: str) -> None:
    place = tmp_path / "g"
    with Gallery.create(place, "f", 12) as gallery:
        gallery.add(rows(50), people=range(50))
    about = place / "gallery.json"
    meta = json.loads(about.read_text())
    if damage == "no description":
        about.unlink()
    elif damage == "not JSON":
        about.write_text("{")
    elif damage == "newer":
        about.write_text(json.dumps({**meta, "format": 99}))
    elif damage == "no shard":
        (place / "shard-1").rename(tmp_path / "elsewhere")
    else:
        (place / "sizes.json").unlink()  # as if it had never been flushed
        for file in (place / "shard-1" / "segments").rglob("*.json"):
            file.write_bytes(file.read_bytes()[:-4])
    says = {"newer": "format 99", "no shard": "Restore a snapshot", "cut short": "Restore a snapshot"}
    with pytest.raises(GalleryError, match=says.get(damage, "expected a gallery in")):
        Gallery.open(place)


FILES = ("mutable_id_tracker.mappings", "mutable_id_tracker.versions", "chunk_0.mmap", "page_0.dat", "status.dat")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["half", "gone"])
def test_a_truncated_segment_is_named_and_a_snapshots_folder_takes_its_place(
    tmp_path: Path, name: str, damage: str
) -> None:
    """Qdrant Edge itself opens a shard whose list of ids was cut short, with fewer rows."""
    place = tmp_path / "g"
    with Gallery.create(place, "f", 12) as gallery:
        gallery.add(rows(2500, seed=1), people=range(2500), ids=range(2500))
        gallery.snapshot(tmp_path / "copy")
    for file in (place / "shard-1" / "segments").rglob(name):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]) if damage == "half" else file.unlink()
    with pytest.raises(
        GalleryError, match=rf"{name} of \d+ bytes or more, got .*Restore a snapshot: copy its folder here"
    ):
        Gallery.open(place)
    shutil.rmtree(place)  # as the error says
    shutil.copytree(tmp_path / "copy", place)
    with Gallery.open(place) as gallery:
        held = gallery.rows()
        assert held.ids.tolist() == list(range(2500)) and held.people == [str(i) for i in range(2500)]
        np.testing.assert_allclose(held.features, rows(2500, seed=1).features, atol=1e-3)


def test_a_panic_of_the_engine_is_an_error_like_others(tmp_path: Path) -> None:
    Gallery.create(tmp_path / "g", "f", 12).close()
    (tmp_path / "g" / "sizes.json").unlink()
    for file in (tmp_path / "g" / "shard-1" / "segments").rglob("vectors/status.dat"):
        file.write_bytes(b"")
    with pytest.raises(GalleryError, match="got a damaged one"):
        Gallery.open(tmp_path / "g")


def test_a_snapshot_taken_while_writing_opens_and_is_of_one_moment(tmp_path: Path) -> None:
    with Gallery.create(tmp_path / "g", "f", 12, flush_every=0.01) as gallery:
        stop = threading.Event()

        def write() -> None:
            at = 0
            while not stop.is_set():
                gallery.add(rows(7, seed=at), people=range(7))
                at += 1

        thread = threading.Thread(target=write)
        thread.start()
        try:
            time.sleep(0.1)
            before = len(gallery)
            gallery.snapshot(tmp_path / "copy")
            after = len(gallery)
        finally:
            stop.set()
            thread.join()
        with pytest.raises(GalleryError, match="exists"):
            gallery.snapshot(tmp_path / "copy")
    with Gallery.open(tmp_path / "copy") as copy:
        assert before <= len(copy) <= after and len(copy) % 7 == 0
        copy.add(rows(1), people=["more"])
        assert copy.forget("more") == 1


def holds(folder: Path, *needles: bytes) -> list[str]:
    """Files below a folder in which any of the needles stands."""
    return [str(p) for p in folder.rglob("*") if p.is_file() and any(n in p.read_bytes() for n in needles)]


def test_a_forgotten_person_leaves_no_byte_in_the_folder(tmp_path: Path) -> None:
    place, some = tmp_path / "g", rows(300, seed=1)
    with Gallery.create(place, "f", 12) as gallery:
        people = ["Ms Findable" if i % 50 == 5 else f"p{i}" for i in range(300)]
        ids = gallery.add(some, people=people)
        gallery.flush()
        halves = [array[55].astype("<f2").tobytes() for array in (some.features, some.masks)]
        needles = [b"Ms Findable", halves[1]]
        assert holds(place, needles[0]) and holds(place, needles[1])
        assert gallery.forget("Ms Findable") == 6 and len(gallery) == 294
        assert holds(place, *needles, halves[0]) == []
        assert gallery.search(some.take([55]), 1).people[0, 0] != "Ms Findable"
        gallery.add(rows(1, seed=2), people=["later"])
    assert holds(place, *needles, halves[0]) == []
    lines = [json.loads(line) for line in (place / "audit.jsonl").read_text().splitlines()]
    assert [(line["what"], line["rows"]) for line in lines] == [("forget", 6)]
    assert lines[0]["ids"] == [int(ids[i]) for i in range(5, 300, 50)]
    with Gallery.open(place) as gallery:
        assert len(gallery) == 295 and gallery.delete(ids[:2]) == 2 and len(gallery) == 293
