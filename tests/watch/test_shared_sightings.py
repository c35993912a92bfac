"""Programs that share a gallery: what one of them knows about time and place, and what is said at its page, the others
know too. Here both are in one process, over Qdrant's local mode, and exchange when a test says so.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient

from dpm_edge import Gallery
from dpm_edge.errors import GalleryError, SiteError
from dpm_edge.gallery.rows import Where
from dpm_edge.gallery.stores.qdrant import QdrantStore
from dpm_edge.gallery.stores.store import new_meta
from dpm_edge.watch import shared_sightings
from dpm_edge.watch.decisions import Decision
from dpm_edge.watch.identities import Identities
from dpm_edge.watch.shared_sightings import DIMENSION, FINGERPRINT, SharedSightings, SharedStay
from dpm_edge.watch.site_config import CameraConfig, Site, part_of

D = 64
CAMERAS = ("door", "yard")


def sightings() -> QdrantStore:
    return QdrantStore.create(QdrantClient(":memory:"), "site_sightings", new_meta(FINGERPRINT, DIMENSION, False))


class Program:
    """One program's identities, that see people with a look each."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.shared = SharedSightings(group.store, clock=lambda: group.now)
        self.identities = Identities(group.gallery, cameras=CAMERAS, shared=self.shared, **group.options)  # type: ignore[arg-type]

    def see(self, camera: str, track: int, person: str, start: float, crops: int = 6) -> Decision:
        """Show a track's crops, half a second apart; the decision after the last."""
        for i in range(crops):
            decision = self.identities.observe(camera, track, start + 0.5 * i, self.group.crop(person))
        return decision


class Group:
    """Two programs, at the door and in the yard."""

    def __init__(self, **options: object) -> None:
        self.options, self.now = options, 1e6
        self.rng = np.random.default_rng(0)
        self.looks: dict[str, NDArray] = {}
        self.gallery = Gallery("made-up", D)
        self.store = sightings()
        self.door, self.yard = Program(self), Program(self)

    def crop(self, person: str) -> NDArray[np.float32]:
        if person not in self.looks:
            look = self.rng.normal(size=D)
            self.looks[person] = look / np.linalg.norm(look)
        feature = self.looks[person] + 0.5 * self.rng.normal(size=D) / np.sqrt(D)
        return (feature / np.linalg.norm(feature)).astype(np.float32)[None]

    def exchange(self, *programs: Program) -> None:
        """Let everything that was told be heard."""
        everybody = programs or (self.door, self.yard)
        for one in (*everybody, *everybody):
            self.now += 1.0
            one.shared.exchange()
            one.identities.hear(one.shared.news())


def test_somebody_whom_one_program_saw_is_known_to_the_other() -> None:
    group = Group()
    first = group.door.see("door", 1, "anna", 0)
    group.door.identities.end("door", 1)
    group.exchange()
    again = group.yard.see("yard", 1, "anna", 100)
    assert (again.state, again.identity) == ("known", first.identity)


def test_new_identities_of_two_programs_differ() -> None:
    group = Group()
    seen = [group.door.see("door", i, f"a{i}", 100 * i).identity for i in range(5)]
    seen += [group.yard.see("yard", i, f"b{i}", 100 * i).identity for i in range(5)]
    assert len(set(seen)) == 10


def test_nobody_is_in_two_places_at_once_whichever_program_sees_them() -> None:
    group = Group()
    group.door.see("door", 1, "anna", 0)
    group.door.identities.end("door", 1)
    back = group.door.see("door", 2, "anna", 100)  # she is back, and her track goes on
    group.exchange()
    twin = group.yard.see("yard", 1, "anna", 101)
    assert twin.state == "unknown" and twin.identity != back.identity


def test_a_way_between_two_programs_cameras_takes_its_time() -> None:
    for gap, same in ((3.0, False), (12.0, True)):
        group = Group(travel={("door", "yard"): 10.0})
        first = group.door.see("door", 1, "anna", 0)
        group.door.identities.end("door", 1)
        group.exchange()
        assert (group.yard.see("yard", 1, "anna", 2.5 + gap).identity == first.identity) is same


def test_of_two_programs_that_took_somebody_for_one_person_the_first_stays() -> None:
    group = Group()
    first = group.door.see("door", 1, "anna", 0)
    group.door.identities.end("door", 1)
    group.exchange()
    at_door = group.door.see("door", 2, "anna", 100)
    in_yard = group.yard.see("yard", 1, "anna", 100.25)  # before anything could be heard
    assert at_door.identity == in_yard.identity == first.identity
    group.exchange()
    still, gone = group.door.identities.decision("door", 2), group.yard.identities.decision("yard", 1)
    assert still is not None and gone is not None
    assert still.identity == first.identity and gone.state == "unknown" and gone.previous_ids == (first.identity,)
    assert [one.kind for one in group.yard.identities.changes()] == ["split"]


