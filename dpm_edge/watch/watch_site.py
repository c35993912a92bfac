"""The loop of the camera application: frames of all cameras become events, which the store keeps and outputs deliver.

One thread works through the frames: those of files in order of time, those of live cameras in turn.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dpm_edge.errors import DpmError
from dpm_edge.progress import say
from dpm_edge.watch.corrections import Corrections
from dpm_edge.watch.detector_pace import DetectorPace
from dpm_edge.watch.drift_watch import DriftWatch
from dpm_edge.watch.events import Event
from dpm_edge.watch.outputs import Callback, Delivery, Output, make_output
from dpm_edge.watch.pipeline import CameraPipeline, CameraView
from dpm_edge.watch.rules import LastSeen, Moment, Rules, Sighting
from dpm_edge.watch.seeing import Seeing
from dpm_edge.watch.site_config import CLOCK_ERROR, Site
from dpm_edge.watch.sources import CameraFrame, Source, SourceStatus, SteadyClock
from dpm_edge.watch.store import WatchStore
from dpm_edge.watch.turns import Turns

WRITE_SECONDS = 1.0
"""Tracks are written so often."""
LOST_SECONDS = 3.0
"""A live camera without pictures for so long is reported as lost."""
DRIFT_SECONDS = 10.0
"""So often the cameras' features are compared with their statistics."""
EXPIRE_SECONDS, EXPIRE_SHARE = 600.0, 0.1
"""Retention is looked after so often, or after this share of it where that is sooner."""


