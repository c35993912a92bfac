"""What people say about identities, at this program's page or at another's: it reaches store, rules and cameras.

The identities themselves are told by `WatchSite`, which holds its lock around every call here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dpm_edge.errors import DpmError, NotSeen
from dpm_edge.watch.drift_watch import DriftWatch
from dpm_edge.watch.events import Event
from dpm_edge.watch.pipeline import CameraPipeline
from dpm_edge.watch.records import Correction
from dpm_edge.watch.rules import Rules
from dpm_edge.watch.seeing import Seeing
from dpm_edge.watch.shared_sightings import SharedCorrection
from dpm_edge.watch.site_config import Site
from dpm_edge.watch.sources import SteadyClock
from dpm_edge.watch.store import WatchStore


class Corrections:
    """Merges, splits, names and forgetting, in everything that knows identities."""

    def __init__(
        self, site: Site, store: WatchStore, rules: Rules, cameras: Mapping[str, CameraPipeline], drift: DriftWatch,
        clock: SteadyClock, keep: Callable[[list[Event]], None],
    ) -> None:  # fmt: skip
        """Of a running watch; `keep` stores events and tells whoever listens."""
        self._site, self._store, self._rules, self._cameras = site, store, rules, cameras
        self._drift, self._clock, self._keep = drift, clock, keep

    def merge(self, seeing: Seeing | None, identity: str, into: str) -> None:
        """As `WatchSite.merge`."""
        self._must_be_known(seeing, identity, into)
        if identity == into:
            raise DpmError(f"expected two identities to merge, got {identity!r} twice. Choose another one")
        if seeing is not None:
            seeing.identities.merge(identity, into)
        self._merge_here(identity, into)
        self._report("merged", into, previous_ids=(identity,))

    def split(self, seeing: Seeing | None, camera: str, track: str, identity: str) -> str:
        """As `WatchSite.split`."""
        tracks = self._store.tracks(identity=identity)
        if not any((one.camera, one.track) == (camera, track) for one in tracks):
            raise NotSeen(f"expected a track of {identity!r}, got {track!r} of camera {camera!r}. Reload the page")
        new = f"{identity}-{camera}-{track}" if seeing is None else seeing.identities.split(camera, track)
        body = {"identity": identity, "into": new, "camera": camera, "track": track}
        self._write("split", body, [identity, new])
        if camera in self._cameras:
            self._cameras[camera].rename(identity, new, track)
        self._report("split", new, camera=camera, track=track, from_identity=identity)
        return new

    def name(self, seeing: Seeing | None, identity: str, name: str) -> None:
        """As `WatchSite.name`."""
        name = " ".join(name.split())
        if not 0 < len(name) <= 100:
            raise DpmError(f"expected a name of 1 to 100 characters, got {len(name)}")
        self._must_be_known(seeing, identity)
        self._write("name", {"identity": identity, "name": name}, [identity])
        if seeing is not None:
            seeing.identities.name(identity, name)

    def forget(self, seeing: Seeing | None, identity: str) -> int:
        """As `WatchSite.forget`."""
        rows = seeing.identities.forget(identity) if seeing is not None else 0
        return rows + self._forget_here(identity)

    def hear(self, told: list[SharedCorrection]) -> None:
        """Do what was said at another program's page, which has reported it."""
        for one in told:
            if one.kind == "forget":
                self._forget_here(one.identity)
            elif one.kind == "merge" and self._is_here(one.identity):
                self._merge_here(one.identity, one.into)
            elif one.kind == "name" and self._store.names().get(one.identity) != one.name:
                self._write("name", {"identity": one.identity, "name": one.name}, [one.identity])
        if told:
            self._store.set_heard(max(one.written for one in told))

    def write_tracks(self) -> None:
        """Bring tracks that have changed into the store."""
        for camera in self._cameras.values():
            records, thumbnails = camera.changed_tracks()
            if records:
                self._store.put_tracks(records, thumbnails)

    def _merge_here(self, identity: str, into: str) -> None:
        self._write("merge", {"identity": identity, "into": into}, [identity, into])
        self._rules.rename(identity, into)
        for camera in self._cameras.values():
            camera.rename(identity, into)

    def _forget_here(self, identity: str) -> int:
        self._rules.forget(identity)
        for one in self._store.tracks(identity=identity):
            self._drift.forget(one.camera, one.track)
        for camera in self._cameras.values():
            camera.forget(identity)
        return self._store.forget(identity)

    def _is_here(self, identity: str) -> bool:
        self.write_tracks()
        return bool(self._store.tracks(identity=identity, limit=1))

    def _must_be_known(self, seeing: Seeing | None, *identities: str) -> None:
        for identity in identities:
            elsewhere = seeing is not None and seeing.shared is not None and seeing.gallery.count(person=identity)
            if not self._is_here(identity) and not elsewhere:
                raise NotSeen(f"expected an identity that was seen, got {identity!r}. Reload the page")

    def _write(self, kind: str, body: dict[str, Any], people: list[str]) -> None:
        self._store.add_correction(Correction(kind=kind, wall=self._clock.now()[1], body=body), people)

    def _report(
        self, kind: str, identity: str, *, camera: str = "", track: str = "", previous_ids: tuple[str, ...] = (),
        **details: Any,
    ) -> None:  # fmt: skip
        seconds, wall = self._clock.now()
        wanted = [rule for rule in self._site.rules if rule.event == kind]
        self._keep(
            [
                Event(
                    kind=kind, rule=rule.name, camera=camera, track=track, wall=wall, seconds=seconds,
                    identity=identity, state="known", previous_ids=previous_ids, details={**details, "by_hand": True},
                )
                for rule in wanted
            ]
        )  # fmt: skip
