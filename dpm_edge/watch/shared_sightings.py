"""What programs that share a gallery on a server tell each other: who is where now, and what was corrected by hand.

The gallery's rows say what people look like, and come when a track has ended. That nobody is in two places at once,
and that a way takes its time, also needs the tracks of this moment at the other programs' cameras; and what somebody
says at one page must reach the others. Both lie in a second collection beside the gallery's, NAME_sightings: a row for
each track, written again as it goes on, and a row for each correction. They hold no looks: the vector is a constant.

A thread writes and reads about once a second, so that no frame waits for the server. Rows are read by the time at which
they were written; the programs' clocks must agree within CLOCK_SECONDS for that.
"""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np

from dpm_edge.errors import DpmError, GalleryError
from dpm_edge.gallery.ids import Ids
from dpm_edge.gallery.rows import Rows, Where
from dpm_edge.gallery.stores.address import create_store, is_there, open_store
from dpm_edge.gallery.stores.store import Store, new_meta
from dpm_edge.progress import say

EXCHANGE_SECONDS = 0.5
"""Pause between two exchanges with the server."""
CLOCK_SECONDS = 10.0
"""How far the clocks of two programs may differ."""
READ_BACK_SECONDS = CLOCK_SECONDS + 30.0
"""Each exchange reads so far back: a server may take its client's whole time-out to take a row."""
STAY_SECONDS, CORRECTION_SECONDS = 86400.0, 30 * 86400.0
"""How long tracks and corrections are kept; names are kept until they are changed or forgotten."""
EXPIRE_SECONDS = 3600.0
"""So often old rows are removed."""
FINGERPRINT, DIMENSION = "sightings of dpm-edge watch", 2
"""Of the collection: Milvus takes no vector of one dimension, and no row without a vector."""
OPEN_TRIES, OPEN_PAUSE = 5, 1.0
"""Two programs that start at one time may both try to make the collection."""


@dataclass(frozen=True, kw_only=True)
class SharedStay:
    """One track of one program, as the others hear of it."""

    identity: str
    camera: str
    track: str
    start: float
    last: float
    """Seconds, by the programs' clocks."""
    since: float
    """When the track got this identity."""


@dataclass(frozen=True, kw_only=True)
class SharedCorrection:
    """What somebody said about an identity at one program's page."""

    kind: str
    """merge, name or forget."""
    identity: str
    into: str = ""
    """Of a merge."""
    name: str = ""
    written: float = 0.0
    """Unix seconds, by the clock of the program that wrote it."""


@dataclass(frozen=True, kw_only=True)
class News:
    """What the other programs have told since the last time."""

    corrections: list[SharedCorrection] = field(default_factory=list)
    """By the time at which they were made."""
    stays: list[SharedStay] = field(default_factory=list)