class WatchSite:
    """Watches the cameras of a site until files end or `stop` is called. Use it in a `with`.

        with WatchSite(site, store) as watch:
            watch.run(seeing)

    Args:
        site: cameras, rules and outputs.
        store: where tracks, events and corrections are kept.
        on_event: called with each event, in the watching thread; for the command line and the page.
        callbacks: name → a function of yours that is given each event once the store has it, at least once.
        opener: opens addresses; for other libraries than OpenCV.
    """

    def __init__(
        self,
        site: Site,
        store: WatchStore,
        *,
        on_event: Callable[[Event], None] | None = None,
        callbacks: dict[str, Callable[[Event], None]] | None = None,
        opener: Callable[[str], Any] | None = None,
    ) -> None:
        self.site, self.store = site, store
        self.seeing: Seeing | None = None
        self.counts: Counter[str] = Counter()
        """Kind of event → how many in this run."""
        self._on_event = on_event or (lambda event: None)
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._turns = Turns(self._stop)
        self._clock = SteadyClock()
        self._rules = Rules(site, self._last_seen())
        self._written = self._expired = self._compared = 0.0
        self._rows_gone = 0
        self._vectors = any(one.vectors for one in site.outputs)
        self._drift = DriftWatch()
        begin = self._clock.now()[0]
        self._cameras = {
            one.name: CameraPipeline(
                one,
                Source(
                    one.source, one.name, start=begin if one.start is None else one.start, clock_error=one.clock_error,
                    stall_after=one.stall_after, clock=self._clock, wake=self._turns.wake, reader=one.reader,
                    rotate=one.rotate, opener=opener,
                ),
                thumbnails=site.thumbnails,
                vectors=self._vectors,
                run=f"{store.run}-" if store.run else "",
                drift=self._drift,
                lock=self._lock,
            )
            for one in site.cameras
        }  # fmt: skip
        self._corrections = Corrections(site, store, self._rules, self._cameras, self._drift, self._clock, self._keep)
        self._pace = DetectorPace({one.name: one.detect_every for one in site.cameras})
        outputs: list[tuple[str, Output, tuple[str, ...]]] = [
            (one.name, make_output(one), one.events) for one in site.outputs
        ]
        outputs += [(name, Callback(function), ()) for name, function in (callbacks or {}).items()]
        self.deliveries = [Delivery(name, output, store, kinds) for name, output, kinds in outputs]

    def __enter__(self) -> WatchSite:
        for camera in self._cameras.values():
            camera.source.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        for camera in self._cameras.values():
            camera.source.close()
        for delivery in self.deliveries:
            delivery.close()

    def stop(self) -> None:
        """Have `run` return after the frame that is under way; from any thread, or a signal handler."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    def wait_for_stop(self) -> None:
        """Return once `stop` was called."""
        while not self._stop.wait(0.5):
            pass

    def run(self, seeing: Seeing) -> None:
        """Watch until every file has ended, or, with live cameras, until `stop`.

        Raises:
            DpmError: no frame of any camera could be looked at; the first reason.
        """
        self.seeing = seeing
        seeing.enrol(self.site.people)
        if seeing.shared is not None:
            seeing.shared.start(self.store.heard())
        try:
            while not self._stop.is_set():
                frame = self._turns.next(self._cameras)
                self._hear()
                if frame is not None:
                    self._look_at(frame)
                elif all(camera.source.ended for camera in self._cameras.values()):
                    break
                self._now_and_then()
        finally:
            with self._lock:
                for name, camera in self._cameras.items():
                    self._decide(name, camera.end_tracks(seeing))
                self._keep(self._rules.finish())
                self._corrections.write_tracks()
            if seeing.shared is not None:
                seeing.shared.close()
        self._drift.compare(seeing.gallery)
        self._complain_if_blind()

    def status(self) -> list[dict[str, Any]]:
        """How each camera is, as JSON types."""
        return [camera.status() for camera in self._cameras.values()]

    def source_statuses(self) -> list[SourceStatus]:
        """How each source is."""
        return [camera.source.status() for camera in self._cameras.values()]

    def processed(self) -> dict[str, int]:
        """Camera → frames looked at."""
        return {name: camera.processed for name, camera in self._cameras.items()}

    def latency(self) -> dict[str, float]:
        """Camera → seconds from its last frame to that frame's events."""
        return {name: camera.latency for name, camera in self._cameras.items()}

    def detect_every(self) -> dict[str, int]:
        """Camera → n, where the detector looks at every n-th of the frames that are looked at."""
        return {name: self._pace.every(name) for name in self._cameras}

    def drift(self) -> dict[str, float]:
        """Camera → how far its features have moved away from its statistics, where both are known."""
        return {name: one.drift for name, one in self._drift.found.items()}

    def view(self, camera: str) -> CameraView | None:
        """The last picture of a camera with who is in it; before the detector is open, what its source gives."""
        one = self._cameras.get(camera)
        if one is None:
            return None
        if one.view is None and (frame := one.source.peek()) is not None:
            return CameraView(
                number=frame.number, image=frame.image, seconds=frame.seconds, wall=frame.wall, looked_at=False
            )
        return one.view

    def merge(self, identity: str, into: str) -> None:
        """Say that two identities are one person; later decisions respect it.

        Raises:
            NotSeen: nobody has one of them.
            DpmError: they are one identity already.
        """
        with self._lock:
            self._corrections.merge(self.seeing, identity, into)

    def split(self, camera: str, track: str, identity: str) -> str:
        """Say that a track is not the identity that it was given; the identity that it has now.

        Raises:
            NotSeen: that identity has no such track.
        """
        with self._lock:
            return self._corrections.split(self.seeing, camera, track, identity)

    def name(self, identity: str, name: str) -> None:
        """Give an identity a name.

        Raises:
            NotSeen: nobody has that identity.
            DpmError: the name is empty or longer than 100 characters.
        """
        with self._lock:
            self._corrections.name(self.seeing, identity, name)

    def forget(self, identity: str) -> int:
        """Delete everything about an identity: tracks, thumbnails, events, corrections, names and gallery rows.

        What outputs have delivered already is with their receivers.
        """
        with self._lock:
            return self._corrections.forget(self.seeing, identity)

    def search(self, picture: NDArray[np.uint8], k: int = 10) -> dict[str, Any]:
        """Who of the gallery is on a picture, as `Seeing.search` says it.

        Raises:
            DpmError: the engine is not open yet, or the picture cannot be embedded.
        """
        if self.seeing is None:
            raise DpmError("expected an open engine, got one that is being opened. Try again in a moment")
        return self.seeing.search(picture, k)

    def _last_seen(self) -> dict[str, list[LastSeen]]:
        found: dict[str, list[LastSeen]] = {}
        for identity, camera, last, uncertainty in self.store.last_sightings():
            moment = Moment(seconds=last, wall=last, uncertainty=uncertainty)
            found.setdefault(identity, []).append(LastSeen(camera=camera, moment=moment, this_run=False))
        return found

    def _look_at(self, frame: CameraFrame) -> None:
        assert self.seeing is not None, "run sets it before the first frame"
        camera = self._cameras[frame.camera]
        camera.taken += 1
        if not camera.source.live and (camera.taken - 1) % camera.config.every:
            return
        begin = time.monotonic()
        try:
            looked = camera.look_at(self.seeing, frame, self._pace.every(frame.camera))
        except Exception as error:  # one camera's bad frame must not end the others
            camera.failures += 1
            message = str(error) if isinstance(error, DpmError) else f"{type(error).__name__}: {error}"
            if message != camera.message:
                say(f"{frame.camera}: frame {frame.number} could not be looked at: {message}")
            camera.message = message
            return
        camera.message = ""
        camera.processed += 1
        with self._lock:  # an event that cannot be kept ends the program: going on would lose it silently
            self._decide(frame.camera, looked.final)
            self._keep(self._rules.see(frame.camera, looked.moment, looked.sightings, looked.size))
        self._pace.took(frame.camera, looked.detector_seconds, time.monotonic() - begin)
        now = self._clock.now()[0]
        camera.latency = max(0.0, now - frame.seconds) if camera.source.live else time.monotonic() - begin

    def _hear(self) -> None:
        """Take in what programs at the other cameras tell."""
        if self.seeing is None or self.seeing.shared is None:
            return
        news = self.seeing.shared.news()
        if not news.stays and not news.corrections:
            return
        with self._lock:
            self.seeing.identities.hear(news)
            self._corrections.hear(news.corrections)
            errors = {one.name: one.clock_error for one in self.site.elsewhere}
            for one in news.stays:
                moment = Moment(seconds=one.last, wall=one.last, uncertainty=errors.get(one.camera, CLOCK_ERROR))
                self._rules.saw_elsewhere(one.identity, one.camera, moment)

    def _decide(self, camera: str, final: Iterable[Sighting]) -> None:
        """Tell the rules what was finally decided about tracks that have ended."""
        for sighting in final:
            self._keep(self._rules.decide(camera, sighting))

    def _keep(self, events: list[Event]) -> None:
        """Store events, then tell whoever listens; the outputs take them out of the store."""
        if not events:
            return
        if self._vectors:
            events = [replace(event, vector=self._vector(event)) for event in events]
        self.store.add_events(events)
        for event in events:
            self.counts[event.kind] += 1
            self._on_event(event)

    def _vector(self, event: Event) -> dict[str, Any] | None:
        """What the track of somebody who has an identity looks like."""
        camera = self._cameras.get(event.camera)
        known = event.identity is not None and camera is not None and self.seeing is not None
        return camera.vector(self.seeing, event.track) if known else None  # type: ignore[union-attr,arg-type]

    def _now_and_then(self) -> None:
        """What needs doing whether frames come or not."""
        now = time.monotonic()
        if now - self._written < WRITE_SECONDS:
            return
        self._written = now
        self._pace.choose({n: one.source.status().rate for n, one in self._cameras.items() if one.source.live}, now)
        with self._lock:
            self._corrections.write_tracks()
            for name, camera in self._cameras.items():
                if camera.source.live:
                    self._mind_health(name, camera, now)
        if self.seeing is not None and now - self._compared > DRIFT_SECONDS:
            self._compared = now
            self._drift.compare(self.seeing.gallery)
        if self.site.keep is not None and now - self._expired > min(EXPIRE_SECONDS, EXPIRE_SHARE * self.site.keep):
            self._expired = now
            self._expire(self.site.keep)

    def _expire(self, keep: float) -> None:
        """Delete what is older, and, once as many rows of the gallery are gone as are left, the room that they took."""
        before = self._clock.now()[1] - keep
        self.store.expire(before)
        with self._lock:
            self._rules.expire(before)
        if self.seeing is not None:
            gallery = self.seeing.gallery
            self._rows_gone += gallery.expire(keep)
            if self._rows_gone > len(gallery):
                self._rows_gone = 0
                try:
                    gallery.compact()
                except DpmError as error:  # no room: the rows are in no answer any more all the same
                    say(str(error))

    def _mind_health(self, name: str, camera: CameraPipeline, now: float) -> None:
        source = camera.source.status()
        seconds, wall = self._clock.now()
        moment = Moment(seconds=seconds, wall=wall)
        if source.state == "live":
            camera.lost_since = None
            self._keep(self._rules.camera_back(name, moment))
        else:
            camera.lost_since = now if camera.lost_since is None else camera.lost_since
            if now - camera.lost_since >= LOST_SECONDS and self.seeing is not None:
                self._decide(name, camera.end_tracks(self.seeing))
                self._keep(self._rules.camera_lost(name, moment, source.message or source.state))
        self._keep(self._rules.tick(name, moment))

    def _complain_if_blind(self) -> None:
        cameras = self._cameras.values()
        if self._stop.is_set() or any(camera.processed for camera in cameras):
            return
        reasons = [camera.message or camera.source.status().message for camera in cameras]
        raise DpmError("; ".join(dict.fromkeys(reason for reason in reasons if reason)) or "no camera gave a frame")
