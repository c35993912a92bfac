"""Rules: what is seen at each camera becomes events.

A presence is one stay of one person at one camera. It begins with a track; tracks of the same identity that follow each
other within seconds belong to one presence, so that a broken track is neither a departure nor an arrival. Durations are
of steady seconds, so that a clock that jumps makes no event.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dpm_edge.watch.events import Event
from dpm_edge.watch.geometry import crosses, feet, in_pixels, inside, side
from dpm_edge.watch.site_config import CountingLine, Point, Rule, Site, Zone

DECIDE_SECONDS = 3.0
"""An entry is reported once the identity is decided, or after so long without one."""
GRACE_SECONDS = 4.0
"""Somebody who is not seen for so long has left."""
ZONE_GRACE_SECONDS = 2.0
"""Somebody who is not seen in a zone for so long is out of it."""
LINE_MARGIN = 0.05
"""Feet are on a side of a line once they are farther from it than this share of the box's height."""


@dataclass(frozen=True, kw_only=True)
class Sighting:
    """One person in one frame of one camera, as the tracker and the identities see it."""

    track: str
    box: tuple[float, float, float, float]
    """x0 y0 x1 y1 in pixels."""
    identity: str | None = None
    state: str = "pending"
    """pending, unknown or known."""
    probability: float | None = None
    previous_ids: tuple[str, ...] = ()
    change: str = ""
    """How its identity changed last: "merged", "split", or not at all."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When a frame was taken."""

    seconds: float
    wall: float
    uncertainty: float = 0.0


@dataclass(frozen=True, kw_only=True)
class LastSeen:
    """When an identity was last seen at a camera."""

    camera: str
    moment: Moment
    this_run: bool = True
    """False where it comes from the store: only times of day connect two runs."""


@dataclass
class _Presence:
    camera: str
    track: str
    first: Moment
    last: Moment
    sighting: Sighting
    entered: bool = False
    identity: str | None = None
    """The identity whose arrival was already looked at."""
    zones: dict[str, tuple[Moment, Moment]] = field(default_factory=dict)
    """Zone → when the stay in it began, and when it was seen last."""
    feet: dict[str, Point] = field(default_factory=dict)
    """Line → the last point that was surely on one side."""
    reported: set[str] = field(default_factory=set)
    """Rules that reported this presence already, where once is enough."""
    tracks: set[str] = field(default_factory=set)
    previous: LastSeen | None = None
    """Where the identity was before it came here."""