class SharedSightings:
    """Tracks and corrections of all programs that share a gallery. `put`, `tell` and `news` wait for nothing.

    with SharedSightings.beside("qdrant://db:6333/site") as shared:
        identities = Identities(gallery, shared=shared)
    """

    def __init__(self, store: Store, *, keep: float | None = None, clock: Callable[[], float] = time.time) -> None:
        """Over an open store; nothing is exchanged until `start` or `exchange`. keep: seconds, of a day at most."""
        self._store, self._ids, self._clock = store, Ids(store), clock
        self._keep = STAY_SECONDS if keep is None else min(keep, STAY_SECONDS)
        self._writer = secrets.token_hex(6)
        self._lock, self._busy = threading.Lock(), threading.Lock()
        self._waiting: dict[tuple[str, str], SharedStay] = {}
        self._to_tell: list[SharedCorrection] = []
        self._stays: list[SharedStay] = []
        self._corrections: list[SharedCorrection] = []
        self._mine: dict[tuple[str, str], tuple[int, float]] = {}
        self._into: dict[str, str] = {}
        self._forgotten: set[str] = set()
        self._read_until: float | None = None
        self._read_before: dict[int, float] = {}
        self._written: dict[tuple[str, str], float] = {}
        self._heard = clock()
        self._expired = float("-inf")
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.message = ""
        """Why the last exchange failed; empty while all is well."""

    @classmethod
    def beside(cls, gallery: str, *, keep: float | None = None) -> SharedSightings:
        """Open, or make, the collection beside the gallery at a server's address.

        Args:
            gallery: its address.
            keep: seconds after which tracks are removed, a day at most; a day without.

        Raises:
            GalleryError: the server does not answer, or the collection is something else.
            MissingLibrary: the store's library is not installed.
        """
        parts = urlsplit(gallery)
        place = urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}_sightings"))
        for tries in range(OPEN_TRIES, 0, -1):
            try:
                if is_there(place):
                    return cls(open_store(place), keep=keep)
                return cls(create_store(place, new_meta(FINGERPRINT, DIMENSION, False)), keep=keep)
            except GalleryError:  # another program is making it at this moment
                if tries == 1:
                    raise
            time.sleep(OPEN_PAUSE)
        raise AssertionError("the last try returns or raises")

    def __enter__(self) -> SharedSightings:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def start(self, heard: float | None = None) -> None:
        """Exchange in the background from now on.

        Args:
            heard: `written` of the last correction that was acted on; earlier ones are no news. Now without.
        """
        self._heard = self._heard if heard is None else heard
        self._thread = threading.Thread(target=self._serve, name="shared sightings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Tell what is left, and let go of the server."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(60)
        with contextlib.suppress(DpmError):
            self.exchange()
        self._store.close()

    def put(self, stay: SharedStay) -> None:
        """Tell where somebody of this program is, anew or again; the last of a track counts."""
        with self._lock:
            self._waiting[stay.camera, stay.track] = stay

    def tell(self, kind: str, identity: str, *, into: str = "", name: str = "") -> None:
        """Tell of a correction: merge, name or forget."""
        with self._lock:
            if kind == "merge":
                self._into[identity] = into
            if kind == "forget":
                self._forgotten.add(identity)
            self._to_tell.append(SharedCorrection(kind=kind, identity=identity, into=into, name=name))

    def news(self) -> News:
        """What other programs told since the last call; identities are those of after all merges."""
        with self._lock:
            found = News(
                corrections=sorted(self._corrections, key=lambda one: one.written),
                stays=[SharedStay(**{**vars(one), "identity": self._resolved(one.identity)}) for one in self._stays],
            )
            self._corrections, self._stays = [], []
        return found

    def exchange(self) -> None:
        """Write what waits and read what others wrote; `start` does so in the background.

        Raises:
            GalleryError: the server does not answer; what waits goes on waiting.
        """
        with self._busy:
            now = self._clock()
            with self._telling() as (stays, corrections):
                self._write(stays, corrections, now)
            self._read(now)
            if now - self._expired > min(EXPIRE_SECONDS, self._keep):
                self._expired = now
                self._expire(now)

    @contextmanager
    def _telling(self) -> Iterator[tuple[list[SharedStay], list[SharedCorrection]]]:
        """What waits to be told; it waits again where that fails."""
        with self._lock:
            stays, corrections = self._waiting, self._to_tell
            self._waiting, self._to_tell = {}, []
        try:
            yield list(stays.values()), corrections
        except BaseException:
            with self._lock:
                self._waiting = {**stays, **self._waiting}
                self._to_tell = corrections + self._to_tell
            raise

    def _write(self, stays: list[SharedStay], corrections: list[SharedCorrection], now: float) -> None:
        """A row for each. A track's last row is removed after the new one is there: at no moment is there none."""
        for one in corrections:
            if one.kind == "forget":
                self._delete(one.identity, lambda payload: True)
            elif one.kind == "name":  # the last one counts
                self._delete(one.identity, lambda payload: payload.get("told") == "name")
        told: list[tuple[str, str, str, dict[str, Any]]] = []
        for one in corrections:
            told.append((one.identity, "", "", {"told": one.kind, "into": one.into, "name": one.name}))
        stays = [stay for stay in stays if stay.identity not in self._forgotten]
        for stay in stays:
            times = {"start": stay.start, "last": stay.last, "since": stay.since}
            told.append((self._resolved(stay.identity), stay.camera, stay.track, times))
        if not told:
            return
        rows = self._rows(told, now)
        self._store.add(rows)
        keys = [(stay.camera, stay.track) for stay in stays]
        replaced = [self._mine[key][0] for key in keys if key in self._mine]
        self._mine.update((key, (number, now)) for key, number in zip(keys, rows.ids[len(corrections) :].tolist()))
        if replaced:
            self._store.delete(np.array(replaced, np.int64))

    def _rows(self, told: list[tuple[str, str, str, dict[str, Any]]], written: float) -> Rows:
        n = len(told)
        features = np.zeros((n, DIMENSION), np.float32)
        features[:, 0] = 1
        return Rows(
            ids=self._ids.new(n),
            features=features,
            masks=None,
            people=[one[0] for one in told],
            cameras=[one[1] for one in told],
            tracks=[one[2] for one in told],
            timestamps=np.full(n, written),
            visibility=np.ones(n, np.float32),
            boxes=np.full((n, 4), np.nan, np.float32),
            sources=[self._writer] * n,
            payloads=[one[3] for one in told],
        )

    def _read(self, now: float) -> None:
        """Take in the rows that others wrote since the last time, and a little before: clocks differ."""
        since = None if self._read_until is None else self._read_until - READ_BACK_SECONDS
        stays, corrections = [], []
        for rows in self._store.scan(Where(since=since), vectors=False):
            for i, written in enumerate(rows.timestamps.tolist()):
                number, payload = int(rows.ids[i]), rows.payloads[i]
                if rows.sources[i] == self._writer or number in self._read_before:
                    continue
                self._read_before[number] = written
                if "told" in payload:
                    corrections.append(
                        SharedCorrection(
                            kind=payload["told"], identity=rows.people[i], into=payload["into"], name=payload["name"],
                            written=written,
                        )
                    )  # fmt: skip
                    continue
                key = rows.cameras[i], rows.tracks[i]
                if written >= self._written.get(key, written):
                    self._written[key] = written
                    times = {name: float(payload[name]) for name in ("start", "last", "since")}
                    stays.append(SharedStay(identity=rows.people[i], camera=key[0], track=key[1], **times))
        self._read_until = now
        self._read_before = {n: at for n, at in self._read_before.items() if at >= now - 2 * READ_BACK_SECONDS}
        with self._lock:
            for one in corrections:
                if one.kind == "merge":
                    self._into[one.identity] = one.into
            fresh = [one for one in corrections if one.written > self._heard]
            self._corrections += [one for one in corrections if one in fresh or one.kind == "name"]
            self._forgotten.update(gone := {one.identity for one in fresh if one.kind == "forget"})
            self._stays += [one for one in stays if one.identity not in self._forgotten]
        for identity in gone:  # this program may have told of somebody after the other's call to forget them
            self._delete(identity, lambda payload: "told" not in payload)

    def _delete(self, identity: str, fits: Callable[[dict[str, Any]], bool]) -> None:
        """Remove the rows of an identity whose payload fits."""
        for rows in list(self._store.scan(Where(people=(identity,)), vectors=False)):
            self._store.delete(rows.ids[np.array([fits(payload) for payload in rows.payloads], bool)])

    def _resolved(self, identity: str) -> str:
        """The identity that an identity was merged into, or itself."""
        passed = set()
        while identity in self._into and identity not in passed:
            passed.add(identity)
            identity = self._into[identity]
        return identity

    def _expire(self, now: float) -> None:
        """Remove what is too old."""
        for rows in self._store.scan(Where(until=now - self._keep), vectors=False):
            kinds = [payload.get("told", "") for payload in rows.payloads]
            old = [
                kind == "" or (kind != "name" and at < now - CORRECTION_SECONDS)
                for kind, at in zip(kinds, rows.timestamps)
            ]
            if any(old):
                self._store.delete(rows.ids[np.array(old)])
        self._written = {key: at for key, at in self._written.items() if at >= now - self._keep}
        self._mine = {key: (number, at) for key, (number, at) in self._mine.items() if at >= now - self._keep}

    def _serve(self) -> None:
        while not self._stop.is_set():
            try:
                self.exchange()
                if self.message:
                    say("the gallery's server answers again")
                self.message = ""
            except Exception as error:  # whatever it is, the cameras go on, and the next try may do
                message = str(error) if isinstance(error, DpmError) else f"{type(error).__name__}: {error}"
                if message != self.message:
                    say(f"other programs are not heard: {message}")
                self.message = message
            self._stop.wait(EXCHANGE_SECONDS)
