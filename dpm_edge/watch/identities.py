"""Who the tracks of all cameras are: recognised by their looks, within what is possible in time and place.

    identities = Identities(Gallery.for_engine(engine), cameras=["door", "yard"], travel={("door", "yard"): 4.0})
    found = engine.embed(frame, boxes)
    decision = identities.observe("door", track.id, seconds, found.features[:1], found.masks[:1], found.visibility[:1])
    print(decision.state, decision.identity, decision.probability)

A track is *pending* until it has shown enough clear crops. Then it is compared with everybody in the gallery who can
have been there at that time, and is *known* when one of them is probable and clearly before the next, or else
*unknown*: a new identity of its own. It is looked at again as it shows more, so that an unknown track may turn out to
be somebody: a merge, which `previous_ids` and `changes()` tell. Its best crops go into the gallery when it ends.

The probability counts over all candidates: with the odds L_i that crops and times give for candidate i, n people who
were compared, and half of all tracks expected to be somebody new,  P_i = (L_i / n) / (1 + Σ_j L_j / n).

D feature dimensions
"""

from __future__ import annotations

import itertools
import math
import secrets
from collections.abc import Iterable, Mapping, Sequence

from numpy.typing import ArrayLike

from dpm_edge.errors import DataError
from dpm_edge.gallery import Gallery
from dpm_edge.runtime.embeddings import Embeddings
from dpm_edge.watch.decisions import CLOSE, NOBODY, Decision, IdentityChange, move_rows, move_track
from dpm_edge.watch.elsewhere import Elsewhere, Names
from dpm_edge.watch.evidence import Strangers, odds_by_looks
from dpm_edge.watch.joint_decision import decide_together, probabilities
from dpm_edge.watch.live_track import LiveTrack, add_best_crops, checked_crops
from dpm_edge.watch.shared_sightings import News, SharedSightings
from dpm_edge.watch.whereabouts import Stay, Whereabouts

CLEARER = 0.2
"""A track whose visibility has risen by so much is looked at again."""
LEFT = 0.3
"""Probability below which a track is no longer who it was taken for."""
MOST_CHANGES = 1000  # that wait to be asked for


