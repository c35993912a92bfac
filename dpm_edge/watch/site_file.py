"""Read a site file, site.toml, and check all of it: every problem is reported with its line, all of them at once."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dpm_edge.errors import DataError, GalleryError, SiteError, SourceError, nearest
from dpm_edge.files import decode_text
from dpm_edge.gallery.times import moment
from dpm_edge.watch import addresses
from dpm_edge.watch.checked_table import CheckedTable
from dpm_edge.watch.events import KINDS
from dpm_edge.watch.site_config import (
    DETECTOR_LAYOUTS,
    READERS,
    RETURN_SECONDS,
    ROTATIONS,
    CameraConfig,
    CountingLine,
    OutputConfig,
    PersonOfInterest,
    Point,
    Rule,
    Site,
    Travel,
    Zone,
)
from dpm_edge.watch.toml_lines import Place, line_of, lines_of, read_toml

DIRECTIONS = ("left_to_right", "right_to_left", "both")
RULE_KEYS: dict[str, tuple[str, ...]] = {
    "returned": ("after",),
    "moved": ("from", "to", "within"),
    "dwelled": ("zone", "after"),
    "crossed": ("line", "direction"),
    "person_of_interest": (),
}
"""Keys that a rule of that event takes beside name, event, cameras, people and least_probability."""
REQUIRED = {"dwelled": ("zone", "after"), "crossed": ("line",), "person_of_interest": ("people",)}
OUTPUT_KEYS = {
    "jsonl": ("path",),
    "webhook": ("url", "secret", "headers"),
    "mqtt": ("host", "port", "topic", "user", "password", "tls"),
}
OUTPUT_REQUIRED = {"jsonl": ("path",), "webhook": ("url",), "mqtt": ("host",)}


def read_site(path: Path) -> Site:
    """Read and check a site file. Paths in it are relative to its folder; ${NAME} stands for an environment variable.

    Raises:
        SiteError: it is missing, is no TOML, or says something that cannot be; each problem with its line.
    """
    try:
        text = decode_text(path, path.read_bytes())
    except OSError as error:
        raise SiteError(f"expected a site file, got {path}: {error.strerror}. Check the path") from error
    except DataError as error:
        raise SiteError(str(error)) from error
    return parse_site(text, path.name, path.parent)


def parse_site(text: str, name: str = "site.toml", folder: Path = Path()) -> Site:
    """Check the text of a site file; `folder` is what its paths are relative to.

    Raises:
        SiteError: as `read_site`.
    """
    document = read_toml(text, name)
    checker = _Checker(document, lines_of(text), name, folder)
    site = checker.site()
    if checker.problems:
        raise SiteError("\n".join(text for _, text in sorted(checker.problems)))
    return site


class _Checker:
    def __init__(self, document: dict[str, Any], lines: dict[Place, int], name: str, folder: Path) -> None:
        self._document, self._lines, self._name, self._folder = document, lines, name, folder
        self.problems: list[tuple[int, str]] = []
        self._cameras: list[str] = []

    def problem(self, place: Place, message: str) -> None:
        line = line_of(self._lines, place)
        self.problems.append((line, f"{self._name}:{line}: {message}"))

    def expand(self, text: str, place: Place) -> str:
        """Put environment variables in, so that no password stands in the file."""

        def value(match: re.Match[str]) -> str:
            if match[1] not in os.environ:
                self.problem(place, f"expected the environment variable {match[1]}, got none. Set it before the start")
            return os.environ.get(match[1], "")

        return re.sub(r"\$\{(\w+)\}", value, text)

    def path(self, text: str | None) -> Path | None:
        return None if text is None else self._folder / text

    def site(self) -> Site:
        top = CheckedTable(self, (), self._document)
        cameras = self._camera_tables(top)
        self._cameras = [camera.name for camera in cameras]
        zones = tuple(self._zone(table) for table in self._tables(top, "zones", unique=True))
        lines = tuple(self._line(table) for table in self._tables(top, "lines", unique=True))
        people = tuple(self._person(table) for table in self._tables(top, "people", unique=True))
        rules = [self._rule(table, cameras, zones, lines) for table in self._tables(top, "rules")]
        travel = tuple(self._travel(table) for table in self._tables(top, "travel"))
        overlaps = tuple(self._overlap(table) for table in self._tables(top, "overlaps"))
        outputs = tuple(self._output(table) for table in self._tables(top, "outputs"))
        self._same_output(outputs)
        more: dict[str, Any] = {"rules": tuple(rules)} if "rules" in self._document else {}
        more |= self._general(CheckedTable(self, ("site",), top.get("site", (dict,), "a table [site]", {})))
        more |= self._page(CheckedTable(self, ("page",), top.get("page", (dict,), "a table [page]", {})))
        top.end()
        return Site(
            cameras=tuple(cameras),
            zones=zones,
            lines=lines,
            people=people,
            travel=travel,
            overlaps=tuple(pair for pair in overlaps if len(pair) == 2),
            outputs=outputs,
            **more,
        )

    def _tables(self, top: CheckedTable, key: str, *, unique: bool = False) -> list[CheckedTable]:
        found = top.get(key, (list,), f"tables [[{key}]]", [])
        tables = [CheckedTable(self, (key, number), values) for number, values in enumerate(found)]
        names: set[Any] = set()
        for table in tables if unique else []:
            name = table.values.get("name")
            if isinstance(name, str) and name in names:
                table.problem("name", f"expected one of {key} called {name!r}, got two. Rename one")
            names.add(name if isinstance(name, str) else None)
        return tables

    def _camera_tables(self, top: CheckedTable) -> list[CameraConfig]:
        found = top.get("cameras", (dict,), "tables [cameras.NAME]", {})
        if not found:
            top.problem(None, 'expected at least one camera, got none. Add [cameras.door] with source = "rtsp://…"')
        return [self._camera(name, CheckedTable(self, ("cameras", name), values)) for name, values in found.items()]

    def _camera(self, name: str, table: CheckedTable) -> CameraConfig:
        source = table.get("source", (str, int), "a file, a folder, rtsp://… or a number", "")
        table.required("source")
        if "source" in table.values:
            try:
                what = addresses.kind(source)
                if what in ("file", "folder"):
                    source = str(self.path(str(source)))
            except SourceError as error:
                table.problem("source", str(error))
        start = table.get("start", (str, int, float), "a time", None)
        try:
            start = moment(start, "start")
        except GalleryError as error:
            table.problem("start", str(error))
            start = None
        camera = CameraConfig(
            name=name,
            source=str(source),
            start=start,
            clock_error=table.seconds("clock_error", 0.5),
            stall_after=table.seconds("stall_after", 10.0),
            every=table.number("every", 1, 1, 1000, whole=True),
            detect_every=table.number_or_word("detect_every", "auto", 1, 100),
            reader=table.text("reader", "auto", choices=READERS),
            rotate=table.number("rotate", 0, 0, 270, whole=True),
        )
        if camera.rotate not in ROTATIONS:
            turns = ", ".join(map(str, ROTATIONS))
            table.problem("rotate", f"expected rotate of {turns} degrees clockwise, got {camera.rotate}")
        if not re.fullmatch(r"[\w.-]{1,64}", name):
            table.problem(None, f"expected a camera name of letters, digits, . _ and -, got {name!r}. Rename it")
        if camera.stall_after < 1:
            table.problem("stall_after", f"expected stall_after of at least 1 s, got {camera.stall_after:g} s")
        table.end()
        return camera

    def _of_cameras(self, table: CheckedTable, key: str, value: str | None) -> str:
        if value is None:
            return ""
        if value not in self._cameras:
            known = nearest(value, self._cameras) if self._cameras else " There is none."
            table.problem(key, f"expected the name of a camera for {key}, got {value!r}.{known}")
        return value

    def _points(self, table: CheckedTable, key: str, least: int) -> tuple[Point, ...]:
        value = table.get(key, (list,), "points [[x, y], …]", [])
        good = all(
            isinstance(p, list)
            and len(p) == 2
            and all(isinstance(n, int | float) and not isinstance(n, bool) and n >= 0 for n in p)
            for p in value
        )
        if not good:
            table.problem(key, f"expected points [[x, y], …] of numbers 0 or more for {key}, got {value!r:.60}")
            return ()
        points = tuple((float(x), float(y)) for x, y in value)
        if key in table.values and (len(points) < least or len(set(points)) < least):
            table.problem(
                key, f"expected at least {least} different points for {key}, got {len(set(points))}. Add more"
            )
        return points

    def _zone(self, table: CheckedTable) -> Zone:
        table.required("name", "camera", "points")
        zone = Zone(
            name=table.text("name", ""),
            camera=self._of_cameras(table, "camera", table.text("camera")),
            points=self._points(table, "points", 3),
        )
        table.end()
        return zone

    def _line(self, table: CheckedTable) -> CountingLine:
        table.required("name", "camera", "points")
        points = self._points(table, "points", 2)
        if len(points) > 2:
            table.problem("points", f"expected 2 points of a line, got {len(points)}. Draw a line for each stretch")
        line = CountingLine(
            name=table.text("name", ""),
            camera=self._of_cameras(table, "camera", table.text("camera")),
            begin=points[0] if points else (0.0, 0.0),
            end=points[1] if len(points) > 1 else (1.0, 1.0),
        )
        table.end()
        return line

    def _rule(
        self, table: CheckedTable, cameras: list[CameraConfig], zones: tuple[Zone, ...], lines: tuple[CountingLine, ...]
    ) -> Rule:
        table.required("event")
        event = table.text("event", "entered", choices=KINDS)
        keys = RULE_KEYS.get(event, ())
        if "event" in table.values:
            table.required(*REQUIRED.get(event, ()))
        here = tuple(self._of_cameras(table, "cameras", one) for one in table.texts("cameras"))
        ends = {key: table.text(key) if key in keys else None for key in ("from", "to", "zone", "line")}
        rule = Rule(
            name=table.text("name", event),
            event=event,
            cameras=here,
            people=table.texts("people"),
            after=table.seconds("after", RETURN_SECONDS if event == "returned" else 0.0) if "after" in keys else 0.0,
            within=table.seconds("within") if "within" in keys else None,
            origin=self._of_cameras(table, "from", ends["from"]) or None,
            destination=self._of_cameras(table, "to", ends["to"]) or None,
            zone=self._named(table, "zone", ends["zone"], zones),
            line=self._named(table, "line", ends["line"], lines),
            direction=table.text("direction", "both", choices=DIRECTIONS) if "direction" in keys else "both",
            least_probability=table.number("least_probability", 0.0, 0.0, 1.0),
        )
        if rule.origin and rule.origin == rule.destination:
            table.problem("to", f"expected another camera than {rule.origin!r} to come to, got the same")
        for camera in cameras:
            concerned = not rule.cameras or camera.name in rule.cameras
            if event == "returned" and concerned and 0 < rule.after <= camera.clock_error:
                table.problem(
                    "after",
                    f"expected an absence longer than the clock of {camera.name!r} may be wrong "
                    f"({camera.clock_error:g} s), got {rule.after:g} s. Set its clock, or wait longer",
                )
        table.end()
        return rule

    def _named(
        self, table: CheckedTable, key: str, name: str | None, known: tuple[Zone, ...] | tuple[CountingLine, ...]
    ) -> str | None:
        names = [one.name for one in known]
        if name is not None and name not in names:
            offer = nearest(name, names) if names else f" There is none: add [[{key}s]]."
            table.problem(key, f"expected the name of a {key}, got {name!r}.{offer}")
        return name

    def _person(self, table: CheckedTable) -> PersonOfInterest:
        table.required("name", "pictures")
        pictures = tuple(self._folder / one for one in table.texts("pictures"))
        for picture in pictures:
            if not picture.is_file():
                table.problem("pictures", f"expected a picture file, got nothing at {picture}. Check the path")
        person = PersonOfInterest(name=table.text("name", ""), pictures=pictures)
        table.end()
        return person

    def _travel(self, table: CheckedTable) -> Travel:
        table.required("from", "to", "least")
        travel = Travel(
            origin=self._of_cameras(table, "from", table.text("from")),
            destination=self._of_cameras(table, "to", table.text("to")),
            least=table.seconds("least", 0.0),
            most=table.seconds("most"),
        )
        if travel.most is not None and travel.most < travel.least:
            table.problem("most", f"expected most of at least {travel.least:g} s, as least says, got {travel.most:g} s")
        table.end()
        return travel

    def _overlap(self, table: CheckedTable) -> tuple[str, ...]:
        table.required("cameras")
        pair = tuple(self._of_cameras(table, "cameras", one) for one in table.texts("cameras"))
        if "cameras" in table.values and len(set(pair)) != 2:
            table.problem("cameras", f"expected two cameras that see one place, got {len(set(pair))}")
        table.end()
        return pair

    def _output(self, table: CheckedTable) -> OutputConfig:
        table.required("kind")
        kind = table.text("kind", "jsonl", choices=OUTPUT_KEYS)
        if "kind" in table.values:
            table.required(*OUTPUT_REQUIRED[kind])
        allowed = OUTPUT_KEYS[kind]

        def text(key: str, default: str = "") -> str:
            return table.text(key, default) if key in allowed else default

        events = table.texts("events")
        for event in events:
            if event not in KINDS:
                table.problem("events", f"expected kinds of events, got {event!r}.{nearest(event, KINDS)}")
        headers = table.get("headers", (dict,), "a table of texts", {}) if "headers" in allowed else {}
        output = OutputConfig(
            name=table.text("name", kind),
            kind=kind,
            path=self.path(text("path") or None),
            url=text("url"),
            secret=text("secret"),
            headers=tuple((str(k), self.expand(str(v), (*table.place, "headers"))) for k, v in headers.items()),
            host=text("host"),
            port=table.number("port", 1883, 1, 65535, whole=True) if "port" in allowed else 1883,
            topic=text("topic", "dpm-edge"),
            user=text("user"),
            password=text("password"),
            tls=table.flag("tls") if "tls" in allowed else False,
            events=events,
            vectors=table.flag("vectors"),
        )
        if output.url and not re.match(r"https?://[^/\s]+", output.url):
            table.problem("url", f"expected http:// or https://, got {addresses.redacted(output.url)!r:.60}")
        table.end()
        return output

    def _same_output(self, outputs: tuple[OutputConfig, ...]) -> None:
        names = [output.name for output in outputs]
        for number, name in enumerate(names):
            if name in names[:number]:
                self.problem(
                    ("outputs", number, "name"), f"expected one output called {name!r}, got two. Give each a name = …"
                )

    def _general(self, table: CheckedTable) -> dict[str, Any]:
        general = {
            "name": table.text("name", "site"),
            "folder": self._folder / table.text("folder", "watch"),
            "engine": self.path(table.text("engine")),
            "detector": self.path(table.text("detector")),
            "detector_layout": table.text("detector_layout", "auto", choices=DETECTOR_LAYOUTS),
            "detector_person": table.get("detector_person", (int,), "the number of a class"),
            "detector_size": self._size(table, "detector_size"),
            "gallery": table.text("gallery"),
            "keep": table.seconds("keep"),
            "thumbnails": table.flag("thumbnails"),
        }
        if general["gallery"] and "://" not in general["gallery"]:
            general["gallery"] = str(self._folder / general["gallery"])
        table.end()
        return general

    def _size(self, table: CheckedTable, key: str) -> tuple[int, int] | None:
        value = table.get(key, (list,), "width and height, [640, 640]")
        if value is None:
            return None
        if len(value) != 2 or any(not isinstance(n, int) or n < 32 or n % 32 for n in value):
            table.problem(key, f"expected a width and height that are multiples of 32 for {key}, got {value!r:.60}")
            return None
        return int(value[0]), int(value[1])

    def _page(self, table: CheckedTable) -> dict[str, Any]:
        page = {
            "host": table.text("host", "127.0.0.1"),
            "port": table.number("port", 8080, 0, 65535, whole=True),
            "token": table.text("token", ""),
        }
        if page["token"] and len(page["token"]) < 16:
            table.problem(
                "token", f"expected a token of at least 16 characters, got {len(page['token'])}. Make it longer"
            )
        table.end()
        return page


def site_of(sources: Iterable[str], folder: Path) -> Site:
    """Make a site of addresses alone: each file or stream a camera, named after it, with the default rules.

    Raises:
        SiteError: there is no address.
        SourceError: an address is none.
    """
    cameras: dict[str, CameraConfig] = {}
    for number, source in enumerate(sources, start=1):
        what = addresses.kind(source)
        stem = Path(source).stem if what in ("file", "folder") else f"camera{number}"
        stem = re.sub(r"[^\w.-]+", "-", stem).strip("-") or f"camera{number}"
        name = stem if stem not in cameras else f"{stem}-{number}"
        cameras[name] = CameraConfig(name=name, source=source)
    if not cameras:
        raise SiteError("expected a site file, or at least one video or stream, got none. Run: dpm-edge watch door.mp4")
    return Site(cameras=tuple(cameras.values()), folder=folder)
