"""What a site file says, checked: cameras, zones, lines, rules, people and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from dpm_edge.errors import SiteError, nearest

Point = tuple[float, float]
"""x, y: in pixels, or as shares of the frame where every number of a zone or line is in 0..1."""

DEFAULT_RULES = ("entered", "identified", "left", "returned", "moved", "merged", "split", "camera_lost", "camera_back")
"""Kinds of events that are reported where the site file has no rules."""
CLOCK_ERROR = 0.5
"""How far a camera's times of day may be wrong, in seconds, where a site file says nothing."""
READERS = ("auto", "opencv", "pyav")
"""What reads network streams; "auto": PyAV for RTSP where it is installed, else OpenCV."""
ROTATIONS = (0, 90, 180, 270)
DETECTOR_LAYOUTS = ("auto", "rf-detr", "detr", "yolox", "ultralytics", "ultralytics-end-to-end", "mmdeploy")
"""What the exports of other projects' detectors look like (`detector_exports.LAYOUTS`)."""
RETURN_SECONDS = 60.0
"""Absence that makes a return, where a rule says none."""


@dataclass(frozen=True, kw_only=True)
class CameraConfig:
    """One camera."""

    name: str
    source: str = field(repr=False)
    """A file, a folder, rtsp://… or the number of a USB camera."""
    start: float | None = None
    """Unix seconds of a file's first frame; the start of the run without."""
    clock_error: float = CLOCK_ERROR
    """How far its times of day may be wrong, in seconds."""
    stall_after: float = 10.0
    """Seconds without a frame after which it is connected anew."""
    every: int = 1
    """Of a file, use every n-th frame."""
    detect_every: int | None = None
    """Detect people in every n-th frame that is used, and follow their motion between; None: as the machine can."""
    reader: str = "auto"
    """What reads a network stream, one of READERS."""
    rotate: int = 0
    """Degrees clockwise by which its pictures are turned, one of ROTATIONS."""


@dataclass(frozen=True, kw_only=True)
class Zone:
    """An area of a camera's picture; somebody is in it whose feet are."""

    name: str
    camera: str
    points: tuple[Point, ...]


@dataclass(frozen=True, kw_only=True)
class CountingLine:
    """A line over a camera's picture; somebody crosses it whose feet do."""

    name: str
    camera: str
    begin: Point
    end: Point


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When to report an event, and which."""

    name: str
    event: str
    """A kind of event (events.KINDS)."""
    cameras: tuple[str, ...] = ()
    """Only at these; at all without."""
    people: tuple[str, ...] = ()
    """Only these identities or names; everybody without."""
    after: float = 0.0
    """Seconds: of absence before a return, or in a zone."""
    within: float | None = None
    """Seconds from A to B at most."""
    origin: str | None = None
    """Camera A."""
    destination: str | None = None
    """Camera B."""
    zone: str | None = None
    line: str | None = None
    direction: str = "both"
    """left_to_right, right_to_left or both, looking along the line from its first point to its second."""
    least_probability: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PersonOfInterest:
    """Somebody who is known by pictures."""

    name: str
    pictures: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Travel:
    """How long people need from one camera to another, in seconds."""

    origin: str
    destination: str
    least: float
    most: float | None = None


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """Where events go."""

    name: str
    kind: str
    """jsonl, webhook or mqtt."""
    path: Path | None = None
    url: str = ""
    secret: str = field(default="", repr=False)
    """Signs webhooks (HMAC-SHA256)."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    host: str = ""
    port: int = 1883
    topic: str = "dpm-edge"
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    tls: bool = False
    events: tuple[str, ...] = ()
    """Only these kinds; all without."""
    vectors: bool = False
    """Add what a track looks like to events of somebody who has an identity."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Everything that a site file says."""

    name: str = "site"
    cameras: tuple[CameraConfig, ...] = ()
    zones: tuple[Zone, ...] = ()
    lines: tuple[CountingLine, ...] = ()
    rules: tuple[Rule, ...] = tuple(
        Rule(name=kind, event=kind, after=RETURN_SECONDS if kind == "returned" else 0.0) for kind in DEFAULT_RULES
    )
    people: tuple[PersonOfInterest, ...] = ()
    travel: tuple[Travel, ...] = ()
    elsewhere: tuple[CameraConfig, ...] = ()
    """Cameras of the site that other programs with the same gallery watch."""
    overlaps: tuple[tuple[str, str], ...] = ()
    """Pairs of cameras that see one place at one time."""
    outputs: tuple[OutputConfig, ...] = ()
    folder: Path = Path("watch")
    """Where the store, the gallery and the engine are kept."""
    engine: Path | None = None
    detector: Path | None = None
    """Another project's export, or None for the one that ships."""
    detector_layout: str = "auto"
    """A name of `detector_exports.LAYOUTS`; "auto": by the file's inputs and outputs."""
    detector_person: int | None = None
    """Its class of a person; None: by its names or its layout."""
    detector_size: tuple[int, int] | None = None
    """Width and height of its input; None: as the file says."""
    gallery: str | None = None
    """A folder or a server's address; `folder`/gallery without."""
    keep: float | None = None
    """Seconds after which tracks, events and thumbnails are deleted; kept for ever without."""
    thumbnails: bool = False
    """Keep a small picture of each track."""
    host: str = "127.0.0.1"
    port: int = 8080
    token: str = field(default="", repr=False)
    """What the page asks for; always needed beyond loopback."""


def part_of(site: Site, cameras: Sequence[str]) -> Site:
    """A site of which this program watches some cameras, and others the rest.

    Raises:
        SiteError: a camera is none of the site's.
    """
    known = [one.name for one in site.cameras]
    for name in cameras:
        if name not in known:
            raise SiteError(f"expected cameras of the site to watch, got {name!r}.{nearest(name, known)}")
    here = tuple(one for one in site.cameras if one.name in cameras)
    return replace(site, cameras=here, elsewhere=tuple(one for one in site.cameras if one.name not in cameras))
