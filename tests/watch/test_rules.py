"""Rules, on hand-worked walks: who came when, which way, and for how long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dpm_edge.watch.events import Event, span
from dpm_edge.watch.geometry import crosses, in_pixels, inside, side
from dpm_edge.watch.rules import LastSeen, Moment, Rules, Sighting
from dpm_edge.watch.site_config import CountingLine, Rule, Site, Zone
from dpm_edge.watch.store import WatchStore

SIZE = (100, 200)


def at(seconds: float, uncertainty: float = 0.5) -> Moment:
    return Moment(seconds=seconds, wall=seconds, uncertainty=uncertainty)


def person(track: str, identity: str | None = None, x: float = 50, y: float = 80, **more: Any) -> Sighting:
    """Somebody 40 pixels high whose feet are at x, y."""
    state = "pending" if identity is None else "known"
    return Sighting(track=track, box=(x - 10, y - 40, x + 10, y), identity=identity, **{"state": state, **more})


def rules(*each: Rule, **more: Any) -> Rules:
    return Rules(Site(rules=each, **more))


def rule(event: str, **more: Any) -> Rule:
    return Rule(name=more.pop("name", event), event=event, **more)


def walk(engine: Rules, camera: str, steps: Sequence[tuple[float, list[Sighting]]]) -> list[Event]:
    return [event for seconds, seen in steps for event in engine.see(camera, at(seconds), seen, SIZE)]


def kinds(events: Sequence[Event]) -> list[str]:
    return [event.kind for event in events]


def test_entry_is_reported_with_its_identity_and_the_time_of_the_first_sight() -> None:
    engine = rules(rule("entered"))
    events = walk(engine, "door", [(10, [person("1")]), (11, [person("1", "anna")]), (12, [person("1", "anna")])])
    assert [(e.kind, e.identity, e.wall) for e in events] == [("entered", "anna", 10)]


def test_entry_without_an_identity_is_reported_after_a_while_and_the_identity_later() -> None:
    engine = rules(rule("entered"), rule("identified"))
    steps = [(10.0, [person("1")]), (12.9, [person("1")]), (13.0, [person("1")]), (20.0, [person("1", "anna")])]
    events = walk(engine, "door", [(s, p) for s, p in steps])
    assert [(e.kind, e.identity) for e in events] == [("entered", None), ("identified", "anna")]


def test_somebody_leaves_once_and_only_after_the_grace() -> None:
    engine = rules(rule("left"))
    events = walk(engine, "door", [(10, [person("1", "anna")]), (12, [person("1", "anna")]), (16, []), (16.1, [])])
    assert [(e.kind, e.wall, e.details["duration_s"]) for e in events] == [("left", 12, 2)]


def test_a_broken_track_of_one_identity_is_no_departure() -> None:
    engine = rules(rule("entered"), rule("left"), rule("returned", after=1))
    steps = [(10.0, [person("1", "anna")]), (13.0, [person("2")]), (14.0, [person("2", "anna")])]
    assert kinds(walk(engine, "door", steps)) == ["entered"]


@pytest.mark.parametrize("turned", [False, True])
def test_an_identity_that_goes_from_one_track_to_another_beside_it_is_reported_once(turned: bool) -> None:
    engine = rules(rule("moved"), rule("split"))
    engine.see("yard", at(1), [person("9", "anna")], SIZE)
    before = [person("1", "anna"), person("2", "ben", x=150)]
    after = [person("1", "cleo", change="split"), person("2", "anna", x=150)]
    steps = [(float(s), before if s < 13 else after[::-1] if turned else after) for s in range(10, 30)]
    events = walk(engine, "door", steps)
    assert [(e.kind, e.identity, e.track) for e in events] == [
        ("moved", "anna", "1"), ("split", "cleo", "1"), ("moved", "anna", "2"),
    ]  # fmt: skip


def test_return_after_the_given_time() -> None:
    engine = rules(rule("returned", after=240))
    events = walk(engine, "door", [(10, [person("1", "anna")]), (200, []), (250, [person("2", "anna")])])
    (event,) = events
    assert (event.kind, event.details["gap_s"], event.details["from"]) == ("returned", 240, "door")


def test_return_before_the_given_time_is_none() -> None:
    engine = rules(rule("returned", after=240))
    assert walk(engine, "door", [(10, [person("1", "anna")]), (200, []), (249, [person("2", "anna")])]) == []


def test_return_is_measured_from_the_first_sight_even_where_the_identity_comes_late() -> None:
    engine = rules(rule("returned", after=60))
    steps = [(10, [person("1", "anna")]), (30, []), (69, [person("2")]), (71, [person("2", "anna")])]
    assert walk(engine, "door", steps) == []


def test_return_is_refused_where_the_clocks_are_less_certain_than_the_absence() -> None:
    engine = rules(rule("returned", after=240))
    engine.see("door", at(10, 200), [person("1", "anna")], SIZE)
    assert engine.see("yard", at(300, 200), [person("1", "anna")], SIZE) == []


def test_somebody_not_seen_since_a_time_of_day_is_not_known_to_have_been_anywhere() -> None:
    engine = rules(rule("moved"))
    walk(engine, "door", [(10, [person("1", "anna")]), (20, [person("2", "ben")]), (30, [])])
    engine.expire(20)
    seen = walk(engine, "yard", [(40, [person("1", "anna"), person("2", "ben", x=150)])])
    assert [event.identity for event in seen] == ["ben"]


def test_a_to_b_names_both_cameras_and_the_time_between() -> None:
    engine = rules(rule("moved"))
    walk(engine, "door", [(10, [person("1", "anna")]), (20, [])])
    (event,) = walk(engine, "yard", [(40, [person("1", "anna")]), (41, [person("1", "anna")])])
    assert (event.camera, event.details["from"], event.details["to"], event.details["gap_s"]) == (
        "yard", "door", "yard", 30,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"origin": "door", "destination": "yard"}, 1),
        ({"origin": "yard"}, 0),
        ({"destination": "door"}, 0),
        ({"within": 29}, 0),
        ({"within": 30}, 1),
        ({"cameras": ("door",)}, 0),
        ({"people": ("ben",)}, 0),
        ({"people": ("anna",)}, 1),
    ],
)
def test_a_to_b_only_where_the_rule_fits(given: dict[str, Any], expected: int) -> None:
    engine = rules(rule("moved", **given))
    walk(engine, "door", [(10, [person("1", "anna")])])
    assert len(walk(engine, "yard", [(40, [person("1", "anna")])])) == expected


def test_there_and_back_are_two_moves() -> None:
    engine = rules(rule("moved"))
    walk(engine, "door", [(10, [person("1", "anna")]), (20, [])])
    there = walk(engine, "yard", [(30, [person("1", "anna")]), (40, [])])
    back = walk(engine, "door", [(60, [person("2", "anna")])])
    assert [e.details["from"] for e in there + back] == ["door", "yard"]


ZONE = Zone(name="bench", camera="door", points=((40, 60), (60, 60), (60, 100), (40, 100)))


def test_dwelling_is_reported_once_when_the_time_is_up() -> None:
    engine = rules(rule("dwelled", zone="bench", after=5), zones=(ZONE,))
    events = walk(engine, "door", [(float(s), [person("1", "anna")]) for s in range(10)])
    assert [(e.wall, e.details["duration_s"]) for e in events] == [(5, 5)]


def test_dwelling_begins_anew_after_leaving_the_zone() -> None:
    engine = rules(rule("dwelled", zone="bench", after=5), zones=(ZONE,))
    steps = [(float(s), [person("1", "anna", x=50 if s < 4 or s > 6 else 150)]) for s in range(13)]
    events = walk(engine, "door", steps)
    assert [e.wall for e in events] == [12]


def test_dwelling_goes_on_over_a_broken_track() -> None:
    engine = rules(rule("dwelled", zone="bench", after=5), zones=(ZONE,))
    steps = [(float(s), [person("1" if s < 3 else "2", "anna")]) for s in range(7)]
    assert [e.wall for e in walk(engine, "door", steps)] == [5]


LINE = CountingLine(name="gate", camera="door", begin=(100, 0), end=(100, 99))


def test_crossing_a_line_counts_each_direction() -> None:
    """Looking from (100, 0) down to (100, 99), right is where x is smaller: the picture's y axis points down."""
    engine = rules(rule("crossed", line="gate"), lines=(LINE,))
    events = walk(engine, "door", [(float(i), [person("1", x=x)]) for i, x in enumerate([80, 95, 120, 130, 80])])
    assert [e.details["direction"] for e in events] == ["right_to_left", "left_to_right"]
    assert engine.counts["gate"] == {"left_to_right": 1, "right_to_left": 1}


