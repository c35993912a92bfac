"""The store: what was acknowledged is there after a kill, and what was forgotten is nowhere."""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpm_edge.errors import WatchStoreError
from dpm_edge.watch.events import Event
from dpm_edge.watch.records import Correction, TrackRecord
from dpm_edge.watch.store import WatchStore

WRITER = Path(__file__).with_name("store_writer.py")


def event(number: int, identity: str | None = None, **more: object) -> Event:
    fields = {"kind": "entered", "camera": "door", "wall": float(number), **more}
    return Event(rule="r", seconds=float(number), id=f"event-{number}", identity=identity, **fields)  # type: ignore[arg-type]


def track(number: int, identity: str | None, camera: str = "door") -> TrackRecord:
    return TrackRecord(camera=camera, track=str(number), first=number, last=number + 1.0, identity=identity)


def test_events_come_back_as_they_were_and_once(tmp_path: Path) -> None:
    with WatchStore(tmp_path / "s.sqlite3") as store:
        store.add_events([event(1, "anna"), event(2)])
        store.add_events([event(2)])
    with WatchStore(tmp_path / "s.sqlite3") as store:
        assert store.events() == [(1, event(1, "anna")), (2, event(2))]


def test_events_are_found_by_kind_camera_identity_and_time() -> None:
    with WatchStore(":memory:", run="") as store:
        store.add_events([event(1, "anna"), event(2, "ben", kind="left"), event(3, "anna", camera="yard")])
        numbers = lambda **how: [seq for seq, _ in store.events(**how)]
        assert numbers(kinds=["left"]) == [2]
        assert numbers(camera="yard") == [3]
        assert numbers(identity="anna") == [1, 3]
        assert numbers(since=2.0, until=3.0) == [2]
        assert numbers(newest=True, limit=2) == [3, 2]


def test_twenty_kills_at_random_moments_lose_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    rng = random.Random(1)
    acknowledged: list[int] = []
    for _ in range(20):
        first = acknowledged[-1] + 1 if acknowledged else 0
        writer = subprocess.Popen(
            [sys.executable, str(WRITER), str(path), str(first)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        acknowledged.append(int(writer.stdout.readline()))  # it is running
        time.sleep(rng.uniform(0, 0.05))
        writer.kill()
        rest = writer.stdout.read().splitlines(keepends=True)
        acknowledged += [int(line) for line in rest if line.endswith("\n")]
        writer.wait()
    with WatchStore(path) as store:
        kept = {one.id for _, one in store.events(limit=10**6)}
        assert {f"event-{number}" for number in acknowledged} <= kept
        assert {f"P{number}" for number in acknowledged} <= set(store.names())
        assert len(acknowledged) >= 20
    assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_two_processes_on_one_store_are_refused_and_the_holder_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    writer = subprocess.Popen([sys.executable, str(WRITER), str(path), "0"], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    try:
        writer.stdout.readline()
        with pytest.raises(WatchStoreError, match=f"process {writer.pid} holds"):
            WatchStore(path)
    finally:
        writer.kill()
        writer.wait()
    WatchStore(path).close()


def fill(store: WatchStore) -> None:
    store.put_tracks([track(1, "Zanzibarita"), track(2, "ben")], {("door", "1"): b"JPEG-Zanzibarita"})
    moved = event(3, "ben", kind="merged", previous_ids=("Zanzibarita",))
    store.add_events([event(1, "Zanzibarita"), event(2, "ben"), moved])
    name = Correction(kind="name", wall=1.0, body={"identity": "Zanzibarita", "name": "Frau Zanzibarita"})
    store.add_correction(name, ["Zanzibarita"])


def test_forget_reaches_tracks_thumbnails_events_chains_corrections_and_names() -> None:
    with WatchStore(":memory:", run="") as store:
        fill(store)
        assert store.forget("Zanzibarita") == 5
        assert [one.identity for _, one in store.events()] == ["ben"]
        assert [one.identity for one in store.tracks()] == ["ben"]
        assert (store.corrections(), store.names(), store.thumbnail("Zanzibarita")) == ([], {}, None)


def test_forget_leaves_no_bytes_on_the_disk(tmp_path: Path) -> None:
    with WatchStore(tmp_path / "s.sqlite3") as store:
        fill(store)
        before = b"".join(path.read_bytes() for path in tmp_path.iterdir())
        store.forget("Zanzibarita")
        after = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert b"Zanzibarita" in before and b"Zanzibarita" not in after


def test_retention_deletes_what_is_older(tmp_path: Path) -> None:
    with WatchStore(tmp_path / "s.sqlite3") as store:
        fill(store)
        assert store.expire(2.5) == 3
        assert [one.id for _, one in store.events()] == ["event-3"]
        assert [one.identity for one in store.tracks()] == ["ben"]
        assert b"JPEG-Zanzibarita" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_numbers_go_on_after_everything_was_deleted() -> None:
    with WatchStore(":memory:", run="") as store:
        store.add_events([event(1)])
        store.expire(100.0)
        store.add_events([event(200)])
        assert [seq for seq, _ in store.events()] == [2]


def test_an_output_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    with WatchStore(path) as store:
        store.add_events([event(1)])
        store.register_output("hook")
        store.add_events([event(2), event(3)])
        assert [seq for seq, _ in store.undelivered("hook")] == [2, 3]
        store.delivered("hook", 2)
    with WatchStore(path) as store:
        store.register_output("hook")
        assert [seq for seq, _ in store.undelivered("hook")] == [3] and store.backlog("hook") == 1


def test_merge_moves_tracks_and_split_takes_one_out() -> None:
    with WatchStore(":memory:", run="") as store:
        store.put_tracks([track(1, "P1"), track(2, "P2")])
        merge = Correction(kind="merge", wall=0, body={"identity": "P2", "into": "P1"})
        store.add_correction(merge, ["P1", "P2"])
        assert {one.identity for one in store.tracks()} == {"P1"}
        split = {"identity": "P1", "into": "P3", "camera": "door", "track": "2"}
        store.add_correction(Correction(kind="split", wall=0, body=split), ["P1", "P3"])
        assert {one.track: one.identity for one in store.tracks()} == {"1": "P1", "2": "P3"}
        assert [one.kind for one in store.corrections()] == ["merge", "split"]


def test_people_have_their_cameras_and_times() -> None:
    with WatchStore(":memory:", run="") as store:
        store.put_tracks([track(1, "anna"), track(5, "anna", "yard"), track(2, None)])
        (anna,) = store.people()
        assert (anna["first"], anna["last"], anna["cameras"], anna["tracks"]) == (1, 6, ["door", "yard"], 2)


def test_what_is_no_store_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "s.sqlite3").write_bytes(b"no database at all, but long enough to be taken for one" * 10)
    with pytest.raises(WatchStoreError, match="Move it away"):
        WatchStore(tmp_path / "s.sqlite3")


def test_a_newer_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite3"
    WatchStore(path).close()
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(WatchStoreError, match="got version 99"):
        WatchStore(path)


def test_a_full_disk_loses_nothing_that_was_kept(tmp_path: Path) -> None:
    with WatchStore(tmp_path / "s.sqlite3") as store:
        store.add_events([event(1)])
        store._database.execute("PRAGMA max_page_count = 1")
        with pytest.raises(WatchStoreError, match="full disk"):
            store.add_events([event(n, "x" * 5000) for n in range(2, 40)])
        store._database.execute("PRAGMA max_page_count = 100000")
        store.add_events([event(50)])
        assert [one.id for _, one in store.events()] == ["event-1", "event-50"]