class Identities:
    """Identities across cameras. Not for several threads at once."""

    def __init__(
        self,
        gallery: Gallery,
        *,
        cameras: Sequence[str] = (),
        travel: Mapping[tuple[str, str], float | tuple[float, float | None]] | None = None,
        overlap: Iterable[tuple[str, str]] = (),
        metric: str = "masked",
        least_views: int = 3,
        least_visibility: float = 0.3,
        probability: float = 0.75,
        margin: float = 0.2,
        absent: float = 1.5,
        hidden: float = 5.0,
        shared: SharedSightings | None = None,
        memory: float = 86400.0,
        ours: bool | None = None,
    ) -> None:
        """Begin without tracks; whoever is in the gallery can be recognised.

        Args:
            gallery: of the model whose features will come. Its rows' people are the identities.
            cameras: names, to check those of `travel` and `overlap`; any without.
            travel: (from, to) → least seconds that the way takes, or least and usual most seconds.
            overlap: pairs of cameras whose views overlap, so that one person may be in both at a time.
            metric: "masked" or "mutual"; "plain" of a model without masks.
            least_views: crops of the least visibility that a decision needs.
            least_visibility: below it a crop tells nothing.
            probability: from which on a track is known.
            margin: by which its probability must be above the next candidate's.
            absent: seconds without a crop after which a track has ended.
            hidden: seconds after which a track without enough clear crops is unknown, no longer pending.
            shared: what the other programs with this gallery, a server's, tell (`hear`); without, there are none.
            memory: seconds that it is known where somebody was.
            ours: whether the model is one of ours, not another project's; None: where its features have masks.

        Raises:
            DataError: a camera's name or a time in `travel` or `overlap` cannot be, or a number is out of range.
        """
        if least_views < 1 or not 0 < probability < 1 or not 0 <= margin < 1 or absent <= 0:
            raise DataError(
                f"expected 1 view or more, a probability above 0 and below 1, a margin in 0..1 and seconds above 0, "
                f"got {least_views}, {probability}, {margin} and {absent}. Leave them out for the usual ones"
            )
        self.gallery, self._metric = gallery, metric
        self._least_views, self._least_visibility = least_views, least_visibility
        self._probability, self._margin, self._absent, self._hidden = probability, margin, absent, hidden
        self._where = Whereabouts(cameras, travel, overlap, memory)
        self._shared, self._elsewhere = shared, Elsewhere(self._where, shared)
        self._strangers = Strangers(metric, ours)
        self._live: dict[tuple[str, str], LiveTrack] = {}
        self._names = Names(gallery, shared)
        self._seen_cameras: set[str] = set()
        self._changes: list[IdentityChange] = []
        self._counter = itertools.count(1)
        self._series = secrets.token_hex(4)

    def observe(
        self,
        camera: str,
        track_id: int | str,
        seconds: float,
        features: ArrayLike,
        masks: ArrayLike | None = None,
        visibility: ArrayLike | None = None,
        quality: ArrayLike | None = None,
    ) -> Decision:
        """Take in crops of a track, all of one moment, and say who it is.

        Args:
            camera: its name.
            track_id: which no other track of this camera has had.
            seconds: by one clock for all cameras, rising for each.
            features: (n, D) of the gallery's model.
            masks: (n, D) in 0..1; ones without.
            visibility: (n,) as `Embeddings.visibility`; without, ones, or nothing under the plain metric.
            quality: (n,) how much each crop counts, such as by its size and the detector's score; ones without.

        Raises:
            DataError: the time is none, or a quality is negative.
            EmbeddingsError: the arrays do not fit each other, or are not finite.
            GalleryError: the features are not of the gallery's dimension, or the gallery cannot be used.
        """
        if not math.isfinite(seconds):
            raise DataError(f"expected seconds, got {seconds}. Pass the frame's time")
        crops, weight = checked_crops(self.gallery, self._metric, features, masks, visibility, quality)
        for gone in [one for one in self._live.values() if seconds - one.stay.last > self._absent]:
            self._end(gone)
        key = str(camera), str(track_id)
        live = self._live.get(key)
        if live is None:
            stay = Stay(camera=key[0], track=key[1], start=float(seconds), last=float(seconds))
            live = self._live[key] = LiveTrack(stay)
            self._seen_cameras.add(key[0])
        live.stay.last = max(live.stay.last, float(seconds))
        live.seen += len(crops)
        for i in range(len(crops)):
            seen = float(crops.weight[i])
            if seen >= self._least_visibility and weight[i] > 0:
                visible = seen if crops.has_masks else None
                live.crops.add(crops.features[i], crops.masks[i], visible, float(weight[i]), seconds)
        if self._due(live):
            self._look(live)
        self._part(live)
        self._elsewhere.tell(live.identity, live.stay)
        return self._decision(live, seconds)

    def decision(self, camera: str, track_id: int | str) -> Decision | None:
        """The present decision about a track; None for one that is not followed."""
        live = self._live.get((str(camera), str(track_id)))
        return None if live is None else self._decision(live, live.stay.last)

    def pooled(self, camera: str, track_id: int | str) -> Embeddings | None:
        """One row: what a track has shown so far; None where it is not followed or has shown nothing clear."""
        live = self._live.get((str(camera), str(track_id)))
        return live.crops.query(self.gallery.fingerprint) if live is not None and live.crops.count else None

    def changes(self, camera: str | None = None) -> list[IdentityChange]:
        """Merges and splits since the last call, in order; with `camera` its tracks' and those by hand, others wait."""
        told = [one for one in self._changes if camera is None or one.camera in (camera, "")]
        self._changes = [one for one in self._changes if one not in told][-MOST_CHANGES:]
        return told

    def end(self, camera: str, track_id: int | str) -> Decision | None:
        """A track has ended: decide finally and keep its best crops; None for one that is not followed. Tracks without
        a crop for a while end by themselves."""
        return None if (live := self._live.get((str(camera), str(track_id)))) is None else self._end(live)

    def finish(self) -> list[Decision]:
        """End every track, in the order in which they began; the final decisions."""
        return [self._end(live) for live in sorted(self._live.values(), key=lambda one: one.stay.start)]

    def hear(self, news: News) -> None:
        """Take in what other programs told (`SharedSightings.news`): their tracks, and corrections at their pages.

        A track here is looked at again where another has had its identity for longer and both cannot be.
        """
        for one in news.corrections:
            if one.kind == "merge":
                self._merge_here(one.identity, one.into, sorted(self._seen_cameras))
            elif one.kind == "name":
                self._names.hear(one.identity, one.name)
            elif one.kind == "forget":
                self._forget_here(one.identity)
        for told in news.stays:
            self._elsewhere.take(told)
            for live in list(self._live.values()):
                if live.crops.count and not live.fixed and self._elsewhere.comes_before(told, live):
                    self._look(live)

    def merge(self, identity: str, into: str) -> str:
        """Two identities are one person, whatever times and places say; every row and track of the first is moved.

        Raises:
            DataError: they are one identity already.
        """
        if identity == into:
            raise DataError(f"expected two identities to merge, got {identity!r} twice")
        self._merge_here(identity, into)
        if self._shared is not None:
            self._shared.tell("merge", identity, into=into)
        self._changes.append(IdentityChange(kind="merged", identity=identity, into=into, seconds=0.0, by_hand=True))
        return into

    def _merge_here(self, identity: str, into: str, cameras: list[str] | None = None) -> None:
        """Move rows, of `cameras` or of all, and this program's tracks from one identity to another."""
        which = {} if cameras is None else {"camera": cameras}
        if cameras is None or cameras:
            move_rows(self.gallery, self.gallery.ids(person=identity, **which), into)
        self._elsewhere.rename(identity, into)
        for live in self._live.values():
            live.barred.discard(into)
            if live.identity == identity:
                self._set(live, "known", into, None, fixed=True)
            if identity in live.odds:
                live.odds[into] = max(live.odds.pop(identity), live.odds.get(into, -math.inf))
        self._names.rename(identity, into)

    def split(self, camera: str, track_id: int | str) -> str:
        """A track is not who it was taken for: it gets a new identity, with its rows, for good.

        Raises:
            DataError: nothing is known of the track.
        """
        key = str(camera), str(track_id)
        live, new = self._live.get(key), self._new_identity()
        moved_from = move_track(self.gallery, *key, new)
        old = live.identity or moved_from if live is not None else moved_from
        if old is None:
            raise DataError(f"expected a track that has an identity, got {key[1]!r} of camera {key[0]!r}")
        for stay in self._where.stays(old):
            if (stay.camera, stay.track) == key:
                self._where.remove(old, stay)
                self._where.add(new, stay)
                self._elsewhere.tell(new, stay)
        if live is not None:
            live.barred.add(old)
            live.odds.pop(old, None)
            self._set(live, "unknown", new, None, fixed=True)
            live.own = new
        self._changes.append(
            IdentityChange(kind="split", identity=old, into=new, seconds=0.0, camera=key[0], track=key[1], by_hand=True)
        )
        return new

    def name(self, identity: str, name: str) -> None:
        """Call an identity something; "" takes its name away. Names are kept with the gallery."""
        self._names.give(identity, str(name))

    def forget(self, identity: str) -> int:
        """Remove everything about an identity; how many rows the gallery had."""
        if self._shared is not None:
            self._shared.tell("forget", identity)
        return self._forget_here(identity)

    def _forget_here(self, identity: str) -> int:
        self._elsewhere.forget(identity)
        for key, live in list(self._live.items()):
            live.odds.pop(identity, None)
            if live.identity == identity:
                del self._live[key]
        self._names.forget(identity)
        return self.gallery.forget(identity)

    def _due(self, live: LiveTrack) -> bool:
        """Whether a track shows enough, or enough more than at the last look."""
        count = live.crops.count
        if live.fixed or count < self._least_views:
            return False
        clearest = max(live.crops.visibility)
        return live.looked_at == 0 or count >= 2 * live.looked_at or clearest >= live.clearest + CLEARER

    def _part(self, live: LiveTrack) -> None:
        """Look again at the later of two tracks of different cameras that are taken for one person and cannot be."""
        if live.identity is None:
            return
        for other in list(self._live.values()):
            if other.identity == live.identity and other.stay.camera != live.stay.camera:
                later = live if live.stay.came_after(other.stay) else other
                if not later.fixed and later.crops.count and not self._where.compatible(live.stay, other.stay):
                    self._look(later)

    def _look(self, live: LiveTrack) -> None:
        """Compare a track with everybody who can be it, and decide together with the others of its camera."""
        live.looked_at, live.clearest = live.crops.count, max(live.crops.visibility)
        query = live.crops.query(self.gallery.fingerprint)
        others = [
            one for one in self._live.values()
            if one is not live and one.stay.camera == live.stay.camera and one.crops.count >= self._least_views
            and one.stay.last >= live.stay.start
        ]  # fmt: skip
        for one in others:
            self._strangers.add(query, live.stay.camera, one.crops.query(query.fingerprint), one.stay.camera)
        found = odds_by_looks(self.gallery, query, live.stay.camera, self._metric, self._strangers)
        live.compared = len(found)
        live.odds = {
            identity: odds + self._where.log_odds(identity, live.stay)
            for identity, odds in found.items()
            if identity not in live.barred and self._can_be(live, identity)
        }
        together = [live, *(one for one in others if one.decision is not None and not one.fixed)]
        for one, odds in decide_together(together, live):
            self._conclude(one, odds)

    def _can_be(self, live: LiveTrack, identity: str) -> bool:
        """Whether time and place allow it, but for tracks of its own camera, with which it is decided together."""
        rivals = {id(one.stay) for one in self._live.values() if one.stay.camera == live.stay.camera and not one.fixed}
        return all(
            id(stay) in rivals
            or (live.identity == identity and stay.came_after(live.stay))  # that one is looked at again
            or self._where.compatible(stay, live.stay)
            for stay in self._where.stays(identity)
            if stay is not live.stay
        )

    def _conclude(self, live: LiveTrack, odds: dict[str, float]) -> None:
        """State and identity by the odds of the candidates that no other track of the camera has."""
        ranked, p_new = probabilities(odds, live.compared)
        best, p = ranked[0] if ranked else (None, 0.0)
        second = ranked[1][1] if len(ranked) > 1 else 0.0
        if best is not None and p >= self._probability and p - second >= self._margin:
            self._set(live, "known", best, p, candidates=ranked)
        elif (held := live.identity) is not None and held != live.own and dict(ranked).get(held, 0.0) >= LEFT:
            self._set(live, "known", held, dict(ranked)[held], candidates=ranked)  # too little to take it back
        else:
            reason = NOBODY if p < p_new else CLOSE
            self._set(live, "unknown", self._own(live), p_new, candidates=ranked, reason=reason)

    def _set(
        self, live: LiveTrack, state: str, identity: str, probability: float | None, *,
        candidates: tuple[tuple[str, float], ...] = (), reason: str = "", fixed: bool = False,
    ) -> None:  # fmt: skip
        """Write a decision down, and tell of a change."""
        before = live.decision
        previous = before.previous_ids if before is not None else ()
        if before is not None and before.identity not in (None, identity):
            assert before.identity is not None
            previous = (*(one for one in previous if one != identity), before.identity)
            self._where.remove(before.identity, live.stay)
            if not fixed:
                kind = "merged" if before.identity == live.own else "split"
                self._changes.append(
                    IdentityChange(
                        kind=kind, identity=before.identity, into=identity, seconds=live.stay.last,
                        camera=live.stay.camera, track=live.stay.track,
                    )
                )  # fmt: skip
        self._where.add(identity, live.stay)
        if live.identity != identity:
            live.stay.since = live.stay.last
        live.fixed = live.fixed or fixed
        live.decision = Decision(
            camera=live.stay.camera, track=live.stay.track, seconds=live.stay.last, state=state, identity=identity,
            probability=probability, previous_ids=previous, reason=reason, candidates=candidates,
        )  # fmt: skip

    def _decision(self, live: LiveTrack, seconds: float) -> Decision:
        """The present decision; one that waited too long for clear crops is unknown."""
        if live.decision is None and live.stay.last - live.stay.start >= self._hidden:
            self._set(live, "unknown", self._own(live), None, reason=live.lack(self._least_views))
        made = live.decision
        if made is None:
            camera, track = live.key
            lack = live.lack(self._least_views)
            return Decision(camera=camera, track=track, seconds=seconds, state="pending", reason=lack)
        return Decision(**{**made.__dict__, "seconds": seconds, "name": self._names.of(made.identity)})

    def _own(self, live: LiveTrack) -> str:
        """The identity made for a track, at its first need."""
        live.own = live.own or self._new_identity()
        return live.own

    def _new_identity(self) -> str:
        """A name that no identity has: those of another run of the program begin otherwise."""
        return f"P{self._series}-{next(self._counter)}"

    def _end(self, live: LiveTrack) -> Decision:
        """Decide finally, keep the best crops, and follow the track no longer."""
        if not live.fixed and live.crops.count >= self._least_views and live.crops.count > live.looked_at:
            self._look(live)
        if live.decision is None:
            self._set(live, "unknown", self._own(live), None, reason=live.lack(self._least_views))
        self._live.pop(live.key, None)
        self._elsewhere.tell(live.identity, live.stay)
        made = self._decision(live, live.stay.last)
        assert made.identity is not None
        if live.crops.count >= self._least_views:
            if made.state == "known" and (made.probability is None or made.probability >= 0.9):
                self._where.learn(made.identity, live.stay)
            add_best_crops(self.gallery, live, made.identity)
        return made