def test_trembling_on_the_line_crosses_nothing() -> None:
    engine = rules(rule("crossed", line="gate"), lines=(LINE,))
    assert walk(engine, "door", [(float(i), [person("1", x=x)]) for i, x in enumerate([90, 101, 99, 101, 99])]) == []


def test_passing_beside_the_end_of_the_line_crosses_nothing() -> None:
    short = CountingLine(name="gate", camera="door", begin=(100, 0), end=(100, 40))
    engine = rules(rule("crossed", line="gate"), lines=(short,))
    assert walk(engine, "door", [(0, [person("1", x=80)]), (1, [person("1", x=120)])]) == []


def test_only_the_wanted_direction_is_reported() -> None:
    engine = rules(rule("crossed", line="gate", direction="left_to_right"), lines=(LINE,))
    assert walk(engine, "door", [(0, [person("1", x=80)]), (1, [person("1", x=120)])]) == []


def test_person_of_interest_is_reported_once_a_stay_and_only_if_sure() -> None:
    engine = rules(rule("person_of_interest", people=("anna",), least_probability=0.9))
    steps = [(1, 0.5), (2, 0.95), (3, 0.99)]
    events = walk(engine, "door", [(s, [person("1", "anna", probability=p)]) for s, p in steps])
    assert [(e.wall, e.probability) for e in events] == [(2, 0.95)]


