"""The whole loop on small videos: events, tracks, corrections, and cameras that fail."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from moving_square import ScriptedStream
from stand_ins import ColourEngine, make_seeing, scene, walk, write_scenes

from dpm_edge import Gallery
from dpm_edge.errors import DpmError
from dpm_edge.watch import watch_site
from dpm_edge.watch.events import Event
from dpm_edge.watch.seeing import Seeing
from dpm_edge.watch.site_config import CameraConfig, OutputConfig, PersonOfInterest, Rule, Site, Zone
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.watch_site import WatchSite

EMPTY = scene()


def wait_for(what: Callable[[], bool], seconds: float = 15.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


def site(*cameras: tuple[str, Any], **more: Any) -> Site:
    return Site(cameras=tuple(CameraConfig(name=n, source=str(s), start=1000.0) for n, s in cameras), **more)


def run(one: Site, store: WatchStore, seeing: Seeing | None = None, **more: Any) -> list[Event]:
    with WatchSite(one, store, **more) as watch:
        watch.run(seeing or make_seeing())
    return [event for _, event in store.events(limit=1000)]


def what(events: list[Event], *kinds: str) -> list[tuple[str, str, str | None]]:
    return [(e.kind, e.camera, e.identity) for e in events if not kinds or e.kind in kinds]


def test_two_videos_give_the_way_from_a_to_b(tmp_path: Path) -> None:
    door = write_scenes(tmp_path / "door.avi", walk("red", 10) + [EMPTY] * 60)
    yard = write_scenes(tmp_path / "yard.avi", [EMPTY] * 40 + walk("red", 10) + [EMPTY] * 12 + walk("blue", 10))
    with WatchStore(":memory:", run="") as store:
        events = run(site(("door", door), ("yard", yard)), store)
        moved = [e for e in events if e.kind == "moved"]
        assert [(e.camera, e.identity, e.details["from"]) for e in moved] == [("yard", "red", "door")]
        assert moved[0].details["gap_s"] == pytest.approx(3.1, abs=0.11)
        assert moved[0].seconds == pytest.approx(1004.0, abs=0.01)
        assert what(events, "entered") == [
            ("entered", "door", "red"), ("entered", "yard", "red"), ("entered", "yard", "blue"),
        ]  # fmt: skip
        assert sorted(what(events, "left")) == [
            ("left", "door", "red"),
            ("left", "yard", "blue"),
            ("left", "yard", "red"),
        ]


def test_tracks_are_kept_with_their_times_and_identities(tmp_path: Path) -> None:
    door = write_scenes(tmp_path / "door.avi", walk("red", 10))
    with WatchStore(":memory:", run="") as store:
        run(site(("door", door)), store)
        (track,) = store.tracks()
    assert (track.identity, track.state, track.camera) == ("red", "known", "door")
    assert (track.first, track.last) == (pytest.approx(1000.0, abs=0.01), pytest.approx(1000.9, abs=0.01))


def test_frames_of_several_files_are_looked_at_in_order_of_time(tmp_path: Path) -> None:
    slow = write_scenes(tmp_path / "slow.avi", [EMPTY] * 6, fps=5)
    quick = write_scenes(tmp_path / "quick.avi", [EMPTY] * 12, fps=10)
    seen: list[float] = []
    with WatchStore(":memory:", run="") as store, WatchSite(site(("slow", slow), ("quick", quick)), store) as watch:
        look = watch._look_at
        watch._look_at = lambda frame: (seen.append(frame.seconds), look(frame))[1]  # type: ignore[method-assign]
        watch.run(make_seeing())
    assert len(seen) == 18 and seen == sorted(seen)


def test_every_second_frame_only(tmp_path: Path) -> None:
    video = write_scenes(tmp_path / "a.avi", [EMPTY] * 10)
    camera = CameraConfig(name="a", source=str(video), every=2)
    with WatchStore(":memory:", run="") as store, WatchSite(Site(cameras=(camera,)), store) as watch:
        watch.run(make_seeing())
        assert watch.processed() == {"a": 5}


def test_return_after_a_restart(tmp_path: Path) -> None:
    video = write_scenes(tmp_path / "a.avi", walk("red", 8))
    rules = (Rule(name="back", event="returned", after=60.0),)
    with WatchStore(tmp_path / "s.sqlite3") as store:
        assert run(site(("a", video), rules=rules), store) == []
    later = Site(cameras=(CameraConfig(name="a", source=str(video), start=5000.0),), rules=rules)
    with WatchStore(tmp_path / "s.sqlite3") as store:
        (event,) = run(later, store)
    assert event.details["gap_s"] == pytest.approx(3999.3, abs=0.02)


def test_dwelling_in_a_zone_of_shares(tmp_path: Path) -> None:
    video = write_scenes(tmp_path / "a.avi", [scene(("red", 160, 200))] * 40)
    zone = Zone(name="middle", camera="a", points=((0.4, 0.5), (0.6, 0.5), (0.6, 1.0), (0.4, 1.0)))
    rule = Rule(name="loitering", event="dwelled", zone="middle", after=2.0)
    with WatchStore(":memory:", run="") as store:
        events = run(site(("a", video), zones=(zone,), rules=(rule,)), store)
    assert what(events) == [("dwelled", "a", "red")]


def test_person_of_interest_by_picture(tmp_path: Path) -> None:
    seeing = make_seeing()
    cv2.imwrite(str(tmp_path / "wanted.png"), np.full((64, 24, 3), (40, 40, 230), np.uint8))
    person = PersonOfInterest(name="wanted", pictures=(tmp_path / "wanted.png",))
    video = write_scenes(tmp_path / "a.avi", [EMPTY])
    with WatchStore(":memory:", run="") as store:
        run(site(("a", video), people=(person,)), store, seeing)
    found = seeing.gallery.search(ColourEngine().embed([scene(("red", 50, 64))[0:60, 40:60]]), 1).of_query(0)
    assert found[0].person == "wanted"


def test_a_bad_frame_ends_no_camera_and_is_told_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = write_scenes(tmp_path / "a.avi", walk("red", 10))
    seeing, calls = make_seeing(), []

    def sometimes(image: Any) -> Any:
        calls.append(1)
        if len(calls) in (2, 3):
            raise ValueError("no such thing")
        return make_seeing().detector(image)

    with WatchStore(":memory:", run="") as store:
        events = run(site(("a", video)), store, Seeing(**{**seeing.__dict__, "detector": sometimes}))
    assert what(events, "entered") == [("entered", "a", "red")]
    assert capsys.readouterr().err.count("no such thing") == 1


def test_a_run_in_which_nothing_could_be_looked_at_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with (
        WatchStore(":memory:", run="") as store,
        pytest.raises(DpmError, match="expected a video that OpenCV can open"),
    ):
        run(site(("a", tmp_path / "a.mp4")), store)


def test_a_damaged_video_does_not_hold_up_the_others(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    good = write_scenes(tmp_path / "good.avi", walk("red", 8))
    with WatchStore(":memory:", run="") as store:
        events = run(site(("bad", tmp_path / "bad.mp4"), ("good", good)), store)
    assert what(events, "entered") == [("entered", "good", "red")]


def test_a_live_camera_that_goes_away_and_comes_back_is_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_site, "LOST_SECONDS", 0.2)
    monkeypatch.setattr(watch_site, "WRITE_SECONDS", 0.02)
    back = threading.Event()
    opened: list[int] = []

    def opener(address: str) -> ScriptedStream:
        opened.append(1)
        if len(opened) > 1 and not back.is_set():
            raise DpmError("no answer of 10.0.0.5")
        return ScriptedStream([EMPTY, "hang" if len(opened) > 1 else "end"])

    with (
        WatchStore(":memory:", run="") as store,
        WatchSite(site(("door", "rtsp://a:geheim@h/x")), store, opener=opener) as watch,
    ):
        thread = threading.Thread(target=watch.run, args=(make_seeing(),))
        thread.start()
        wait_for(lambda: watch.counts["camera_lost"] == 1)
        back.set()
        wait_for(lambda: watch.counts["camera_back"] == 1)
        watch.stop()
        thread.join(10)
        events = [event for _, event in store.events()]
    assert what(events) == [("camera_lost", "door", None), ("camera_back", "door", None)]
    assert "geheim" not in str([event.as_json() for event in events])


def test_a_camera_that_changes_its_size_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    small = np.ascontiguousarray(scene(("red", 100, 200))[:, :200])
    pictures = [scene(("red", 100, 200))] * 5 + [small] * 5

    class Paced(ScriptedStream):
        def __iter__(self) -> Any:
            for one in pictures:
                yield one, None
                time.sleep(0.05)
            self._released.wait()

    opener = lambda address: Paced([])
    with (
        WatchStore(":memory:", run="") as store,
        WatchSite(site(("door", "rtsp://h/x")), store, opener=opener) as watch,
    ):
        thread = threading.Thread(target=watch.run, args=(make_seeing(),))
        thread.start()
        wait_for(lambda: watch.processed()["door"] == 10)
        watch.stop()
        thread.join(10)
        assert {one.track for one in store.tracks()} == {"1", "2"}


@pytest.fixture
def watched(tmp_path: Path) -> Any:
    """A site that has been watched: red and blue, at two cameras."""
    door = write_scenes(tmp_path / "door.avi", walk("red", 8))
    yard = write_scenes(tmp_path / "yard.avi", walk("blue", 8))
    with (
        WatchStore(":memory:", run="") as store,
        WatchSite(site(("door", door), ("yard", yard), thumbnails=True), store) as watch,
    ):
        watch.run(make_seeing())
        yield watch


def test_merge_is_a_correction_an_event_and_told_to_the_identities(watched: WatchSite) -> None:
    watched.merge("blue", "red")
    assert {one.identity for one in watched.store.tracks()} == {"red"}
    assert watched.seeing is not None and watched.seeing.identities.calls == [("merge", "blue", "red")]  # type: ignore[attr-defined]
    ((_, event),) = watched.store.events(kinds=["merged"])
    assert (event.identity, event.previous_ids) == ("red", ("blue",))


def test_split_gives_a_track_to_somebody_else(watched: WatchSite) -> None:
    assert watched.split("door", "1", "red") == "somebody"
    assert {one.camera: one.identity for one in watched.store.tracks()} == {"door": "somebody", "yard": "blue"}
    ((_, event),) = watched.store.events(kinds=["split"])
    assert (event.identity, event.details["from_identity"]) == ("somebody", "red")


@pytest.mark.parametrize(
    "act",
    [
        lambda watch: watch.merge("red", "red"),
        lambda watch: watch.merge("red", "nobody"),
        lambda watch: watch.split("door", "77", "red"),
        lambda watch: watch.name("nobody", "x"),
        lambda watch: watch.name("red", "  "),
    ],
)
def test_corrections_that_cannot_be_change_nothing(watched: WatchSite, act: Callable[[WatchSite], Any]) -> None:
    with pytest.raises(DpmError, match="expected"):
        act(watched)
    assert watched.store.corrections() == []


def test_forget_reaches_store_thumbnails_gallery_and_page(watched: WatchSite) -> None:
    assert watched.store.thumbnail("red") is not None
    watched.forget("red")
    assert watched.store.thumbnail("red") is None
    assert watched.seeing is not None and watched.seeing.gallery.count(person="red") == 0
    assert all("red" not in event.people() for _, event in watched.store.events())
    view = watched.view("door")
    assert view is None or all(one.identity != "red" for one in view.sightings)


def test_thumbnails_are_kept_only_if_asked(tmp_path: Path) -> None:
    video = write_scenes(tmp_path / "a.avi", walk("red", 8))
    with WatchStore(":memory:", run="") as store:
        run(site(("a", video)), store)
        assert store.thumbnail("red") is None


def test_search_by_picture_names_the_person(watched: WatchSite) -> None:
    found = watched.search(scene(("blue", 100, 200)))
    assert found["masked"][0]["identity"] == "blue" and found["plain"][0]["identity"] == "blue"
    assert found["box"] == [88, 136, 112, 200]


def test_events_of_an_identity_carry_the_tracks_vector_where_an_output_asks_for_it(tmp_path: Path) -> None:
    video = write_scenes(tmp_path / "a.avi", walk("red", 8) + [EMPTY] * 60)
    outputs = tuple(
        OutputConfig(name=name, kind="jsonl", path=tmp_path / name, vectors=name == "with")
        for name in ("with", "without")
    )
    with WatchStore(":memory:", run="") as store, WatchSite(site(("a", video), outputs=outputs), store) as watch:
        watch.run(make_seeing())
        assert [delivery.drain(10) for delivery in watch.deliveries] == [0, 0]
    entered, left = (json.loads(line) for line in (tmp_path / "with").read_text().splitlines())
    assert (entered["kind"], left["kind"]) == ("entered", "left")
    for one in (entered, left):
        feature = np.frombuffer(base64.b64decode(one["vector"].pop("feature")), "<f4")
        assert int(np.argmax(feature)) == 2 and np.linalg.norm(feature) == pytest.approx(1, abs=1e-5)
        assert one["vector"] == {
            "dimension": 3, "model": ColourEngine.fingerprint, "centred": False, "visibility": 0.75
        }  # fmt: skip
    assert "vector" not in (tmp_path / "without").read_text()


def test_without_such_an_output_no_vector_is_kept(tmp_path: Path) -> None:
    video = write_scenes(tmp_path / "a.avi", walk("red", 8))
    with WatchStore(":memory:", run="") as store:
        assert {event.vector for event in run(site(("a", video)), store)} == {None}


def test_once_more_is_deleted_than_left_the_gallery_takes_no_room_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_site, "WRITE_SECONDS", 0.0)
    video = write_scenes(tmp_path / "a.avi", [EMPTY] * 3)
    for old, shard in ((1, "shard-1"), (2, "shard-2")):
        seeing = make_seeing()
        with WatchStore(":memory:", run="") as store, Gallery.create(
            tmp_path / f"gallery-{old}", ColourEngine.fingerprint, ColourEngine.dimension
        ) as gallery:  # fmt: skip
            row = seeing.engine.embed(scene(), np.array([[0, 0, 10, 10]]))
            for seconds in (*[1000.0] * old, time.time()):
                gallery.add(row, people=["red"], timestamps=[seconds])
            run(site(("a", video), keep=3600.0), store, replace(seeing, gallery=gallery))
            assert (len(gallery), gallery.describe()["shard"]) == (1, shard)


def test_callbacks_get_every_event(tmp_path: Path) -> None:
    video = write_scenes(tmp_path / "a.avi", walk("red", 8))
    got: list[str] = []
    with WatchStore(":memory:", run="") as store, WatchSite(
        site(("a", video)), store, callbacks={"mine": lambda event: got.append(event.kind)}
    ) as watch:  # fmt: skip
        watch.run(make_seeing())
        assert watch.deliveries[0].drain(10) == 0
    assert got == ["entered", "left"]
