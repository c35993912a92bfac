"""Read TOML, and find again on which line each of its values is: the standard library's reader does not say."""

from __future__ import annotations

import re
import sys
from typing import Any

from dpm_edge.errors import MissingLibrary, SiteError

Place = tuple[str | int, ...]
"""Keys and list positions that lead to a value: ("rules", 0, "after")."""
_BARE = r"[A-Za-z0-9_-]+"
_KEY = re.compile(rf"""\s*((?:{_BARE}|"[^"]*"|'[^']*')(?:\s*\.\s*(?:{_BARE}|"[^"]*"|'[^']*'))*)\s*=""")
_HEADER = re.compile(r"\s*(\[\[?)\s*([^\]]+?)\s*\]\]?\s*(#.*)?$")


def read_toml(text: str, name: str) -> dict[str, Any]:
    """Parse a document.

    Raises:
        SiteError: it is no TOML; the message has the line.
        MissingLibrary: Python is 3.10, and tomli is not installed.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise MissingLibrary("tomli", "reading TOML with Python 3.10", "pip install 'dpm-edge[watch]'") from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column (\d+)\)", str(error))
        line = f":{at[1]}" if at else ""
        reason = str(error).replace(at[0], "") if at else str(error)
        raise SiteError(f"{name}{line}: expected TOML, got what cannot be read ({reason}). Mend that line") from error


def lines_of(text: str) -> dict[Place, int]:
    """Find the line, counted from 1, of every table and key that stands at the start of a line."""
    found: dict[Place, int] = {(): 1}
    counts: dict[Place, int] = {}
    here: Place = ()
    open_text: str | None = None
    depth = 0
    for number, line in enumerate(text.splitlines(), start=1):
        if open_text is None and depth == 0:
            header, key = _HEADER.match(line), _KEY.match(line)
            if header:
                here = _table(_parts(header[2]), header[1] == "[[", counts)
                found.setdefault(here, number)
                continue
            if key:
                found.setdefault(here + _parts(key[1]), number)
                line = line[key.end() :]
        open_text, depth = _rest(line, open_text, depth)
    return found


def line_of(lines: dict[Place, int], place: Place) -> int:
    """The line of a value, or of the nearest table around it."""
    while place not in lines:
        place = place[:-1]
    return lines[place]


def _table(parts: Place, repeated: bool, counts: dict[Place, int]) -> Place:
    """Where a header leads: the newest of each repeated table on the way, and a new one where it says [[…]]."""
    here: Place = ()
    for part in parts[:-1]:
        here = (*here, part)
        if here in counts:
            here = (*here, counts[here])
    here = (*here, parts[-1])
    if repeated:
        counts[here] = counts.get(here, -1) + 1
        return (*here, counts[here])
    return here


def _parts(key: str) -> Place:
    return tuple(part.strip("\"'") for part in re.findall(rf"""{_BARE}|"[^"]*"|'[^']*'""", key))


def _rest(line: str, open_text: str | None, depth: int) -> tuple[str | None, int]:
    """Whether a text of several lines is open after this one, and how deep inside lists and inline tables it ends."""
    at = 0
    while at < len(line):
        if open_text is not None:
            end = line.find(open_text, at)
            while open_text[0] == '"' and end > 0 and line[end - 1] == "\\":
                end = line.find(open_text, end + 1)
            if end < 0:
                return (open_text if len(open_text) == 3 else None), depth
            at, open_text = end + len(open_text), None
            continue
        character = line[at]
        if character in "\"'":
            open_text = character * 3 if line.startswith(character * 3, at) else character
            at += len(open_text)
            continue
        if character == "#":
            break
        depth += (character in "[{") - (character in "]}")
        at += 1
    return None if open_text is None or len(open_text) < 3 else open_text, max(depth, 0)