def test_a_merge_is_an_event_with_its_chain() -> None:
    engine = rules(rule("merged"))
    steps = [(1, [person("1", "P2")]), (2, [person("1", "P1", previous_ids=("P2",))])]
    (event,) = walk(engine, "door", steps)
    assert (event.identity, event.previous_ids) == ("P1", ("P2",))


def test_finish_lets_everybody_leave() -> None:
    engine = rules(rule("entered"), rule("left"))
    walk(engine, "door", [(1, [person("1")])])
    assert kinds(engine.finish()) == ["entered", "left"] and engine.finish() == []


def test_camera_lost_and_back_are_reported_once() -> None:
    engine = rules(rule("camera_lost"), rule("camera_back"))
    events = [
        *engine.camera_back("door", at(1)),
        *engine.camera_lost("door", at(2), "no answer"),
        *engine.camera_lost("door", at(3), "no answer"),
        *engine.camera_back("door", at(12)),
    ]
    assert [(e.kind, e.details) for e in events] == [
        ("camera_lost", {"message": "no answer"}),
        ("camera_back", {"gap_s": 10}),
    ]


def test_a_return_is_known_over_a_restart() -> None:
    before = {"anna": [LastSeen(camera="door", moment=at(100), this_run=False)]}
    engine = Rules(Site(rules=(rule("returned", after=60),)), before)
    (event,) = engine.see("door", at(200), [person("1", "anna")], SIZE)
    assert event.details["gap_s"] == 100 and event.details["gap_uncertainty_s"] == 1.0


def test_a_forgotten_identity_has_no_past() -> None:
    engine = rules(rule("moved"))
    walk(engine, "door", [(10, [person("1", "anna")]), (20, [])])
    engine.forget("anna")
    assert walk(engine, "yard", [(40, [person("1", "anna")])]) == []


def test_an_event_survives_json() -> None:
    event = Event(kind="moved", rule="r", camera="yard", wall=1.5, seconds=1.5, identity="a", details={"from": "door"})
    assert Event.of_json(event.as_json()) == event
    assert event.as_json()["time"] == "1970-01-01T00:00:01.500Z"


@pytest.mark.parametrize(("seconds", "text"), [(8.2, "8 s"), (250, "4 min 10 s"), (7500, "2 h 5 min")])
def test_spans_are_for_people(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_geometry_by_hand() -> None:
    square = ((0.0, 0.0), (10.0, 0.0), (10.0, 10.0), (0.0, 10.0))
    assert inside((5, 5), square) and not inside((11, 5), square) and not inside((-1, 5), square)
    assert side((0, 3), (0, 0), (10, 0)) == 3 and side((5, -2), (0, 0), (10, 0)) == -2
    assert crosses((5, -1), (5, 1), (0, 0), (10, 0)) and not crosses((15, -1), (15, 1), (0, 0), (10, 0))
    assert in_pixels(((0.5, 1.0),), (101, 201)) == ((100.0, 100.0),)


def test_json_is_the_same_after_the_store(tmp_path: Path) -> None:
    event = Event(kind="left", rule="r", camera="yard", wall=1795663575.3896, seconds=1795663575.38951, uncertainty=0.5)
    with WatchStore(tmp_path / "s.sqlite3") as store:
        store.add_events([event])
        ((_, kept),) = store.events()
    assert kept.as_json() == event.as_json()


def test_a_track_that_turns_out_to_be_somebody_else_is_a_split() -> None:
    engine = rules(rule("split"), rule("merged"))
    steps = [(1, [person("1", "P1")]), (2, [person("1", "P2", previous_ids=("P1",), change="split")])]
    (event,) = walk(engine, "door", steps)
    assert (event.kind, event.identity, event.details["from_identity"]) == ("split", "P2", "P1")


def test_what_is_decided_when_a_track_ends_is_still_an_arrival() -> None:
    engine = rules(rule("entered"), rule("moved"))
    walk(engine, "door", [(10, [person("1", "anna")]), (20, [])])
    walk(engine, "yard", [(30, [person("7")])])
    events = engine.decide("yard", person("7", "anna"))
    assert [(e.kind, e.identity, e.wall) for e in events] == [("entered", "anna", 30), ("moved", "anna", 30)]


def test_what_is_decided_after_somebody_left_is_no_event() -> None:
    engine = rules(rule("entered"))
    walk(engine, "yard", [(30, [person("7")]), (40, [])])
    assert engine.decide("yard", person("7", "anna")) == []


def test_without_rules_of_its_own_a_site_reports_no_return_within_a_minute() -> None:
    engine = Rules(Site())
    short = walk(engine, "door", [(0, [person("1", "anna")]), (30, []), (59, [person("2", "anna")]), (99, [])])
    long = walk(engine, "door", [(130, [person("3", "anna")])])
    assert "returned" not in kinds(short) and "returned" in kinds(long)
