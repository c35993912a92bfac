"""What identities know from other programs and tell them: stays, and the names that people gave."""

from __future__ import annotations

from dpm_edge.gallery import Gallery
from dpm_edge.watch.live_track import LiveTrack
from dpm_edge.watch.shared_sightings import STAY_SECONDS, SharedSightings, SharedStay
from dpm_edge.watch.whereabouts import Stay, Whereabouts


class Elsewhere:
    """The stays among the whereabouts that other programs have told of, so that each is known once."""

    def __init__(self, where: Whereabouts, shared: SharedSightings | None) -> None:
        """Know none; without `shared` nothing is told."""
        self._where, self._shared = where, shared
        self._stays: dict[tuple[str, str], tuple[str, Stay]] = {}
        self._kept = 1000

    def take(self, told: SharedStay) -> None:
        """Write down a stay that was told of, anew or again."""
        key = told.camera, told.track
        identity, stay = self._stays.get(key, ("", None))
        if stay is None:
            stay = Stay(camera=told.camera, track=told.track, start=told.start, last=told.last)
        stay.last, stay.since = max(stay.last, told.last), told.since
        if identity != told.identity:
            if identity:
                self._where.remove(identity, stay)
            self._where.add(told.identity, stay)
            self._stays[key] = told.identity, stay
        if len(self._stays) > 2 * self._kept:
            self._stays = {k: one for k, one in self._stays.items() if one[1].last >= told.last - STAY_SECONDS}
            self._kept = max(len(self._stays), self._kept)

    def comes_before(self, told: SharedStay, live: LiveTrack) -> bool:
        """Whether a track elsewhere has had the identity of a track here for longer, and both cannot be."""
        identity, stay = self._stays.get((told.camera, told.track), ("", live.stay))
        alike = identity == told.identity == live.identity
        return alike and live.stay.came_after(stay) and not self._where.compatible(stay, live.stay)

    def rename(self, identity: str, into: str) -> None:
        """Give all stays of one identity to another."""
        self._where.rename(identity, into)
        for key, (name, stay) in self._stays.items():
            if name == identity:
                self._stays[key] = into, stay

    def forget(self, identity: str) -> None:
        """Know no stay of an identity."""
        self._where.forget(identity)
        self._stays = {key: one for key, one in self._stays.items() if one[0] != identity}

    def tell(self, identity: str | None, stay: Stay) -> None:
        """Let other programs know that somebody, if it is somebody, is at one of this program's cameras."""
        if self._shared is not None and identity is not None:
            told = SharedStay(
                identity=identity, camera=stay.camera, track=stay.track, start=stay.start, last=stay.last,
                since=stay.since,
            )  # fmt: skip
            self._shared.put(told)


class Names:
    """What people called identities: kept with the gallery, or, where programs share it, by what they tell."""

    def __init__(self, gallery: Gallery, shared: SharedSightings | None) -> None:
        """Know those that are kept with the gallery."""
        self._gallery, self._shared = gallery, shared
        self._names: dict[str, str] = dict(gallery.describe().get("identity_names", {}))

    def of(self, identity: str | None) -> str:
        """The name of an identity; "" without."""
        return self._names.get(identity or "", "")

    def give(self, identity: str, name: str) -> None:
        """Somebody gave a name here."""
        if self._shared is not None:
            self._shared.tell("name", identity, name=name)
        self.hear(identity, name)

    def hear(self, identity: str, name: str) -> None:
        """Somebody gave a name, here or elsewhere."""
        self._names[identity] = name
        self._keep()

    def rename(self, identity: str, into: str) -> None:
        """One identity is another, which keeps its own name if it has one."""
        if identity in self._names:
            self._names.setdefault(into, self._names.pop(identity))
            self._keep()

    def forget(self, identity: str) -> None:
        """Know no name of an identity."""
        if self._names.pop(identity, None) is not None:
            self._keep()

    def _keep(self) -> None:
        if self._shared is None:  # several programs would overwrite each other's
            self._gallery.describe(identity_names=self._names)