def test_a_merge_reaches_the_other_programs_tracks_and_rows() -> None:
    group = Group()
    one = group.door.see("door", 1, "anna", 0).identity
    group.door.identities.end("door", 1)
    other = group.yard.see("yard", 1, "anna in a coat", 100).identity
    group.exchange()
    assert one and other and one != other
    group.door.identities.merge(other, one)
    group.yard.identities.end("yard", 1)  # its rows are written under the old identity
    assert group.gallery.count(person=other) == 6
    group.exchange()
    assert group.gallery.count(person=other) == 0 and group.gallery.count(person=one) == 12
    assert group.yard.see("yard", 2, "anna in a coat", 200).identity == one


def test_a_program_that_starts_later_hears_of_merges_and_of_stays_under_old_identities() -> None:
    group = Group()
    one = group.door.see("door", 1, "anna", 0).identity
    group.door.identities.end("door", 1)
    other = group.door.see("door", 2, "anna in a coat", 100).identity
    group.exchange(group.door)
    assert one and other
    group.door.identities.merge(other, one)
    group.door.identities.end("door", 2)
    group.exchange(group.door)
    late = Program(group)
    late.shared.exchange()
    news = late.shared.news()
    assert {stay.identity for stay in news.stays} == {one} and not news.corrections


def test_a_name_is_heard_and_the_last_one_counts_after_a_restart() -> None:
    group = Group()
    one = group.door.see("door", 1, "anna", 0).identity
    group.door.identities.end("door", 1)
    assert one
    group.door.identities.name(one, "Ana")
    group.exchange()
    group.door.identities.name(one, "Anna")
    group.exchange()
    assert group.yard.see("yard", 1, "anna", 100).name == "Anna"
    group.now += 90 * 86400
    late = Program(group)
    late.shared.exchange()
    late.identities.hear(late.shared.news())
    assert late.see("yard", 2, "anna", 200).name == "Anna"


def test_forgetting_reaches_what_the_other_program_knows_and_leaves_no_row() -> None:
    group = Group()
    one = group.door.see("door", 1, "anna", 0).identity
    group.door.identities.end("door", 1)
    assert group.yard.see("yard", 1, "anna", 100).identity == one and one
    group.exchange()
    group.door.identities.forget(one)
    group.yard.identities.end("yard", 1)
    group.exchange()
    assert group.gallery.count(person=one) == 0
    rows = [payload for part in group.store.scan(Where(people=(one,)), vectors=False) for payload in part.payloads]
    assert [row["told"] for row in rows] == ["forget"]


def test_what_was_heard_before_a_restart_is_no_news_and_later_corrections_are() -> None:
    group = Group()
    group.door.shared.tell("merge", "a", into="b")
    group.door.shared.exchange()
    heard = group.now
    group.now += 100
    group.door.shared.tell("merge", "c", into="d")
    group.door.shared.exchange()
    late = SharedSightings(group.store, clock=lambda: group.now)
    late._heard = heard  # as `start` sets it
    late.exchange()
    assert [(one.identity, one.into) for one in late.news().corrections] == [("c", "d")]


def test_a_track_is_one_row_however_often_it_is_told_and_is_removed_after_a_day() -> None:
    group = Group()
    for i in range(5):
        group.door.see("door", 1, "anna", 3.0 * i)
        group.exchange(group.door)
    assert group.store.count(Where()) == 1
    group.now += 2 * 86400
    group.exchange(group.door)
    assert group.store.count(Where()) == 0


def test_a_track_is_kept_no_longer_than_the_site_keeps_its_own() -> None:
    store, now = sightings(), [1e6]
    one = SharedSightings(store, keep=60.0, clock=lambda: now[0])
    one.put(SharedStay(identity="a", camera="door", track="1", start=0, last=1, since=0))
    one.exchange()
    now[0] += 61
    one.exchange()
    assert store.count(Where()) == 0


def test_a_server_that_is_away_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group()

    def away(*_: object) -> None:
        raise GalleryError("expected an answer, got none")

    group.door.shared.put(SharedStay(identity="a", camera="door", track="1", start=0, last=1, since=0))
    group.door.shared.tell("merge", "b", into="a")
    with monkeypatch.context() as broken:
        broken.setattr(group.store, "add", away)
        with pytest.raises(GalleryError):
            group.door.shared.exchange()
    group.exchange(group.door)
    group.yard.shared.exchange()
    news = group.yard.shared.news()
    assert [one.identity for one in news.corrections] == ["b"] and [one.identity for one in news.stays] == ["a"]


def test_exchanging_goes_on_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_sightings, "EXCHANGE_SECONDS", 0.01)
    store = sightings()
    monkeypatch.setattr(store, "close", lambda: None)
    with SharedSightings(store) as one:
        one.put(SharedStay(identity="a", camera="door", track="1", start=0, last=1, since=0))
    other = SharedSightings(store)
    other.exchange()
    assert [stay.identity for stay in other.news().stays] == ["a"]


def test_a_program_may_watch_a_part_of_a_site() -> None:
    cameras = tuple(CameraConfig(name=name, source="0") for name in ("door", "yard", "hall"))
    part = part_of(Site(cameras=cameras, folder=Path("x")), ["yard"])
    assert [one.name for one in part.cameras] == ["yard"]
    assert [one.name for one in part.elsewhere] == ["door", "hall"]
    with pytest.raises(SiteError, match="Did you mean 'door'"):
        part_of(Site(cameras=cameras), ["dor"])
