"""What happens at a site, as one record each, and as JSON."""

from __future__ import annotations

import datetime
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

KINDS = {
    "entered": "somebody came into a camera's view",
    "identified": "somebody who was reported without an identity has one now",
    "left": "somebody went out of a camera's view",
    "returned": "somebody came back after an absence",
    "moved": "somebody came from one camera to another",
    "dwelled": "somebody stayed in a zone",
    "crossed": "somebody crossed a line",
    "person_of_interest": "somebody on a list was recognised",
    "merged": "two identities turned out to be one person",
    "split": "one identity turned out to be two people",
    "camera_lost": "a camera gives no pictures any more",
    "camera_back": "a camera gives pictures again",
}
"""Kind of event → what it says."""


def new_id() -> str:
    """Make an id that no other event has; later ones sort after earlier ones."""
    return f"{time.time_ns():016x}-{secrets.token_hex(4)}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened."""

    kind: str
    rule: str
    """Name of the rule that reports it."""
    camera: str
    wall: float
    """Unix seconds, by the time of day."""
    seconds: float
    """Steady Unix seconds, for durations."""
    uncertainty: float = 0.0
    """How far `wall` may be wrong, in seconds."""
    track: str = ""
    identity: str | None = None
    state: str = ""
    """pending, unknown or known."""
    probability: float | None = None
    """That the identity is right, where it was known before."""
    previous_ids: tuple[str, ...] = ()
    """Identities that this person had before, oldest first."""
    details: dict[str, Any] = field(default_factory=dict)
    """What belongs to this kind, as JSON values."""
    vector: dict[str, Any] | None = None
    """What the track looks like (`vectors.vector_json`), where an output asks for it; given to those outputs alone."""
    id: str = field(default_factory=new_id)

    def people(self) -> set[str]:
        """Every identity that the event speaks of, for `forget`."""
        named = {
            self.identity,
            *self.previous_ids,
            self.details.get("from_identity"),
            self.details.get("into_identity"),
        }
        return {str(one) for one in named if one}

    def as_json(self, *, vector: bool = False) -> dict[str, Any]:
        """JSON types, as outputs and the API give them; with the vector, if there is one and it is asked for."""
        more = {"vector": self.vector} if vector and self.vector is not None else {}
        return {
            "id": self.id,
            "kind": self.kind,
            "rule": self.rule,
            "camera": self.camera,
            "time": iso(self.wall),
            "unix": round(self.wall, 3),
            "seconds": round(self.seconds, 3),
            "uncertainty_s": round(self.uncertainty, 3),
            "track": self.track,
            "identity": self.identity,
            "reid_state": self.state,
            "probability": None if self.probability is None else round(self.probability, 4),
            "previous_ids_chain": list(self.previous_ids),
            "details": self.details,
            **more,
        }

    @classmethod
    def of_json(cls, data: dict[str, Any]) -> Event:
        """What `as_json` gave."""
        return cls(
            id=data["id"],
            kind=data["kind"],
            rule=data["rule"],
            camera=data["camera"],
            wall=data["unix"],
            seconds=data["seconds"],
            uncertainty=data["uncertainty_s"],
            track=data["track"],
            identity=data["identity"],
            state=data["reid_state"],
            probability=data["probability"],
            previous_ids=tuple(data["previous_ids_chain"]),
            details=data["details"],
            vector=data.get("vector"),
        )

    def sentence(self) -> str:
        """The event in a line for people."""
        who = self.identity or (f"somebody (track {self.track})" if self.track else "")
        d = self.details
        says = {
            "entered": f"{who} entered",
            "identified": f"{who} was recognised",
            "left": f"{who} left after {span(d.get('duration_s'))}",
            "returned": f"{who} returned after {span(d.get('gap_s'))}, last seen at {d.get('from')}",
            "moved": f"{who} came from {d.get('from')} in {span(d.get('gap_s'))}",
            "dwelled": f"{who} has been in {d.get('zone')} for {span(d.get('duration_s'))}",
            "crossed": f"{who} crossed {d.get('line')} {str(d.get('direction', '')).replace('_', ' ')}",
            "person_of_interest": f"{who} is here",
            "merged": f"{who} is one person with {', '.join(self.previous_ids)}",
            "split": f"{who} is not {d.get('from_identity')}",
            "camera_lost": f"no pictures: {d.get('message', '')}",
            "camera_back": f"pictures again after {span(d.get('gap_s'))}",
        }
        return says.get(self.kind, f"{who} {self.kind}".strip())


def iso(wall: float) -> str:
    """Unix seconds as ISO 8601 in UTC, to the millisecond."""
    begin = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    when = begin + datetime.timedelta(milliseconds=round(wall * 1000))
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def span(seconds: float | None) -> str:
    """A length of time for people: "8 s", "4 min 10 s", "2 h 5 min"."""
    if seconds is None:
        return "an unknown time"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