class Rules:
    """Turns sightings into events: call `see` for each frame, in order of time for each camera, and `finish` at last.

    Args:
        site: rules, zones and lines.
        last_seen: identity → camera → when it was last seen there, of earlier runs.
    """

    def __init__(self, site: Site, last_seen: Mapping[str, Iterable[LastSeen]] | None = None) -> None:
        self._rules: dict[str, list[Rule]] = {}
        for rule in site.rules:
            self._rules.setdefault(rule.event, []).append(rule)
        self._zones: dict[str, list[Zone]] = {}
        self._lines: dict[str, list[CountingLine]] = {}
        for zone in site.zones:
            self._zones.setdefault(zone.camera, []).append(zone)
        for line in site.lines:
            self._lines.setdefault(line.camera, []).append(line)
        self._present: dict[str, list[_Presence]] = {}
        self._seen: dict[str, dict[str, LastSeen]] = {
            identity: {one.camera: one for one in sightings} for identity, sightings in (last_seen or {}).items()
        }
        self.counts: dict[str, dict[str, int]] = {
            line.name: {"left_to_right": 0, "right_to_left": 0} for line in site.lines
        }
        """Line → direction → how many crossed it in this run."""
        self._lost: dict[str, Moment] = {}

    def see(self, camera: str, moment: Moment, sightings: Sequence[Sighting], size: tuple[int, int]) -> list[Event]:
        """Events of one frame.

        Args:
            camera: its name.
            moment: when the frame was taken.
            sightings: everybody in it.
            size: height and width of the frame, in pixels.
        """
        events: list[Event] = []
        here = self._present.setdefault(camera, [])
        for sighting in self._in_order(here, sightings):
            presence = self._presence(here, camera, moment, sighting)
            events += self._identity(presence)
            events += self._entry(presence, moment)
            spot = feet(sighting.box, size)
            events += self._stay(presence, moment, spot, size)
            events += self._crossing(presence, moment, spot, size)
        events += self._departures(camera, moment)
        return events

    def decide(self, camera: str, final: Sighting) -> list[Event]:
        """Events of what was finally decided about a track that has ended; none where its person has left already."""
        here = self._present.get(camera, [])
        of_track = next((one for one in here if final.track in one.tracks), None)
        if of_track is None:
            return []
        presence = self._presence(here, camera, of_track.last, final)
        return self._identity(presence) + self._entry(presence, presence.last)

    def saw_elsewhere(self, identity: str, camera: str, moment: Moment) -> None:
        """Somebody was seen at a camera of another program, which reports what happens there."""
        self._seen.setdefault(identity, {})[camera] = LastSeen(camera=camera, moment=moment)

    def forget(self, identity: str) -> None:
        """Know nothing of an identity any more."""
        self._seen.pop(identity, None)
        for here in self._present.values():
            here[:] = [one for one in here if identity not in (one.identity, one.sighting.identity)]

    def expire(self, before: float) -> None:
        """Forget where identities were that nobody has seen since a time of day."""
        for identity, cameras in list(self._seen.items()):
            if all(one.moment.wall < before for one in cameras.values()):
                del self._seen[identity]

    def rename(self, old: str, new: str) -> None:
        """Call an identity by another one's name, as a merge or a person at the page does."""
        for camera, one in self._seen.pop(old, {}).items():
            now = self._seen.setdefault(new, {}).get(camera)
            if now is None or now.moment.seconds < one.moment.seconds:
                self._seen[new][camera] = one
        for here in self._present.values():
            for presence in here:
                if presence.identity == old:
                    presence.identity = new

    def camera_lost(self, camera: str, moment: Moment, message: str) -> list[Event]:
        """Say that a camera gives no pictures; once, until it is back."""
        if camera in self._lost:
            return []
        self._lost[camera] = moment
        return self._report("camera_lost", camera, moment, None, message=message)

    def camera_back(self, camera: str, moment: Moment) -> list[Event]:
        """Say that a camera gives pictures again, if it was lost."""
        lost = self._lost.pop(camera, None)
        if lost is None:
            return []
        return self._report("camera_back", camera, moment, None, gap_s=moment.seconds - lost.seconds)

    def tick(self, camera: str, moment: Moment) -> list[Event]:
        """Let time pass at a camera that gives no frames: whoever was there has left after a while."""
        return self._departures(camera, moment)

    def finish(self) -> list[Event]:
        """Let everybody leave, at the end of files or of the program."""
        events: list[Event] = []
        everybody = [presence for here in self._present.values() for presence in here]
        for presence in sorted(everybody, key=lambda one: one.last.seconds):
            events += self._leave(presence)
        self._present.clear()
        return events

    def _in_order(self, here: list[_Presence], sightings: Sequence[Sighting]) -> list[Sighting]:
        """Sightings, last those whose identity another track's stay has, which that track may be about to give up.

        Tracks of one stay that are two people after all are parted: the stay remains its identity's.
        """
        for presence in here:
            mine = [one for one in sightings if one.track in presence.tracks and one.identity is not None]
            names = [one.identity for one in mine]
            if len(set(names)) > 1:
                kept = presence.identity if presence.identity in names else names[0]
                presence.tracks -= {one.track for one in mine if one.identity != kept}
        held = {one.identity: one.tracks for one in here if one.identity is not None}
        return sorted(sightings, key=lambda one: one.identity in held and one.track not in held[one.identity])

    def _presence(self, here: list[_Presence], camera: str, moment: Moment, sighting: Sighting) -> _Presence:
        """The presence that a sighting belongs to: of its track, else of its identity, else a new one."""
        of_track = next((one for one in here if sighting.track in one.tracks), None)
        of_identity = None
        if sighting.identity is not None:
            of_identity = next((one for one in here if one.identity == sighting.identity), None)
        if of_track and of_identity and of_track is not of_identity:
            if of_track.identity is None:  # a track whose identity is decided only now goes on with an earlier stay
                here.remove(of_track)
                of_identity.tracks |= of_track.tracks
                of_identity.entered |= of_track.entered
                of_identity.reported |= of_track.reported
                of_identity.first = min(of_identity.first, of_track.first, key=lambda one: one.seconds)
            else:  # a track that is somebody else now, after a correction
                of_track.tracks.discard(sighting.track)
        found = of_identity or of_track
        if found is None:
            found = _Presence(camera, sighting.track, moment, moment, sighting, previous=None)
            here.append(found)
        found.tracks.add(sighting.track)
        found.last, found.sighting, found.track = moment, sighting, sighting.track
        return found

    def _identity(self, presence: _Presence) -> list[Event]:
        """What follows from knowing who it is: merged, identified, returned, moved, person of interest."""
        sighting, events = presence.sighting, []
        identity = sighting.identity
        if identity is None or sighting.state == "pending":
            return []
        fresh = presence.identity != identity
        if fresh:
            if presence.identity is not None and sighting.change == "split":
                facts = {"from_identity": presence.identity}
                events += self._report("split", presence.camera, presence.last, presence, **facts)
            elif presence.identity in sighting.previous_ids:
                events += self._report("merged", presence.camera, presence.last, presence)
                self.rename(str(presence.identity), identity)
            elif presence.entered:
                events += self._report("identified", presence.camera, presence.first, presence)
            presence.identity = identity
            presence.previous = self._before(identity, presence)
            presence.reported -= {"returned", "moved"}
            events += self._entry(presence, presence.last)
            events += self._arrival(presence)
        for rule in self._rules.get("person_of_interest", ()):
            once = f"person_of_interest:{rule.name}"
            sure = sighting.probability is None or sighting.probability >= rule.least_probability
            wanted = bool(rule.people) and self._applies(rule, presence.camera, identity)
            if once not in presence.reported and sure and wanted:
                presence.reported.add(once)
                events.append(self._event(rule, presence.camera, presence.last, presence))
        self._seen.setdefault(identity, {})[presence.camera] = LastSeen(camera=presence.camera, moment=presence.last)
        return events

    def _before(self, identity: str, presence: _Presence) -> LastSeen | None:
        """Where an identity was seen last before it came here."""
        earlier = [
            one
            for one in self._seen.get(identity, {}).values()
            if one.camera != presence.camera or one.moment.seconds < presence.first.seconds
        ]
        return max(earlier, key=lambda one: one.moment.seconds, default=None)

    def _arrival(self, presence: _Presence) -> list[Event]:
        previous = presence.previous
        if previous is None:
            return []
        gap = presence.first.seconds - previous.moment.seconds
        unsure = 0.0
        if previous.camera != presence.camera or not previous.this_run:
            unsure = presence.first.uncertainty + previous.moment.uncertainty
        events: list[Event] = []
        facts = {"from": previous.camera, "gap_s": round(gap, 3), "gap_uncertainty_s": round(unsure, 3)}
        for rule in self._rules.get("returned", ()):
            least = max(rule.after, GRACE_SECONDS)
            long = gap >= least and unsure < least  # a gap that the clocks cannot tell is no gap
            if long and self._applies(rule, presence.camera, presence.identity):
                events.append(self._event(rule, presence.camera, presence.first, presence, **facts))
        if previous.camera != presence.camera:
            for rule in self._rules.get("moved", ()):
                fits = rule.origin in (None, previous.camera) and rule.destination in (None, presence.camera)
                soon = rule.within is None or gap <= rule.within
                if fits and soon and self._applies(rule, presence.camera, presence.identity):
                    events.append(
                        self._event(rule, presence.camera, presence.first, presence, **facts, to=presence.camera)
                    )
        return events

    def _entry(self, presence: _Presence, now: Moment, *, ended: bool = False) -> list[Event]:
        decided = presence.sighting.state != "pending"
        waited = now.seconds - presence.first.seconds >= DECIDE_SECONDS
        if presence.entered or not (decided or waited or ended):
            return []
        presence.entered = True
        return self._report("entered", presence.camera, presence.first, presence)

    def _stay(self, presence: _Presence, moment: Moment, spot: Point, size: tuple[int, int]) -> list[Event]:
        for zone in self._zones.get(presence.camera, ()):
            if not inside(spot, in_pixels(zone.points, size)):
                continue
            begun, last = presence.zones.get(zone.name, (moment, moment))
            if moment.seconds - last.seconds > ZONE_GRACE_SECONDS:
                begun = moment
                presence.reported -= {one for one in presence.reported if one.startswith(f"zone:{zone.name}:")}
            presence.zones[zone.name] = (begun, moment)
        events: list[Event] = []
        for rule in self._rules.get("dwelled", ()):
            stay = presence.zones.get(rule.zone or "")
            once = f"zone:{rule.zone}:{rule.name}"
            if stay is None or once in presence.reported or stay[1] is not moment:
                continue
            lasted = moment.seconds - stay[0].seconds
            if lasted >= rule.after and self._applies(rule, presence.camera, presence.identity):
                presence.reported.add(once)
                events.append(
                    self._event(rule, presence.camera, moment, presence, zone=rule.zone, duration_s=round(lasted, 3))
                )
        return events

    def _crossing(self, presence: _Presence, moment: Moment, spot: Point, size: tuple[int, int]) -> list[Event]:
        events: list[Event] = []
        _, y0, _, y1 = presence.sighting.box
        for line in self._lines.get(presence.camera, ()):
            begin, end = in_pixels((line.begin, line.end), size)
            now = side(spot, begin, end)
            if abs(now) <= LINE_MARGIN * (y1 - y0):  # on the line: a box that trembles there crosses nothing
                continue
            before = presence.feet.get(line.name)
            presence.feet[line.name] = spot
            if before is None or not crosses(before, spot, begin, end) or side(before, begin, end) * now > 0:
                continue
            direction = "left_to_right" if now > 0 else "right_to_left"
            self.counts[line.name][direction] += 1
            for rule in self._rules.get("crossed", ()):
                wanted = rule.line == line.name and rule.direction in (direction, "both")
                if wanted and self._applies(rule, presence.camera, presence.identity):
                    facts = {"line": line.name, "direction": direction, "counts": dict(self.counts[line.name])}
                    events.append(self._event(rule, presence.camera, moment, presence, **facts))
        return events

    def _departures(self, camera: str, moment: Moment) -> list[Event]:
        here = self._present.get(camera, [])
        gone = [one for one in here if moment.seconds - one.last.seconds > GRACE_SECONDS]
        events: list[Event] = []
        for presence in gone:
            here.remove(presence)
            events += self._leave(presence)
        for presence in here:
            events += self._entry(presence, moment)
        return events

    def _leave(self, presence: _Presence) -> list[Event]:
        lasted = round(presence.last.seconds - presence.first.seconds, 3)
        return self._entry(presence, presence.last, ended=True) + self._report(
            "left", presence.camera, presence.last, presence, duration_s=lasted
        )

    def _applies(self, rule: Rule, camera: str, identity: str | None) -> bool:
        return (not rule.cameras or camera in rule.cameras) and (not rule.people or identity in rule.people)

    def _report(
        self, kind: str, camera: str, moment: Moment, presence: _Presence | None, **details: Any
    ) -> list[Event]:
        """An event for each rule of a kind that applies."""
        identity = presence.sighting.identity if presence else None
        return [
            self._event(rule, camera, moment, presence, **details)
            for rule in self._rules.get(kind, ())
            if self._applies(rule, camera, identity)
        ]

    def _event(self, rule: Rule, camera: str, moment: Moment, presence: _Presence | None, **details: Any) -> Event:
        who = presence.sighting if presence else None
        return Event(
            kind=rule.event,
            rule=rule.name,
            camera=camera,
            wall=moment.wall,
            seconds=moment.seconds,
            uncertainty=moment.uncertainty,
            track=who.track if who else "",
            identity=who.identity if who else None,
            state=who.state if who else "",
            probability=who.probability if who else None,
            previous_ids=who.previous_ids if who else (),
            details=details,
        )
