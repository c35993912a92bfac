"""What the store keeps: its tables, and tracks and corrections as records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, camera TEXT NOT NULL,
    wall REAL NOT NULL, identity TEXT, body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS events_wall ON events (wall);
CREATE TABLE IF NOT EXISTS event_people (seq INTEGER NOT NULL, identity TEXT NOT NULL, PRIMARY KEY (identity, seq));
CREATE TABLE IF NOT EXISTS tracks (
    camera TEXT NOT NULL, track TEXT NOT NULL, run TEXT NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    uncertainty REAL NOT NULL, identity TEXT, state TEXT NOT NULL, probability REAL, visibility REAL, thumbnail BLOB,
    PRIMARY KEY (run, camera, track));
CREATE INDEX IF NOT EXISTS tracks_identity ON tracks (identity, last);
CREATE INDEX IF NOT EXISTS tracks_last ON tracks (last);
CREATE TABLE IF NOT EXISTS corrections (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, wall REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS correction_people (seq INTEGER NOT NULL, identity TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS names (identity TEXT PRIMARY KEY, name TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outputs (name TEXT PRIMARY KEY, delivered INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS refused (output TEXT NOT NULL, seq INTEGER NOT NULL, reason TEXT NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class TrackRecord:
    """One track, as it is kept."""

    camera: str
    track: str
    first: float
    """Unix seconds of the first sight, by the time of day."""
    last: float
    uncertainty: float = 0.0
    identity: str | None = None
    state: str = "pending"
    probability: float | None = None
    visibility: float | None = None
    run: str = ""


@dataclass(frozen=True, kw_only=True)
class Correction:
    """Something that a person said about identities."""

    kind: str
    """merge, split or name."""
    wall: float
    body: dict[str, Any]
