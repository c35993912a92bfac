"""One SQLite file for tracks, events, corrections and what outputs still have to deliver.

An event that `add_events` returned from survives the end of the process and of the machine: write-ahead log, synced at
each commit. Deleted rows are overwritten, so that `forget` leaves no bytes behind.
"""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from dpm_edge.errors import WatchStoreError
from dpm_edge.watch.events import Event
from dpm_edge.watch.records import SCHEMA, VERSION, Correction, TrackRecord


class WatchStore:
    """Tracks, events and corrections in one file; safe to use from several threads. Use it in a `with`.

    Args:
        path: the file; it is made where it is missing. ":memory:" keeps nothing.
        run: names this run, so that track ids of several runs stay apart.

    Raises:
        WatchStoreError: another process holds it, it is damaged, or it is of a newer version.
    """

    def __init__(self, path: str | Path, *, run: str | None = None) -> None:
        self.path = str(path)
        self.run = secrets.token_hex(3) if run is None else run
        self._lock = threading.RLock()
        self._added = threading.Condition(self._lock)
        self._lock_file: int | None = None
        if self.path != ":memory:":
            self._hold(Path(path))
        try:
            self._database = sqlite3.connect(self.path, check_same_thread=False, isolation_level=None, timeout=5)
            with self._turning_errors():
                self._open()
        except BaseException:
            self._let_go()
            raise

    def __enter__(self) -> WatchStore:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; a second call does nothing."""
        with self._added:
            if self._lock_file is not None or self.path == ":memory:":
                self._database.close()
            self._let_go()
            self._added.notify_all()

    def add_events(self, events: Iterable[Event]) -> None:
        """Keep events; when this returns they survive a killed process. An id that is there already is left out.

        Raises:
            WatchStoreError: the disk is full; nothing was added.
        """
        with self._changing() as database:
            for event in events:
                body = json.dumps(event.as_json(vector=True), ensure_ascii=False)
                row = (event.id, event.kind, event.camera, event.wall, event.identity, body)
                done = database.execute(
                    "INSERT OR IGNORE INTO events (id, kind, camera, wall, identity, body) VALUES (?, ?, ?, ?, ?, ?)",
                    row,
                )
                if done.rowcount:
                    people = [(done.lastrowid, one) for one in sorted(event.people())]
                    database.executemany("INSERT OR IGNORE INTO event_people VALUES (?, ?)", people)
        with self._added:
            self._added.notify_all()

    def events(
        self,
        *,
        after: int = 0,
        limit: int = 100,
        newest: bool = False,
        kinds: Iterable[str] = (),
        camera: str | None = None,
        identity: str | None = None,
        since: float | None = None,
        until: float | None = None,
    ) -> list[tuple[int, Event]]:
        """Events with their number in the store, in order of that number; `newest`: the last ones, newest first."""
        kinds = tuple(kinds)
        where = ["seq > ?"]
        values: list[Any] = [after]
        conditions: list[tuple[str, Any]] = [
            ("camera = ?", camera),
            ("seq IN (SELECT seq FROM event_people WHERE identity = ?)", identity),
            ("wall >= ?", since),
            ("wall < ?", until),
        ]
        for text, value in conditions:
            if value is not None:
                where.append(text)
                values.append(value)
        if kinds:
            where.append(f"kind IN ({', '.join('?' * len(kinds))})")
            values += kinds
        order = "DESC" if newest else "ASC"
        rows = self._read(
            f"SELECT seq, body FROM events WHERE {' AND '.join(where)} ORDER BY seq {order} LIMIT ?", (*values, limit)
        )
        return [(seq, Event.of_json(json.loads(body))) for seq, body in rows]

    def wait_for_events(self, after: int, timeout: float) -> bool:
        """Wait until there is an event beyond number `after`; whether there is."""
        with self._added:
            return bool(self._added.wait_for(lambda: self._lock_is_gone() or self._last_seq() > after, timeout))

    def last_seq(self) -> int:
        """Number of the newest event ever kept; 0 where there was none."""
        with self._lock:
            return self._last_seq()

    def put_tracks(self, tracks: Iterable[TrackRecord], thumbnails: dict[tuple[str, str], bytes] | None = None) -> None:
        """Write tracks of this run, anew or again; thumbnails (camera, track) → JPEG are added to them."""
        with self._changing() as database:
            for one in tracks:
                database.execute(
                    "INSERT INTO tracks (camera, track, run, first, last, uncertainty, identity, state, probability, "
                    "visibility) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET last = excluded.last, "
                    "uncertainty = excluded.uncertainty, identity = excluded.identity, state = excluded.state, "
                    "probability = excluded.probability, visibility = excluded.visibility",
                    (
                        one.camera, one.track, one.run or self.run, one.first, one.last, one.uncertainty, one.identity,
                        one.state, one.probability, one.visibility,
                    ),
                )  # fmt: skip
            for (camera, track), jpeg in (thumbnails or {}).items():
                database.execute(
                    "UPDATE tracks SET thumbnail = ? WHERE run = ? AND camera = ? AND track = ?",
                    (jpeg, self.run, camera, track),
                )

    def tracks(self, *, identity: str | None = None, limit: int = 1000, since: float = 0.0) -> list[TrackRecord]:
        """Tracks, newest first; of one identity, or of all."""
        columns = "camera, track, first, last, uncertainty, identity, state, probability, visibility, run"
        where = "last >= ?" if identity is None else "last >= ? AND identity = ?"
        values = (since, limit) if identity is None else (since, identity, limit)
        rows = self._read(f"SELECT {columns} FROM tracks WHERE {where} ORDER BY last DESC LIMIT ?", values)
        return [TrackRecord(**dict(zip(columns.split(", "), row))) for row in rows]

    def people(self, *, limit: int = 500) -> list[dict[str, Any]]:
        """Every identity with its name, first and last sight, cameras and number of tracks; latest first."""
        rows = self._read(
            "SELECT t.identity, n.name, MIN(first), MAX(last), COUNT(*), GROUP_CONCAT(DISTINCT camera), "
            "MAX(thumbnail IS NOT NULL) FROM tracks t LEFT JOIN names n ON n.identity = t.identity "
            "WHERE t.identity IS NOT NULL GROUP BY t.identity ORDER BY MAX(last) DESC LIMIT ?",
            (limit,),
        )
        keys = ("identity", "name", "first", "last", "tracks", "cameras", "thumbnail")
        people = [dict(zip(keys, row)) for row in rows]
        for one in people:
            one["cameras"], one["thumbnail"] = sorted(one["cameras"].split(",")), bool(one["thumbnail"])
        return people

    def thumbnail(self, identity: str) -> bytes | None:
        """JPEG of an identity's most visible track that has one."""
        rows = self._read(
            "SELECT thumbnail FROM tracks WHERE identity = ? AND thumbnail IS NOT NULL "
            "ORDER BY visibility DESC LIMIT 1",
            (identity,),
        )
        return rows[0][0] if rows else None

    def last_sightings(self) -> list[tuple[str, str, float, float]]:
        """(identity, camera, last time, its uncertainty) of every identity at every camera."""
        return self._read(
            "SELECT identity, camera, MAX(last), uncertainty FROM tracks WHERE identity IS NOT NULL "
            "GROUP BY identity, camera"
        )

    def add_correction(self, correction: Correction, people: Iterable[str]) -> None:
        """Keep what somebody said about identities; when this returns it survives a killed process."""
        with self._changing() as database:
            done = database.execute(
                "INSERT INTO corrections (wall, kind, body) VALUES (?, ?, ?)",
                (correction.wall, correction.kind, json.dumps(correction.body, ensure_ascii=False)),
            )
            database.executemany("INSERT INTO correction_people VALUES (?, ?)", [(done.lastrowid, p) for p in people])
            body = correction.body
            if correction.kind == "name":
                database.execute("INSERT OR REPLACE INTO names VALUES (?, ?)", (body["identity"], body["name"]))
            elif correction.kind == "merge":
                database.execute("UPDATE tracks SET identity = ? WHERE identity = ?", (body["into"], body["identity"]))
                database.execute(
                    "UPDATE OR IGNORE names SET identity = ? WHERE identity = ?", (body["into"], body["identity"])
                )
                database.execute("DELETE FROM names WHERE identity = ?", (body["identity"],))
            elif correction.kind == "split":
                database.execute(
                    "UPDATE tracks SET identity = ? WHERE identity = ? AND camera = ? AND track = ?",
                    (body["into"], body["identity"], body["camera"], body["track"]),
                )

    def corrections(self) -> list[Correction]:
        """Everything that was said about identities, oldest first."""
        rows = self._read("SELECT wall, kind, body FROM corrections ORDER BY seq")
        return [Correction(kind=kind, wall=wall, body=json.loads(body)) for wall, kind, body in rows]

    def heard(self) -> float | None:
        """When the last correction of another program that was acted on was written; None where there was none."""
        rows = self._read("SELECT value FROM meta WHERE key = 'heard'")
        return float(rows[0][0]) if rows else None

    def set_heard(self, written: float) -> None:
        """Remember that corrections of other programs up to then were acted on."""
        with self._changing() as database:
            database.execute("INSERT OR REPLACE INTO meta VALUES ('heard', ?)", (repr(written),))

    def names(self) -> dict[str, str]:
        """Identity → the name that somebody gave."""
        return dict(self._read("SELECT identity, name FROM names"))

    def register_output(self, name: str) -> None:
        """Remember an output: it gets events from now on; one that is known goes on where it was."""
        with self._changing() as database:
            database.execute("INSERT OR IGNORE INTO outputs VALUES (?, ?)", (name, self._last_seq()))

    def undelivered(self, name: str, limit: int = 100) -> list[tuple[int, Event]]:
        """The next events that an output has to deliver, in order."""
        rows = self._read("SELECT delivered FROM outputs WHERE name = ?", (name,))
        return self.events(after=rows[0][0], limit=limit) if rows else []

    def backlog(self, name: str) -> int:
        """How many events an output still has to deliver."""
        (row,) = self._read(
            "SELECT COUNT(*) FROM events WHERE seq > COALESCE((SELECT delivered FROM outputs WHERE name = ?), 0)",
            (name,),
        )
        return row[0]

    def delivered(self, name: str, seq: int, refused: str = "") -> None:
        """Note that an output has delivered an event; or that the receiver `refused` it, and why."""
        with self._changing() as database:
            database.execute("UPDATE outputs SET delivered = MAX(delivered, ?) WHERE name = ?", (seq, name))
            if refused:
                database.execute("INSERT INTO refused VALUES (?, ?, ?)", (name, seq, refused))

    def refused(self, name: str) -> list[tuple[int, str]]:
        """Events that the receiver of an output refused: their numbers and why."""
        return self._read("SELECT seq, reason FROM refused WHERE output = ? ORDER BY seq", (name,))

    def forget(self, identity: str) -> int:
        """Delete every track, thumbnail, event, correction and name of an identity, and their bytes; how many rows."""
        count = 0
        with self._changing() as database:
            queries = (
                "DELETE FROM events WHERE seq IN (SELECT seq FROM event_people WHERE identity = ?)",
                "DELETE FROM corrections WHERE seq IN (SELECT seq FROM correction_people WHERE identity = ?)",
                "DELETE FROM tracks WHERE identity = ?",
                "DELETE FROM names WHERE identity = ?",
            )
            for query in queries:
                count += database.execute(query, (identity,)).rowcount
            self._drop_orphans(database)
        self._empty_log()
        return count

    def expire(self, before: float) -> int:
        """Delete every track and event from before a time of day, delivered or not; how many rows."""
        with self._changing() as database:
            count = database.execute("DELETE FROM events WHERE wall < ?", (before,)).rowcount
            count += database.execute("DELETE FROM tracks WHERE last < ?", (before,)).rowcount
            database.execute(
                "DELETE FROM names WHERE identity NOT IN (SELECT identity FROM tracks WHERE identity IS NOT NULL)"
            )
            self._drop_orphans(database)
        if count:
            self._empty_log()
        return count

    def _drop_orphans(self, database: sqlite3.Connection) -> None:
        database.execute("DELETE FROM event_people WHERE seq NOT IN (SELECT seq FROM events)")
        database.execute("DELETE FROM correction_people WHERE seq NOT IN (SELECT seq FROM corrections)")
        database.execute("DELETE FROM refused WHERE seq NOT IN (SELECT seq FROM events)")

    def _empty_log(self) -> None:
        """Bring the log into the file and cut it to nothing, so that no deleted row lives on in it."""
        with self._lock, self._turning_errors():
            self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _open(self) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON", "busy_timeout = 5000"):
            self._database.execute(f"PRAGMA {pragma}").fetchall()
        found = self._database.execute("PRAGMA user_version").fetchone()[0]
        if found > VERSION:
            raise WatchStoreError(
                f"expected a store of version {VERSION}, got version {found} in {self.path}. Use a newer dpm-edge"
            )
        self._database.executescript(f"BEGIN; {SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")

    def _last_seq(self) -> int:
        rows = self._database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'events'").fetchone()
        return rows[0] if rows else 0

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._lock, self._turning_errors():
            return self._database.execute(query, values).fetchall()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it, or, when anything fails, nothing."""
        with self._lock, self._turning_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield self._database
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:  # a full disk has ended it already
                    self._database.execute("ROLLBACK")
                raise

    @contextmanager
    def _turning_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise WatchStoreError(_explain(error, self.path)) from error

    def _lock_is_gone(self) -> bool:
        return self._lock_file is None and self.path != ":memory:"

    def _hold(self, path: Path) -> None:
        """Take the lock of the store's file: the system lets go of it when the process ends, however it ends."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock_file = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise WatchStoreError(f"expected a folder to write to, got {path.parent}: {error.strerror}") from error
        try:
            _lock_whole(self._lock_file)
        except OSError as error:
            owner = os.pread(self._lock_file, 32, 0).decode("ascii", "replace").strip() if hasattr(os, "pread") else "?"
            self._let_go()
            raise WatchStoreError(
                f"expected a store that nobody uses, got {path}, which process {owner or '?'} holds. Stop that one, or "
                'give this one another folder: [site] folder = "…"'
            ) from error
        os.ftruncate(self._lock_file, 0)
        os.write(self._lock_file, str(os.getpid()).encode())

    def _let_go(self) -> None:
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None


def _explain(error: sqlite3.Error, path: str) -> str:
    """Say what SQLite's error means here."""
    text = str(error)
    if "full" in text:
        return f"expected room to write {path}, got a full disk. Free some space; nothing that was kept is lost"
    if "not a database" in text or "malformed" in text:
        return f"expected a store, got {path}, which is damaged or no store ({text}). Move it away to start anew"
    if "readonly" in text or "unable to open" in text:
        return f"expected the right to write {path}, got none ({text}). Change its rights, or choose another folder"
    if "closed" in text:
        return f"expected an open store, got {path}, which is closed"
    return f"expected SQLite to do it, got {text} for {path}"


def _lock_whole(file: int) -> None:
    """Lock a file for this process alone.

    Raises:
        OSError: another process has it.
    """
    if os.name == "nt":
        import msvcrt

        lock: Callable[..., Any] = msvcrt.locking  # type: ignore[attr-defined]
        lock(file, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        return
    import fcntl

    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
